"""The exported folder with its code: where there are only torch, transformers and Pillow it is what it is here."""

from __future__ import annotations

import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from sail_train.export.write import export
from sail_train.model.build import load_model
from sail_train.processor.processor import load_processor

PROGRAM = Path(__file__).parent / "ask_folder.py"
ask: Callable[..., dict[str, Tensor]] = runpy.run_path(str(PROGRAM))["ask"]


def distributions(names: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions of these names, and all that they require."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        try:
            found[name] = found.get(name) or distribution(name)
        except PackageNotFoundError:  # wanted on other machines
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
                waiting.append(requirement.name)
    return found


def link_site(site: Path, names: Iterable[str]) -> Path:
    """A folder of packages that has these and what they require, and nothing else."""
    site.mkdir()
    for found in distributions(names).values():
        for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))))
    return site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_site(tmp_path_factory.mktemp("site") / "packages", ["torch", "transformers", "pillow"])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"wide": (40, 22), "tall": (15, 30)}.items():
        Image.radial_gradient("L").resize(size).convert("RGB").save(folder / f"{name}.png")
    return [str(folder / "wide.png"), str(folder / "tall.png")]


def compare(folder: Path, python: list[str], work: Path, files: list[str]) -> dict[str, Tensor]:
    """What the folder says in a process of its own, which is bit for bit what it says here."""
    video = next((file for file in files if file.endswith(".mp4")), None)
    ours = ask(load_model(folder).eval(), load_processor(folder), files[:2], video)
    done = subprocess.run(
        [*python, str(work / "cache"), str(folder), str(work / "said.safetensors"), *files],
        capture_output=True, text=True, check=False, cwd=work,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(work / "said.safetensors")
    assert theirs.keys() == ours.keys()
    for name in ours:
        assert torch.equal(theirs[name], ours[name]), name
    return theirs


@pytest.mark.parametrize(
    ("kind", "language"), [("native", {}), ("aimv2", {}), ("aimv2", {"tie_word_embeddings": False})]
)
def test_the_folder_answers_alike_where_sail_train_is_not_installed(
    make_run: Callable[..., Path], site: Path, pictures: list[str], tmp_path: Path, kind: str, language: dict[str, bool]
) -> None:
    folder = export(make_run(tmp_path / "run", kind, **language), tmp_path / "out", format="code")
    said = compare(folder, [sys.executable, "-I", "-S", str(PROGRAM), str(site)], tmp_path, pictures)
    assert said["images/grids"].shape[0] >= 2 and said["text/grids"].shape[0] == 0
    assert not torch.equal(said["image/logits"][0, -1], said["text/logits"][0, -1])


def test_folder_and_installed_package_do_not_get_in_each_others_way(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder = export(make_run(tmp_path / "run", "aimv2"), tmp_path / "out", format="code")
    program = textwrap.dedent("""
        import sys, torch
        from transformers import AutoModelForCausalLM
        from transformers.modeling_utils import AttentionInterface

        def ours(folder):
            from sail_train.model.build import load_model
            return load_model(folder).eval()

        def theirs(folder):
            return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()

        folder, order = sys.argv[1:]
        models = [load(folder) for load in ((ours, theirs) if order == "ours first" else (theirs, ours))]
        assert len({type(model).__module__ for model in models}) == 2
        names = {model.language_model.config._attn_implementation for model in models}
        assert len(names) == 2, names
        functions = AttentionInterface()
        assert {functions[name].__module__.split(".")[0] for name in names} == {"sail_train", "transformers_modules"}
        for model in models:
            name = model.language_model.config._attn_implementation
            assert functions[name].__module__.split(".")[0] == type(model).__module__.split(".")[0]
        ids = torch.arange(5)[None]
        assert torch.equal(*[model(input_ids=ids).logits for model in models])
        import sail_train.auto  # now our classes are the ones of the Auto classes, also with the flag
        assert type(AutoModelForCausalLM.from_pretrained(folder)).__module__ == "sail_train.model.vlm"
        assert type(theirs(folder)).__module__ == "sail_train.model.vlm"
        print("ok")
    """)
    for order in ("ours first", "theirs first"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), order],
            capture_output=True, text=True, check=False, env={**__import__("os").environ, "HF_HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.stdout.strip() == "ok", done.stderr[-3000:]


def test_another_export_takes_the_code_along_no_further(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with_code = export(make_run(tmp_path / "run"), tmp_path / "code", format="code")
    plain = export(with_code, tmp_path / "plain")
    assert not list(plain.glob("*.py"))
    assert all("auto_map" not in file.read_text() for file in plain.glob("*.json"))
