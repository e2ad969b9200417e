"""The exported folder with its code: where there are only torch, transformers and Pillow it is what it is here."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution, version
from pathlib import Path

import numpy as np
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
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in {"wide": (40, 22), "tall": (15, 30)}.items():
        Image.radial_gradient("L").resize(size).convert("RGB").save(folder / f"{name}.png")
    return [str(folder / "wide.png"), str(folder / "tall.png")]


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second of moving stripes."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "stripes.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for shift in range(8):
            columns = (np.arange(48) * 16 + shift * 40) % 256
            pixels = np.broadcast_to(columns[None, :, None], (32, 48, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def compare(folders: list[Path], python: list[str], site: str, work: Path, files: list[str]) -> list[dict[str, Tensor]]:
    """What the folders say in a process of its own, which is bit for bit what they say here."""
    command = [*python, str(PROGRAM), site, str(work / "cache"), ",".join(files), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
    assert done.returncode == 0, done.stderr[-3000:]
    said = []
    for folder in folders:
        ours = ask(load_model(folder).eval(), load_processor(folder), files)
        theirs = load_file(folder.parent / "said.safetensors")
        assert theirs.keys() == ours.keys()
        for name in ours:
            assert torch.equal(theirs[name], ours[name]), name
        said.append(theirs)
    return said


def make_folders(make_run: Callable[..., Path], root: Path) -> list[Path]:
    """A native model with tied embeddings, and a tiled one with a mixture of experts."""
    runs = [
        make_run(root / "native"),
        make_run(root / "tiled", "aimv2", model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2,
                 moe_intermediate_size=8, tie_word_embeddings=False),
    ]  # fmt: skip
    return [export(run, run / "out", format="code") for run in runs]


def test_folders_answer_alike_where_sail_train_is_not_installed(
    make_run: Callable[..., Path], pictures: list[str], tmp_path: Path
) -> None:
    site = link_site(tmp_path / "packages", ["torch", "transformers", "pillow"])
    folders = make_folders(make_run, tmp_path)
    native, tiled = compare(folders, [sys.executable, "-I", "-S"], str(site), tmp_path, pictures)
    assert native["images/grids"].tolist() != tiled["images/grids"].tolist() and len(tiled["images/grids"]) > 2
    for said in (native, tiled):
        assert not torch.equal(said["image/logits"][0, -1], said["text/logits"][0, -1])


def test_a_folder_sees_videos_where_there_is_pyav(
    make_run: Callable[..., Path], pictures: list[str], video: str, tmp_path: Path
) -> None:
    site = link_site(tmp_path / "packages", ["torch", "transformers", "pillow", "av"])
    folder = export(make_run(tmp_path / "tiled", "aimv2"), tmp_path / "tiled" / "out", format="code")
    (said,) = compare([folder], [sys.executable, "-I", "-S"], str(site), tmp_path, [*pictures, video])
    assert len(said["video/grids"]) == 2


@pytest.mark.slow
def test_folders_answer_alike_in_an_environment_of_torch_transformers_and_pillow(
    make_run: Callable[..., Path], pictures: list[str], tmp_path: Path
) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = str(venv / "bin" / "python")
    wanted = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers", "pillow")]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
    compare(make_folders(make_run, tmp_path), [python, "-I"], "", tmp_path, pictures)


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
            capture_output=True, text=True, check=False, env={**os.environ, "HF_HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.stdout.strip() == "ok", done.stderr[-3000:]


def test_another_export_takes_the_code_along_no_further(make_run: Callable[..., Path], tmp_path: Path) -> None:
    with_code = export(make_run(tmp_path / "run"), tmp_path / "code", format="code")
    plain = export(with_code, tmp_path / "plain")
    assert not list(plain.glob("*.py"))
    assert all("auto_map" not in file.read_text() for file in plain.glob("*.json"))
