"""What a run leaves behind, and how a folder of runs is kept whole.

Read `record` first, then `run_folder` (one run on disk), `store` (all of them) and `locks`.
"""
