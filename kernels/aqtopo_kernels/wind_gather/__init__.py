"""Tokens put into wind order, and back."""
