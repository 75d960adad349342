"""The formulas, one module for each axis of the algebra: pure functions of small tensors, nats in and nats out.

`outcomes` (support and tail), `divergences`, `estimators`, `ratios`, `weights`, `targets`, `schedules`, `reductions`;
`compiled` puts them together as a recipe says. Gradient flows to the student's tensors only.
"""
