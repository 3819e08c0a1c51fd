"""What a run needs and how long it takes, before any chip is rented.

The step that would train is compiled ahead of time, for devices that need not
be here: `planner.make_job`, `planner.make_plan`; `suggest.suggest` searches for
a config that fits; `report` words it.
"""
