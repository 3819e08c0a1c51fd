"""Checkpoints of other formats, in and out: every tensor accounted for."""
