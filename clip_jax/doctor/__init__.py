"""Tells what is wrong with a machine, with data or with a run that is planned.

`machine` looks at devices and what they tell each other; `records` and
`captions` at the data; `learning` tries to learn one batch by heart, and
`diagnosis` says why a config cannot. `examination` has their order.
"""
