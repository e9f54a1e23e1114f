"""Training: learning-rate schedule, optimizer, checkpoints, metrics, the step and the loop."""
