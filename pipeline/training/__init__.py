"""Training a student from shards, with no teacher running.

`run` is what a run needs, `fit` runs it with Lightning (`callbacks`, `processes`), `module` is one optimiser step.
`row_groups` decodes shards, `rows` orders rows, `batches` builds packs, `loader` gives steps; `preference_pairs` finds
partners. `facts`, `derived` and `targets` are what a recipe reads besides; `requirements` refuses shards that lack it;
`validation` measures the KL on held-out rows; `checkpoints` knows finished students by fingerprint.
"""

VERSION = 2  # raise it when equal settings would give other weights; checkpoints are then trained anew
