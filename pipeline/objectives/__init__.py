"""The formulas, one module for each axis of the algebra: pure functions of small tensors, nats in and nats out.

`outcomes` (support and tail), `divergences`, `estimators`, `ratios`, `weights`, `targets`, `reductions`; `objective`
puts them together as a recipe says, `diagnostics` watches. Gradient flows to the student's tensors only.
"""

VERSION = 1  # raise it when a loss would change, in any module of this folder; checkpoints are then trained anew
