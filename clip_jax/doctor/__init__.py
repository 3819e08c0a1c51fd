"""Tells what is wrong with a machine, with data or with a run that is planned.

`machine` looks at devices and what they tell each other; `captions` at the
data; `learning` at whether a config can learn one batch by heart, and why not.
"""
