"""Checkpoints of a run: its state, how it is stored, and how it is read back.

A step holds three items: `variables` (parameters and batch statistics, all
that inference needs), `progress` (optimizer and counters; where the parameters
to use are an average, also those that it is of) and `meta` (JSON: a digest of
every array, the config, versions). Orbax does not notice a flipped
bit in its files; the digests do, and the newest good step is used instead.
"""
