"""Scoring: every rollout once by every view.

`contexts` says what a view's model sees before a response, `checks` refuses what would cost GPU hours to find out,
`write` makes shards of scores, `context_effect` refuses a context that changes nothing.
"""
