"""One run: from a configuration to trained weights and a record.

Read `prepare` (everything known before weights are loaded), `run` (one run from weights to record),
`loop` (the training loop), `gradients` and `evaluation`. Caches and meters stand beside them.
"""
