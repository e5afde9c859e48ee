"""A checkpoint becomes a model that a method can train.

Read `checkpoint` (find and load weights), `adapters` (LoRA), `adapt` (carry out a plan), `encoding`
(text to batches), then `engines` and `fused` (the fast engine).
"""
