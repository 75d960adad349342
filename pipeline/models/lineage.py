"""Teacher consistency: the SFT data and the scores come from one teacher, or training is refused.

A student's checkpoint records whose responses it was fine-tuned on, every shard that it writes carries that on, and
every score says who gave it. With two teachers the gradient of offline distillation has a bias that does not vanish
at the teacher (arXiv:2604.13010, theorems 3.8 and 3.9).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ConsistencyError
from pipeline.models.record import read_checkpoint
from pipeline.storage.shards import read_about

UNKNOWN = "unknown"


def name_teacher(name: str, weights: str) -> dict[str, str]:
    """Name the teacher of the SFT data as a checkpoint and its rollouts do."""
    return {"name": name, "weights": weights}


def read_checkpoint_teacher(folder: Path) -> dict[str, str]:
    """Read which teacher a checkpoint learned from."""
    return read_checkpoint(folder)["sft_teacher"]


def parse_teacher(about: Mapping[str, Any]) -> dict[str, str]:
    """Find the teacher that the writer of a shard learned from in the shard's footer."""
    return name_teacher(about["made_with"].get("sft_teacher", UNKNOWN), about["identity"].get("sft_teacher", UNKNOWN))


def read_scorer(path: Path) -> dict[str, str]:
    """Read which model scored a shard. Names are recorded and not hashed: a teacher may move to another folder."""
    about = read_about(path)
    return name_teacher(about["made_with"]["model"], about["identity"]["model"]["weights"])


def check_teacher(sft: dict[str, str], scorer: dict[str, str], where: str, allowed: str | None, setting: str) -> None:
    """Refuse scores by another teacher than that of the SFT data.

    Args:
        sft: the teacher of the SFT data: name and weights.
        scorer: the model that scores, or did: name and weights.
        where: the shard or checkpoint that says so.
        allowed: the name of the other teacher that the settings accept, or None.
        setting: the section whose `allow_sft_teacher` that is.

    Raises:
        ConsistencyError: they differ, and the settings do not accept it by name.
    """
    if sft["weights"] == scorer["weights"] or allowed == sft["name"]:
        return
    raise ConsistencyError(
        f"{where}: this student was fine-tuned on responses of {sft['name']} ({sft['weights'][:12]}), its scores are "
        f"by {scorer['name']} ({scorer['weights'][:12]}). Offline distillation needs one teacher for both, or its "
        f"gradient is biased (arXiv:2604.13010). Set models.teacher to {sft['name']} and run `dvc repro`; or accept "
        f"the bias with `{setting}.allow_sft_teacher: {sft['name']}`."
    )
