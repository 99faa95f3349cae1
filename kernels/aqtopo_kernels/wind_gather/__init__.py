"""Wind gather and its inverse: reorder tokens into wind order, and back."""
