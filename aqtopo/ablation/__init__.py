"""Ablations: training of variants that differ in single settings, and comparison of their scores."""
