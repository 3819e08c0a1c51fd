"""Image towers, text towers and the two-tower model, as linen modules."""
