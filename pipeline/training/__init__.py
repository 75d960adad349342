"""Training a student from shards, with no teacher running.

`run` is what a run needs, `fit` runs it with Lightning, `module` is one optimiser step; `rows` and `loader` read
shards into packs; `facts`, `derived` and `targets` are what a recipe reads besides; `requirements` refuses shards that
lack it; `checkpoints` knows finished students by fingerprint.
"""

VERSION = 1  # raise it when equal settings would give other weights; checkpoints are then trained anew
