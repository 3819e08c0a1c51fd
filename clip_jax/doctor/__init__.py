"""Looks for problems of a machine, of data and of a config before a run.

`machine` looks at devices and at how fast they exchange data; `records` and
`captions` look at the data; `learning` overfits one batch, and `diagnosis` says
why a config cannot. `examination` runs them in order.
"""
