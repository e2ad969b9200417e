"""A checkpoint is there whole or not at all, and only what verifies counts."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sail_train.engine.checkpoint import MANIFEST, Checkpoints, SaveFailed, verify


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def write(text: str) -> Callable[[Path], None]:
    def write_files(directory: Path) -> None:
        (directory / "weights.bin").write_text(text * 50)
        (directory / "state.json").write_text(json.dumps({"text": text}))

    return write_files


def text_of(path: Path | None) -> str:
    assert path is not None
    return json.loads((path / "state.json").read_text())["text"]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    made.save(10, write("ten"))
    made.save(20, write("twenty"))
    return made


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "nowhere", keep=2).latest() == (None, [])


def test_the_newest_is_taken_and_older_ones_go(checkpoints: Checkpoints) -> None:
    assert checkpoints.save(30, write("thirty")).name == "step-00000030"
    path, refused = checkpoints.latest()
    assert text_of(path) == "thirty" and refused == []
    assert sorted(found.name for found in checkpoints.root.iterdir()) == ["step-00000020", "step-00000030"]


def test_the_manifest_lists_every_file(checkpoints: Checkpoints) -> None:
    manifest = json.loads((checkpoints.root / "step-00000020" / MANIFEST).read_text())
    assert set(manifest["files"]) == {"weights.bin", "state.json"}
    assert (manifest["step"], manifest["world_size"]) == (20, 1)


@pytest.mark.parametrize("name", ["weights.bin", "state.json", MANIFEST])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.95])
def test_a_flipped_bit_falls_back(
    checkpoints: Checkpoints, name: str, where: float, caplog: pytest.LogCaptureFixture
) -> None:
    file = checkpoints.root / "step-00000020" / name
    data = bytearray(file.read_bytes())
    position = next(i for i in range(int(where * len(data)), len(data)) if data[i] not in b" \n")
    data[position] ^= 1
    file.write_bytes(data)
    path, refused = checkpoints.latest()
    assert text_of(path) == "ten"
    assert len(refused) == 1 and refused[0].startswith("step-00000020: ") and name in refused[0]


@pytest.mark.parametrize("name", ["weights.bin", "state.json", MANIFEST])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "longer"])
def test_a_damaged_file_falls_back(checkpoints: Checkpoints, name: str, harm: str) -> None:
    file = checkpoints.root / "step-00000020" / name
    data = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "longer": data + b"}"}[harm])
    path, refused = checkpoints.latest()
    assert text_of(path) == "ten" and name in refused[0]


def test_a_file_that_is_not_in_the_manifest_is_refused(checkpoints: Checkpoints) -> None:
    (checkpoints.root / "step-00000020" / "optimizer-00007-of-00008.safetensors").write_bytes(b"from elsewhere")
    assert verify(checkpoints.root / "step-00000020") == ["optimizer-00007-of-00008.safetensors is not in the manifest"]
    assert text_of(checkpoints.latest()[0]) == "ten"


def test_when_nothing_verifies_every_reason_is_given(checkpoints: Checkpoints) -> None:
    for path in checkpoints.root.iterdir():
        (path / "weights.bin").unlink()
    path, refused = checkpoints.latest()
    assert path is None
    assert refused == ["step-00000020: weights.bin is missing", "step-00000010: weights.bin is missing"]


def test_other_names_are_left_alone(checkpoints: Checkpoints) -> None:
    (checkpoints.root / "step-best").mkdir()
    (checkpoints.root / "notes.txt").write_text("mine")
    checkpoints.latest()
    checkpoints.save(30, write("thirty"))
    assert {"step-best", "notes.txt"} < {path.name for path in checkpoints.root.iterdir()}


KILL_POINTS = [("os.fsync", at) for at in range(1, 6)] + [("os.rename", at) for at in range(1, 4)]
KILL_POINTS += [("shutil.rmtree", at) for at in range(1, 3)] + [("os.mkdir", 1)]


@pytest.mark.parametrize(("call", "at"), KILL_POINTS)
def test_a_kill_at_any_point_leaves_a_good_checkpoint(
    checkpoints: Checkpoints, call: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = (shutil if call.startswith("shutil") else os), call.split(".")[1]
    real, calls = getattr(module, name), 0

    def deadly(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, deadly)
        try:
            checkpoints.save(30, write("thirty"))
            survived = True
        except Killed:
            survived = False
    path, refused = Checkpoints(checkpoints.root, keep=2).latest()
    assert refused == [], "half-written directories are not even candidates"
    assert text_of(path) == "thirty" if survived else text_of(path) in ("twenty", "thirty")
    assert not [found for found in checkpoints.root.iterdir() if found.name.startswith(".")]
    checkpoints.save(40, write("forty"))
    assert text_of(checkpoints.latest()[0]) == "forty"


def test_saving_a_step_again_replaces_it(checkpoints: Checkpoints) -> None:
    checkpoints.save(20, write("again"))
    assert text_of(checkpoints.latest()[0]) == "again"
    assert sorted(path.name for path in checkpoints.root.iterdir()) == ["step-00000010", "step-00000020"]


def test_a_full_disk_leaves_what_was_there(checkpoints: Checkpoints) -> None:
    def full(directory: Path) -> None:
        (directory / "weights.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveFailed, match=r"\(write\): rank 0: .*No space left"):
        checkpoints.save(30, full)
    assert text_of(checkpoints.latest()[0]) == "twenty"
    assert not list(checkpoints.root.glob(".*"))
