"""The loss: from a recipe, a student's answer and what the shards say to nats per step.

Formulas are pure functions of small tensors and know no settings: `outcomes` (support and tail), `divergences`,
`estimators`, `ratios`, `weight_formulas`, `target_formulas`, `reductions`. What a recipe says is read in `weights` and
`targets`, where each class of settings meets its formula, in `objective`, which puts the terms together, and in
`diagnostics`. Gradient flows to the student's tensors only. No file is opened here and no model is run.
"""

VERSION = 1  # raise it when a loss would change, in any module of this folder; checkpoints are then trained anew
