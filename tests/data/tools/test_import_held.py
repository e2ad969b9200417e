"""Records that an import holds out, and what its command says of mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from records_made import llava

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import ImportReport, import_records, run


def taken(
    folder: Path, records: list[dict[str, Any]], out: str = "out", **more: Any
) -> tuple[ImportReport, set[str], set[str]]:
    """(report, questions to train on, questions held out)."""
    (folder / "r.json").write_text(json.dumps(records))
    report = import_records(
        ImportOptions(input=folder / "r.json", output=folder / out, prefix="set", samples_per_shard=100, **more)
    )
    return report, asked(folder / out), asked(folder / out / "valid")


def asked(folder: Path) -> set[str]:
    pattern = str(folder / "*.tar")
    found = held_out({"set": SourceConfig(shards=pattern)}) if list(folder.glob("*.tar")) else []
    return {one.messages[0].text for one in found}


QUESTIONS = [llava(f"question {number}") for number in range(300)]


def test_a_share_is_held_out_in_shards_that_no_glob_of_the_others_matches(tmp_path: Path) -> None:
    report, trained, held = taken(tmp_path, QUESTIONS, hold_out=0.2)
    assert report.written == 300 and report.complete and len(report.shards) == len(report.held_shards) == 3
    assert not trained & held and len(trained | held) == 300 and 30 < len(held) == report.held < 90
    described = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (described["samples"], described["held_out"]) == (300 - len(held), len(held))
    again = import_records(
        ImportOptions(
            input=tmp_path / "r.json", output=tmp_path / "out", prefix="set", samples_per_shard=100, hold_out=0.2
        )
    )
    assert again.skipped == 3 and again.held == report.held


def test_what_is_held_out_stays_so_when_the_file_grows_or_is_put_in_another_order(tmp_path: Path) -> None:
    _, _, before = taken(tmp_path, QUESTIONS, hold_out=0.1)
    more = [llava(f"more {number}") for number in range(50)]
    _, _, after = taken(tmp_path, [*more, *QUESTIONS[::-1]], out="other", hold_out=0.1)
    assert {each for each in after if each.startswith("question")} == before
    _, _, wider = taken(tmp_path, QUESTIONS, out="wider", hold_out=0.2)
    assert before < wider


def test_records_of_one_picture_are_held_out_together(pictures: Path) -> None:
    for number in range(16):
        (pictures / f"{number}.png").write_bytes((pictures / "a.png").read_bytes())
    records = [llava(f"<image>{n % 16} {n}", image=f"{n % 16}.png") for n in range(64)]
    _, trained, held = taken(pictures, records, hold_out=0.5)
    of = [{each.split()[0] for each in side} for side in (trained, held)]
    assert of[0] and of[1] and not of[0] & of[1]


def test_a_lost_held_shard_is_made_again_and_another_share_is_another_import(tmp_path: Path) -> None:
    report, _, held = taken(tmp_path, QUESTIONS, hold_out=0.2)
    report.held_shards[0].unlink()
    options: dict[str, Any] = {"input": tmp_path / "r.json", "output": tmp_path / "out", "samples_per_shard": 100}
    assert import_records(ImportOptions(**options, prefix="set", hold_out=0.2)).skipped == 2
    assert asked(tmp_path / "out" / "valid") == held
    with pytest.raises(ValueError, match="with other settings"):
        import_records(ImportOptions(**options, prefix="set", hold_out=0.1))
    import_records(ImportOptions(**options, prefix="set", overwrite=True))
    assert list((tmp_path / "out" / "valid").glob("*")) == []
    (tmp_path / "out" / "valid" / "other.tar").touch()
    with pytest.raises(ValueError, match="other.tar is there already, from another import"):
        import_records(ImportOptions(**options, prefix="set", hold_out=0.1))


@pytest.mark.parametrize("share", [-0.1, 0.6, 2.0])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(ValueError, match=f"--hold-out {share} must be a share"):
        ImportOptions(input=tmp_path, output=tmp_path, prefix="x", hold_out=share)


def test_the_command_tells_of_held_records_fields_and_formats(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(pictures / "a.gif")
    records = [llava(f"<image>{n}", image=name, level=n) for n, name in enumerate(["a.gif", "a.png", "sub/b.png"])]
    records += [llava(f"{n}", **{f"field_{n:02}": 1}) for n in range(30)]
    records.append({"messages": [{"role": "user", "content": "<image>x"}], "image": "b.png", "answer": "1"})
    (pictures / "r.json").write_text(json.dumps(records))
    command = [str(pictures / "r.json"), str(pictures / "set"), "--convert", "--hold-out", "0.4", "--verifier", "math"]
    command += ["--images", str(pictures), "--images", str(pictures / "sub"), "--marks", "refuse"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "read 34 records = 34 written + 0 refused; 1 shards, 4 images" in printed
    assert "are held out, in " + str(pictures / "set" / "valid") in printed
    assert "first frames made PNG: GIF (1)" in printed
    assert "fields not used: level (3), field_00 (1)" in printed and " and 11 more" in printed
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unused"]["level"] == 3 and told["converted"] == {"GIF": 1} and told["held"] > 0
    assert told["held_shards"] == [str(pictures / "set" / "valid" / "set-000000.tar")]


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_output_that_cannot_be_made_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sail_train.data.tools.importing.plan", lambda options: pytest.fail("the input was read"))
    source = str(tmp_path / "r.json")
    (tmp_path / "file").touch()
    for out in ("file", "file/below/set"):
        assert f"{tmp_path / 'file'} is not a folder; choose another one" in refused(
            [source, str(tmp_path / out)], capsys
        )
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "link is not a folder" in refused([source, str(tmp_path / "link" / "set")], capsys)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert f"nothing can be written in {tmp_path}" in refused([source, str(tmp_path / "a" / "b")], capsys)


def test_an_input_that_may_not_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(options: ImportOptions) -> None:
        raise PermissionError(13, "Permission denied", "r.json")

    monkeypatch.setattr("sail_train.data.tools.importing.plan", denied)
    assert "Permission denied: 'r.json'" in refused([str(tmp_path / "r.json"), str(tmp_path / "out")], capsys)
