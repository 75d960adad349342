"""From last hidden states to what objectives and shards need, never as [tokens × vocabulary].

Every objective is a function of a few numbers per token: log-probabilities at given ids, at the sampled token, at the
live top k, the tail outside them, the entropy. They are computed in chunks of tokens, and the backward pass computes
each chunk again, so memory is O(tokens × k + chunk × vocabulary). The scorer uses the forward half.

`layer` is a model's output layer and all that is done to its logits; `answer` is what training asks of each token, with
a `gradient` that computes each chunk again; `scores` is what scoring asks, of the ids that a `support` names. Torch
alone is imported here.
"""

VERSION = 2  # raise it when a log-probability would change; scores and checkpoints are then made again
