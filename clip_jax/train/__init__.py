"""Training: the optimizer, the step, the loop around it and its metrics."""
