"""Wind gather: reorders tokens into wind order, and back."""
