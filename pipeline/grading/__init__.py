"""Grading: whether a response is right, and what a checkpoint's graded responses say of it.

`graders` opens a grader, `math` is one, `pool` runs those that are not ours in processes of their own; `write` makes
shards of grades, `metrics` makes accuracies of them. Nothing here opens a model.
"""
