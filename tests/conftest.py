"""How the tests run: Hypothesis draws the same cases every time, and a busy machine is no failure."""

import pytest
from hypothesis import settings

settings.register_profile("potstill", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("potstill")


@pytest.fixture(scope="module")
def one_process():
    """VLLM within the test's own process: five seconds to open, against twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield
