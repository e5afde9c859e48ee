"""Records of runs, and the results folder that keeps them whole.

Read `record` first, then `run_folder` (one run on disk), `store` (all of them) and `locks` (who
works on which run); `lookup`, `merge` and `cleanup` are what commands do with a results folder.
"""
