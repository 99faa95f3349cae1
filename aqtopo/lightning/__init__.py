"""Import of checkpoints that PyTorch Lightning wrote."""
