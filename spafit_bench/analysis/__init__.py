"""Records become answers: statistics, comparisons, tables, plots, a report. Never imports torch.

Read `stats`, then `compare`; `tables`, `plots` and `report` each have their own folder.
"""
