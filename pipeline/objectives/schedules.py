"""Numbers that change with the optimiser step."""

import math
from typing import Literal

Shape = Literal["linear", "cosine", "step"]


def scheduled(start: float, end: float, steps: int, shape: Shape, step: int) -> float:
    """A number on its way from `start` (at step 0) to `end` (from step `steps` on).

    Args:
        start: before.
        end: after.
        steps: optimiser steps that it takes.
        shape: `linear`, half a `cosine`, or a `step`: all at once at the end.
        step: the optimiser step now, from 0.
    """
    done = min(1.0, step / steps)
    share = {"linear": done, "cosine": 0.5 * (1 - math.cos(math.pi * done)), "step": float(done == 1.0)}[shape]
    return start + (end - start) * share
