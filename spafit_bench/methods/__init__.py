"""What a fine-tuning method is, and exactly which parameters of a model it trains.

Read `treatments` (what can happen to a group of parameters), `layer_groups` (which layers),
`method` (the list of both), `architectures` (what each model family calls its parts), then `plan`.
"""
