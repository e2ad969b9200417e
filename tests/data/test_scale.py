"""A start over 100,000 shards: nothing is opened, and what a rank holds does not grow with the list."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sail_train.data import interleave
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.share import share

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "data_scale.py"


def start_at(shards: int) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), "--one", "--shards", str(shards), "--ranks", "1024", "--streams", "4096"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_rank_holds_as_much_at_a_hundred_thousand_shards_as_at_a_thousand() -> None:
    small, large = start_at(1_000), start_at(100_000)
    assert large["opened"] == 0 and large["looked_at"] == small["looked_at"] <= 4 * 16
    assert large["start_mb"] < 1.2 * small["start_mb"] and large["full_mb"] < 1.2 * small["full_mb"]
    assert large["position_b"] < 1.1 * small["position_b"] and large["position_b"] / large["streams"] < 13_000


def test_a_share_is_not_listed() -> None:
    whole = share(100_000, 4096, 17)
    assert len(whole) in (24, 25) and whole[3].shard == 17 + 3 * 4096
    assert sys.getsizeof(whole) < 100


@pytest.mark.parametrize("main", [True, False])
def test_in_a_run_of_several_ranks_one_lists_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    import torch

    (tmp_path / "a.tar").touch()
    sent: list[Any] = []
    monkeypatch.setattr(interleave.dist, "world_size", lambda: 2)
    monkeypatch.setattr(interleave.dist, "is_main", lambda: main)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    config = DataConfig(sources={"s": SourceConfig(shards=f"{tmp_path}/*.tar")})
    if main:
        monkeypatch.setattr(interleave.dist, "broadcast_json", lambda value: sent.append(value) or value)
        assert interleave.shard_lists(config)["s"] == [f"{tmp_path}/a.tar"] and len(sent) == 1
        config.sources["s"].shards = f"{tmp_path}/b*.tar"
        with pytest.raises(ValueError, match="matches no file"):
            interleave.shard_lists(config)
        assert sent[1][0] is None and "matches no file" in sent[1][1], "the other ranks are told"
        return
    monkeypatch.setattr(interleave, "matches", lambda *_: pytest.fail("only rank 0 lists"))
    monkeypatch.setattr(interleave.dist, "broadcast_json", lambda _: [[f"{tmp_path}/a.tar"], None])
    assert interleave.shard_lists(config)["s"] == [f"{tmp_path}/a.tar"]
    monkeypatch.setattr(interleave.dist, "broadcast_json", lambda _: [None, "told"])
    with pytest.raises(ValueError, match="told"):
        interleave.shard_lists(config)
