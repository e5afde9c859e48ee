"""A stored run becomes a model again: restored, exported, or used for predictions.

Read `restore` first, then `export` and `predict`.
"""
