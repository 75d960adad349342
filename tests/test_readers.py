"""A folder of shards as others open it, as one table, against what its manifest lists and its shards hold."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from pipeline.storage.manifest import read_manifest
from tests import example_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_data.make(tmp_path_factory.mktemp("project"))


def _with_arrow(folder: Path, _: Path) -> list[dict[str, Any]]:
    return pyarrow.dataset.dataset(folder).to_table().to_pylist()


def _with_pandas(folder: Path, _: Path) -> list[dict[str, Any]]:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; `datasets` brings it")
    return pandas.read_parquet(folder).to_dict("records")


def _with_polars(folder: Path, _: Path) -> list[dict[str, Any]]:
    polars = pytest.importorskip("polars", reason="polars is not installed, and nothing here needs it")
    # It leaves nothing out by itself.
    return polars.read_parquet(folder / "*.parquet").to_dicts()


def _with_datasets(folder: Path, cache: Path) -> list[dict[str, Any]]:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets.load_dataset("parquet", data_dir=str(folder), split="train", cache_dir=str(cache)).to_list()


@pytest.mark.parametrize("read", [_with_arrow, _with_pandas, _with_polars, _with_datasets])
@pytest.mark.parametrize("folder", ["rollouts/r2", "scores/r2/teacher"])
def test_a_folder_of_shards_is_one_table(
    data: Path, folder: str, read: Callable[[Path, Path], list[dict[str, Any]]], tmp_path: Path
):
    names = read_manifest(data / folder)
    expected = [row for name in names for row in pq.read_table(data / folder / name).to_pylist()]
    found = read(data / folder, tmp_path)
    assert [row["rollout_id"] for row in found] == [row["rollout_id"] for row in expected]
    column = "response_ids" if "response_ids" in expected[0] else "sampled_logprobs"
    assert [list(row[column]) for row in found] == [row[column] for row in expected]
