"""Carries out many runs: one after another, in worker processes, or on a Ray cluster.

Read `driver` first, then `agenda` (which runs there are), `executors` (where they run), `runner`
(one run) and `events`. `estimate` says what runs would cost, `doctor` what this machine can do.
"""
