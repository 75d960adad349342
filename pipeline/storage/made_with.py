"""Which versions of which distributions made a file: recorded beside it, never hashed."""

import importlib.metadata


def find_versions(*distributions: str) -> dict[str, str]:
    """List the versions of `potstill` and of these distributions, by their names on PyPI, where they are installed."""
    found = {}
    for name in ("potstill", *distributions):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
