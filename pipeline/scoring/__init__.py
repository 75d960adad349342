"""Scoring: every rollout once by every view.

`reading` opens each shard of a bucket once for all views; `contexts` says what a view's model sees before a response;
`plan` makes of both a plan that any process can carry out; `checks` refuses what would cost GPU hours to find out;
`write` makes one shard of scores, `obtain` those that the store lacks; `context_effect` refuses a context that changes
nothing. No settings are read from files here, and no model is opened before the checks.
"""

VERSION = 1  # raise it when a score would change; older shards are then scored again
