"""Whether a converted model computes what its source does elsewhere."""
