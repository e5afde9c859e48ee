"""What a user asked for: the configuration of one run, and of a sweep of many.

Read `run_config` first, then `selection` (tasks x methods x seeds) and `sweep`.
"""
