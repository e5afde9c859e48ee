"""Many runs: one after another, in worker processes, on a Ray cluster.

Read `series` first, then `sweep_driver`, `executors` and `worker`. `forecast` says
what runs would cost.
"""
