"""Scores of a trained model beside its baselines."""
