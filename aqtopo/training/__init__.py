"""Training: the DeepSpeed engine, parameter groups, schedule, loss and loop."""
