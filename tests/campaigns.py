"""How long a campaign is: of its trials, `make test` runs one in twenty, `make campaigns` all.

A trial's number is its seed, so trial 40 is the same in both, and one that failed can be run alone.
"""

import os

SHARE = 20
IS_FULL = os.environ.get("POTSTILL_CAMPAIGN") == "full"


def trials(full: int) -> range:
    """Return the numbers of the trials to run, of `full` in all."""
    return range(0, full, 1 if IS_FULL else SHARE)
