"""Scores of a trained model and of the baselines."""
