"""How the tests run: Hypothesis draws the same cases every time, and a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("potstill", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("potstill")
