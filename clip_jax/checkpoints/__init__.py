"""Checkpoints of a run: its state, how it is stored, and how it is read back.

A checkpoint holds three items: `variables` (parameters and batch statistics,
all that inference needs), `progress` (optimizer state and counters; with moving
averages, which are the `variables` then, also the trained parameters) and
`meta` (JSON: a digest of every array, the config, versions). Orbax does not
notice a flipped bit in its files; the digests do, and the newest checkpoint
that is not damaged is used instead.
"""
