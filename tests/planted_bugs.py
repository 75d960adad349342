"""Bugs that the tests must find: each is planted into a copy of the code, and the tests named with it must then fail.

    python -m tests.planted_bugs [NAME ...]   # plant all, or those named
    python -m tests.planted_bugs --list       # say which fit the code as it is, and why the others do not

Run it for a formula that you touched; `make plants` runs all. A plant that survives is a test that is missing.
"""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.planting import Plant, UnplantableError, change, survives
from tests.plants import PLANTS

PROCESSES = 2


def list_misfits(plants: list[Plant]) -> list[str]:
    """Say of each plant that the code has no place for why it has none."""
    misfits = []
    for one in plants:
        try:
            change(one)
        except UnplantableError as why:
            misfits.append(str(why))
    return misfits


def find(one: Plant) -> bool:
    """Plant one bug, say whether the tests find it, and return that."""
    with tempfile.TemporaryDirectory() as folder:
        is_found = not survives(one, Path(folder))
    print(f"{'found   ' if is_found else 'SURVIVES'}  {one.name}", flush=True)
    return is_found


def main(arguments: list[str]) -> int:
    """Plant all bugs, or those named; the exit status is 1 where one survives or has no place."""
    names = [argument for argument in arguments if argument != "--list"]
    if unknown := set(names) - {one.name for one in PLANTS}:
        sys.exit(f"no planted bug is called {', '.join(sorted(unknown))}; see tests/plants")
    chosen = [one for one in PLANTS if not names or one.name in names]
    if misfits := list_misfits(chosen):
        print(*misfits, f"{len(misfits)} of {len(chosen)} planted bugs do not fit the code.", sep="\n")
        return 1
    if "--list" in arguments:
        print(*(f"{one.where}  {one.name}" for one in chosen), sep="\n")
        return 0
    with ThreadPoolExecutor(PROCESSES) as pool:
        found = list(pool.map(find, chosen))
    print(f"{sum(found)} of {len(chosen)} planted bugs are found by the tests.")
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
