"""Compares a converted model with its source in the source's own library."""
