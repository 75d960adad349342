"""Teacher consistency: which pairs of SFT teacher and scorer pass, and what is said of those that do not."""

import pytest

from pipeline.errors import ConsistencyError, ModelError
from pipeline.models.lineage import (
    UNKNOWN,
    check_teacher,
    name_teacher,
    parse_teacher,
    read_checkpoint_teacher,
    read_scorer,
)
from pipeline.storage.grades import GRADES
from pipeline.storage.shards import Writer, read_about

MATHS, OTHER = name_teacher("maths-8b", "a" * 32), name_teacher("other-8b", "b" * 32)
UNKNOWN = name_teacher(UNKNOWN, UNKNOWN)


def check(sft, scorer, allowed=None):
    check_teacher(sft, scorer, "shard.parquet", allowed, "train")


def test_one_teacher_for_both_is_welcome_whatever_its_folder_is_called():
    check(MATHS, MATHS)
    check(MATHS, {"name": "elsewhere/maths-8b", "weights": MATHS["weights"]})


@pytest.mark.parametrize("sft", [OTHER, UNKNOWN, {"name": MATHS["name"], "weights": "c" * 32}])
def test_two_teachers_are_refused_with_both_names_and_the_way_out(sft):
    with pytest.raises(ConsistencyError) as caught:
        check(sft, MATHS)
    for told in (
        "shard.parquet",
        sft["name"],
        MATHS["name"],
        sft["weights"][:12],
        f"train.allow_sft_teacher: {sft['name']}",
    ):
        assert told in str(caught.value)


def test_the_bias_is_accepted_by_the_name_of_the_other_teacher_alone():
    check(OTHER, MATHS, allowed="other-8b")
    check(UNKNOWN, MATHS, allowed="unknown")
    for allowed in ("maths-8b", "unknown", ""):
        with pytest.raises(ConsistencyError):
            check(OTHER, MATHS, allowed)


def _shard(path, identity, made_with):
    with Writer(path, GRADES, identity, made_with):
        pass
    return path


def test_rollouts_carry_the_teacher_on(tmp_path):
    written = _shard(tmp_path / "a", {"sft_teacher": OTHER["weights"]}, {"sft_teacher": OTHER["name"]})
    assert parse_teacher(read_about(written)) == OTHER
    assert parse_teacher(read_about(_shard(tmp_path / "b", {}, {}))) == UNKNOWN


def test_scores_say_who_gave_them(tmp_path):
    scored = _shard(tmp_path / "a", {"model": {"weights": MATHS["weights"]}}, {"model": MATHS["name"]})
    assert read_scorer(scored) == MATHS


def test_a_folder_that_is_no_checkpoint_is_refused_with_the_way_to_bring_one(tmp_path):
    with pytest.raises(ModelError, match=r"has no potstill\.json.*`sft\.steps: 0`"):
        read_checkpoint_teacher(tmp_path)
