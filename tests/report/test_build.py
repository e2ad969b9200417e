from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sail_train.report import SECTIONS
from sail_train.report.build import build_report
from sail_train.report.reading import read_recipe

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """What a browser would see: tags with attributes, ids and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "col", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def recipe(finished_recipe: Path, tmp_path: Path) -> Path:
    """A copy that the test may break."""
    return Path(shutil.copytree(finished_recipe, tmp_path / "tiny"))


def build(recipe: Path) -> tuple[str, Page]:
    html = build_report(recipe).read_text()
    page = Page(html)
    assert page.open == [], "every element is closed"
    return html, page


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def edit_lines(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    lines = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_section_of_a_finished_recipe_is_there(recipe: Path) -> None:
    html, page = build(recipe)
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert set(SECTIONS) <= ids
    assert {"run-language", "run-mixed_rl"} <= ids
    assert "All 15 stages are done" in html
    assert html.count('class="stop') == 1 + html.count('<li class="stop"') and html.count('<li class="stop"') == 15
    assert "<h3>Not on this page" not in html


def test_the_page_needs_no_network_and_no_other_file(recipe: Path) -> None:
    html, page = build(recipe)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), (tag, value)
    assert not page.having("link") and not page.having("iframe")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", html)


def test_the_policy_allows_the_one_script_and_no_other(recipe: Path) -> None:
    html, page = build(recipe)
    policy = next(
        meta["content"] for meta in page.having("meta") if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(scripts) == 1
    assert base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode() in policy


def test_what_models_and_files_say_never_becomes_markup(recipe: Path) -> None:
    for run in recipe.iterdir():
        if not run.is_dir():
            continue
        said = {name: EVIL for name in ("prompt", "response", "key", "detail", "status", "source", "truth")}
        edit_lines(run / "samples.jsonl", lambda line, said=said: line | said | {"gold": EVIL + "x"})
        edit_lines(run / "events.jsonl", lambda line: line | {"event": line["event"], "note": EVIL})
        edit(run / "lineage.json", lambda lineage: lineage | {"code": {"version": EVIL}})
        config = (run / "config.yaml").read_text().replace("caption:", f"'{EVIL}':")
        (run / "config.yaml").write_text(config)
        if (run / "metrics.jsonl").is_file():
            edit_lines(run / "metrics.jsonl", lambda line: line | {f"loss/{EVIL}": 1.0, f"samples/{EVIL}": 3.0})
    edit(recipe / "pretrain" / "evaluation.json", lambda one: {"after": {"metrics": {f"{EVIL}/greedy": 0.5}}})
    edit(recipe / "soup" / "soup.json", lambda one: one | {"kept": EVIL, "accepted": False, "metrics": [EVIL]})
    (recipe / "pretrain" / "quarantine.jsonl").write_text(json.dumps({"source": EVIL, "reason": EVIL}) + "\n")
    shutil.move(recipe / "sft_1", recipe / "<script>alert(3)<")
    html, page = build(recipe)
    assert len(page.having("script")) == 1
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "alert(1)" in "".join(page.text), "it is shown as text"
    assert "<script>alert" not in html


def test_images_come_from_the_run_directory_only(recipe: Path) -> None:
    (recipe / "secret.png").write_bytes(next((recipe / "vision" / "eval_images").iterdir()).read_bytes() + b"secret")
    for run in ("vision", "align"):
        edit_lines(
            recipe / run / "samples.jsonl", lambda line: line | {"image_files": ["../secret.png", "/etc/passwd"]}
        )
    html, _ = build(recipe)
    assert base64.b64encode(b"secret").decode()[:6] not in html
    assert "root:" not in html


@pytest.mark.parametrize(
    "name", ["config.yaml", "lineage.json", "evaluation.json", "metrics.jsonl", "events.jsonl", "samples.jsonl"]
)
def test_a_missing_file_is_named_and_the_rest_is_shown(recipe: Path, name: str) -> None:
    for run in ("align", "rlvr", "soup"):
        (recipe / run / name).unlink(missing_ok=True)
    html, _ = build(recipe)
    assert html.count('<li class="stop"') == 15
    if name != "samples.jsonl":
        assert f"<b>align</b>: {name} is missing" in html


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00garbage: [", b"[1, 2]", b'"text"', b"null", b'{"a": NaN, "after": 3}']
)
def test_rubbish_in_files_is_survived(recipe: Path, content: bytes) -> None:
    names = ["config.yaml", "lineage.json", "evaluation.json", "metrics.jsonl", "samples.jsonl", "events.jsonl"]
    for run, name in zip(["pretrain", "sft_1", "sft_2", "sft_3", "sft_4", "sft_4b"], names, strict=True):
        (recipe / run / name).write_bytes(content)
    for name in names:
        (recipe / "rlvr" / name).write_bytes(content)
    (recipe / "soup" / "soup.json").write_bytes(content)
    html, _ = build(recipe)
    assert html.count('<li class="stop"') == 15


def test_a_torn_last_line_is_left_out_and_told(recipe: Path) -> None:
    path = recipe / "vision" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    html, _ = build(recipe)
    assert "<b>vision</b>: metrics.jsonl has 1 broken line" in html


def test_a_recipe_that_is_under_way_shows_what_is_to_come(recipe: Path) -> None:
    def halt(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in entries[11:]:
            entry |= {"status": "not started", "steps": None, "tokens": None, "seconds": None, "metrics_after": {}}
            shutil.rmtree(recipe / entry["stage"])
        entries[10] |= {"status": "gate"}
        return entries

    edit(recipe / "summary.json", halt)
    html, _ = build(recipe)
    assert "10 of 15 stages are done" in html
    assert "<b>longcot</b> (gate)" in html and "<b>mixed_rl</b> (not started)" in html
    assert html.count('<li class="stop pending"') == 5


def test_runs_without_a_summary_are_found(recipe: Path) -> None:
    (recipe / "summary.json").unlink()
    edit_outcome = {"status": "finished", "loop": "supervised", "steps": 3, "tokens": 5, "seconds": 1.0}
    (recipe / "vision" / "outcome.json").write_text(json.dumps(edit_outcome))
    html, _ = build(recipe)
    assert "summary.json is missing" in html
    assert "1 of 15 stages are done" in html


def test_a_single_run_with_a_config_only_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "runs" / "alone").mkdir(parents=True)
    (tmp_path / "runs" / "alone" / "config.yaml").write_text("loop: supervised\noptim: {lr: {adapter: 0.1}}\n")
    html, page = build(tmp_path / "runs")
    assert "0 of 1 stages are done" in html and "metrics.jsonl is missing" in html
    assert "accuracy" not in {attributes.get("id") for _, attributes in page.tags}


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        build_report(tmp_path)
    with pytest.raises(ValueError, match="is no directory"):
        build_report(tmp_path / "missing")


def test_the_same_files_give_the_same_page(recipe: Path, tmp_path: Path) -> None:
    first = build_report(recipe, output=tmp_path / "a.html").read_bytes()
    assert build_report(recipe, output=tmp_path / "b.html").read_bytes() == first
    assert not list(tmp_path.glob("*.partial")), "nothing is left behind"


def test_the_page_stays_light(recipe: Path) -> None:
    assert build_report(recipe).stat().st_size < 3_000_000


def test_nothing_in_the_recipe_is_changed(recipe: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(recipe.rglob("*")) if path.is_file()}

    before = content()
    build_report(recipe)
    after = content()
    assert after.pop(recipe / "report.html")
    assert after == before


def test_runs_stand_in_the_order_of_the_summary(recipe: Path) -> None:
    names = [entry["stage"] for entry in json.loads((recipe / "summary.json").read_text())]
    assert [run.name for run in read_recipe(recipe).runs] == names
