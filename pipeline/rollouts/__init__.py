"""Writing rollouts, and measuring how far the student has moved from the one that wrote them.

`write` makes shards of responses with whichever engine is open; `drift` compares log-probabilities.
"""
