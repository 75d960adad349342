"""The last line of a stage, against what the store made and found for it."""

import json
from pathlib import Path

import pytest

from pipeline.command import StageSummary


@pytest.mark.parametrize(("made", "found", "said"), [(0, 3, 1), (1, 2, 0), (0, 0, 0)])
def test_a_stage_that_found_all_that_it_gives_says_so(
    made: int, found: int, said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        StageSummary(made, found, tokens=5, bytes=7, seconds=None).note(tmp_path / "timing.json", "train", "r1")
    assert caplog.messages == ["nothing was made: all 3 files were found in the store"] * said
    assert json.loads((tmp_path / "timing.json").read_text())["files"] == made + found
