"""The loss: from a recipe, a student's answer and what the shards say to nats per step.

Formulas are pure functions of small tensors and know no settings: `outcomes` (support and tail), `divergences`,
`estimators`, `supervised`, `ratios`, `trust_regions`, `weight_formulas`, `target_formulas`, `reductions`. Each family
has a VERSION of its own, and `versions` says which of them a recipe uses. What a recipe says is read in `weights` and
`targets`, where each class of settings meets its formula, in `objective`, which puts the terms together, and in
`diagnostics`. Gradient flows to the student's tensors only. No file is opened here and no model is run.
"""

VERSION = 1  # raise it when every loss would change, by what no formula has alone; checkpoints are then trained anew
