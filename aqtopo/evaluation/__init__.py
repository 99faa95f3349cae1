"""Scores of a trained model beside its references, and forecasts as CF datasets."""
