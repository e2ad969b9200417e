"""What docs/your_data.md shows is taken from the page: its records are made and imported, its commands compose."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.importing import run
from sail_train.data.tools.media import FORMAT
from sail_train.data.writer import write_shards
from sail_train.job.compose import CONFIGS, Configs
from sail_train.job.job import resolve
from sail_train.job.overrides import parse_tokens
from sail_train.loops.config import RunConfig
from sail_train.processor.images import MAX_PIXELS, MAX_SIDE
from sail_train.types import Conversation, Message, Part
from sail_train.visual import ImageSpec

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your_data.md").read_text()
COMMANDS = [
    shlex.split(line)
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
    if not kind and line.startswith(("sail-train ", "torchrun "))
]


def command(*begins: str) -> list[str]:
    """What follows in the one command of the page that begins so."""
    (found,) = [words for words in COMMANDS if words[: len(begins)] == list(begins)]
    return found[len(begins) :]


def chart(number: int) -> Conversation:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (number, 0, 0)).save(picture, "PNG")
    return Conversation(
        key=f"chart_{number:06d}",
        source="chart",
        messages=(
            Message(role="user", content=(Part(type="image"), Part(type="text", text="Read the bars."))),
            Message(role="assistant", content=(Part(type="text", text=str(number)),)),
        ),
        images=(picture.getvalue(),),
    )


def test_the_pages_records_are_imported_and_some_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(map(chart, range(60)), tmp_path / "data" / "tiny" / "train" / "chart", "chart", 60)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(code, "docs/your_data.md", "exec"), {})  # our own page
    assert run(command("sail-train", "data", "import")) == 0
    sides = [held_out({"mine": SourceConfig(shards=f"data/mine/{glob}")}) for glob in ("*.tar", "valid/*.tar")]
    assert len(sides[0]) + len(sides[1]) == 60 and 0 < len(sides[1]) < 20
    assert sides[0][0].messages[0].text == "Read the bars." and len(sides[0][0].images) == 1
    assert json.loads(Path("data/mine/dataset.json").read_text())["fields_not_used"] == {}


@pytest.mark.parametrize("begins", [("sail-train", "run", "stage=sft_1"), ("torchrun",)])
def test_the_pages_runs_give_the_new_source_its_share_and_measure_what_was_held_out(begins: tuple[str, ...]) -> None:
    words = [begins[-1], *command(*begins)]
    overrides = [word for word in words if "=" in word]
    config = resolve(Configs(folders=(CONFIGS,)), parse_tokens(overrides)).config
    assert isinstance(config, RunConfig)
    weights = {name: source.weight for name, source in config.data.sources.items()}
    assert sum(weights.values()) == pytest.approx(1.1) and weights["mine"] == 0.1
    assert list(config.valid) == ["mine"] and config.train.valid_every and config.parents == {"model": "runs/base"}


def test_every_run_that_the_page_reads_is_one_that_it_makes() -> None:
    made: set[str] = set()
    for words in COMMANDS:
        read = {"/".join(found.split("/")[:2]) for word in words for found in re.findall(r"runs/\w+(?:/\w+)*", word)}
        own = {word.removeprefix("run_dir=") for word in words if word.startswith("run_dir=")}
        assert read - own <= made, words
        made |= own
    assert made == {"runs/base", "runs/smoke", "runs/mine"}


def test_the_page_knows_every_layout_and_the_limits() -> None:
    assert [name for name in LAYOUTS if f"| `{name}` |" not in PAGE] == []
    text = " ".join(PAGE.split())
    assert f"{MAX_PIXELS // 10**6} megapixels" in text and f"{MAX_SIDE:,} pixels a side" in text
    assert f"longer than {ImageSpec.max_aspect_ratio:g}:1" in text and f"`{FORMAT}`" in text
