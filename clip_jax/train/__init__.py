"""Optimizer, step, loop, checkpoints and metrics."""
