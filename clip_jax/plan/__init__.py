"""Estimates of a run's memory, FLOPs and time, before any chip is rented.

The training step is compiled ahead of time, for devices that need not be
present: `jobs.make_job`, then `planner.make_plan`. `suggest.suggest` searches
for a config that fits, `presentation` formats a plan.
"""
