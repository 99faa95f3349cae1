"""Attention in which a rise of the ground between two tokens weakens the flow between them."""
