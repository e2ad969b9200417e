from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from sail_train.config import to_dataclass
from sail_train.data.config import DataConfig, SourceConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1.0}, "weight=-1.0 must be 0"),
        ({"max_bad": -0.1}, "max_bad=-0.1 must be a share below 1 or a whole count"),
        ({"max_bad": 2.5}, "max_bad=2.5 must be"),
        ({"think_flag": 1.5}, "think_flag=1.5 must be a share"),
        ({"size": 0}, "size=0 must be above 0, or null"),
        ({"epochs": -0.5}, "epochs=-0.5 must be above 0"),
        ({"max_tokens": 0}, "max_tokens=0 must be above 0"),
        ({"start_step": -1}, "start_step=-1 must be 0 or more"),
        ({"start_step": 5, "stop_step": 5}, "stop_step=5 after it"),
        ({"on_bad_shard": "ignore"}, "on_bad_shard='ignore' is unknown; use one of stop, skip"),
    ],
)
def test_impossible_source_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seq_length": 0}, "seq_length=0 must be at least 1"),
        ({"pack_buffer": 0}, "pack_buffer=0"),
        ({"decode_threads": 0}, "decode_threads=0"),
        ({"buffer_warning_gib": 0.0}, "buffer_warning_gib=0.0 must be above 0, or null"),
        ({"prefetch": -1}, "prefetch=-1 must be 0"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0, or null"),
        ({"packing": "tetris"}, "packing='tetris' is none of best_fit, subset"),
        ({"overlong": "cut"}, "overlong='cut' is none of quarantine, split"),
        ({"balance": "rack"}, "balance='rack' is none of off, node, world"),
        ({"balance_group": 4}, "balance_group=4 must be at least 1, with balance=node or world"),
        ({"balance_group": 0, "balance": "node"}, "balance_group=0 must be"),
        ({"workers": -1}, "workers=-1 must be 0"),
        ({"max_wait": 0}, "max_wait=0 must be at least 1 row, or null"),
        ({"batch_rows": 6, "micro_batch": 4}, "batch_rows=6 is not a multiple of micro_batch=4"),
    ],
)
def test_impossible_data_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["weight", "epochs", "max_bad", "fps", "think_flag"])
def test_numbers_that_are_not_finite_are_refused_for_every_field(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"data.sources.a.{name}={value} should be a finite number"):
        to_dataclass(DataConfig, {"sources": {"a": {name: value}}}, path="data")
    with pytest.raises(ValueError, match=f"data.temperature={value} should be a finite number"):
        to_dataclass(DataConfig, {"temperature": value}, path="data")


def test_a_source_without_shards_is_refused_with_the_nearest_that_has_some() -> None:
    sources = {"caption": {"shards": "a.tar"}, "captoin": {"weight": 0.0}}
    told = "data.sources.captoin: there is no such source, and a new one needs data.sources.captoin.shards; did you "
    with pytest.raises(ValueError, match=f"^{told}mean 'caption'"):
        to_dataclass(DataConfig, {"sources": sources}, path="data")
    with pytest.raises(ValueError, match="there are none to choose from"):
        to_dataclass(DataConfig, {"sources": {"captoin": {}}}, path="data")


def test_shards_may_be_one_pattern_or_a_list() -> None:
    assert to_dataclass(SourceConfig, {"shards": "a.tar"}).patterns == ["a.tar"]
    assert to_dataclass(SourceConfig, {"shards": ["a.tar", "b.tar"]}).patterns == ["a.tar", "b.tar"]


def test_configs_and_commands_are_imported_without_torch() -> None:
    modules = "config tools.check tools.importing tools.inspect writer"
    code = "import sys;" + "".join(f"import sail_train.data.{module};" for module in modules.split())
    heavy = "{'torch', 'transformers', 'webdataset', 'deepspeed'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"{code}print({heavy})"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
