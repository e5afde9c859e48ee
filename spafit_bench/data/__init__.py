"""What a task is, where its rows come from, and how predictions are scored.

Read `tasks` first (one row per GLUE task), then `layouts` (where files are), `readers` and
`text_files` (one file to rows), `load` (rows to a checked, fingerprinted split) and `metrics`.
"""
