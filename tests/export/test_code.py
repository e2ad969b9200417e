"""The files that travel in a model folder, generated from packages small enough to read."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from sail_train.export.code import AUTO_MAP, code_files, flat_name

SMALL = {
    "__init__.py": "",
    "numbers.py": "NAME = 'sail_train'\n\n\ndef double(x: int) -> int:\n    return 2 * x  # é: two bytes\n",
    "model/__init__.py": 'KINDS = {"plain": "sail_train.model.kinds.plain:Plain", "none": "sail_train.absent:X"}\n',
    "model/hf_config.py": (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nVALUE = 3\n\n\n'
        "class SailVLConfig:\n    def __post_init__(self): ...\n"
    ),
    "model/kinds/__init__.py": "",
    "model/kinds/plain.py": (
        "from sail_train.model import KINDS, tables\n\n\nclass Plain:\n    value = tables.VALUE * len(KINDS) // 2\n"
    ),
    "model/tables.py": "VALUE = 11\n",
    "model/vlm.py": (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nimport importlib\nimport json\n\n'
        "from sail_train.model import (\n    KINDS,\n)\nfrom sail_train.model.hf_config import VALUE\n"
        "from sail_train.numbers import double as twice\n\n"
        'PACKED_ATTENTION = "sail_packed"\n\n\n'
        "def build(kind: str) -> int:\n"
        '    module, _, name = KINDS[kind].partition(":")\n'
        '    assert "é" and importlib.import_module("json") is json\n'
        "    return twice(VALUE) + getattr(importlib.import_module(module), name).value\n\n\n"
        "def fast() -> None:\n    from an_extra import kernel  # on GPUs\n\n    kernel()\n"
    ),
    "processor/__init__.py": "",
    "processor/processor.py": (
        "from sail_train.numbers import double\n\nSIX = double(3)\n\n\n"
        "class SailVLProcessor:\n    def to_dict(self): ...\n"
    ),
    "unreached.py": "import webdataset\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "sail_train"
    for name, text in SMALL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def written(package: Path, tmp_path: Path) -> Path:
    """The generated files as a package that can be imported."""
    folder = tmp_path / "flat_copy"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, text in code_files(package).items():
        (folder / name).write_text(text)
    return folder


def test_flat_files_do_what_the_package_did(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(written.parent))
    vlm = importlib.import_module("flat_copy.modeling_sail_vl")
    assert vlm.build("plain") == 2 * 3 + 11
    assert importlib.import_module("flat_copy.processing_sail_vl").SIX == 6
    with pytest.raises(ImportError, match="an_extra"):
        vlm.fast()
    for name in [name for name in sys.modules if name.startswith("flat_copy")]:
        del sys.modules[name]


def test_only_what_the_roots_reach_travels(package: Path) -> None:
    assert sorted(code_files(package)) == [
        "configuration_sail_vl.py",
        "modeling_sail_vl.py",
        "modeling_sail_vl_kinds_plain.py",
        "modeling_sail_vl_tables.py",
        "processing_sail_vl.py",
        "sail_vl_model.py",
        "sail_vl_modules.py",
        "sail_vl_numbers.py",
    ]


def test_transformers_loader_finds_every_file_and_asks_for_no_extra(written: Path) -> None:
    reached = {Path(file).name for file in get_relative_import_files(written / "modeling_sail_vl.py")}
    assert {"modeling_sail_vl_kinds_plain.py", "modeling_sail_vl_tables.py", "sail_vl_numbers.py"} <= reached
    wanted = {name for file in written.glob("*.py") for name in get_imports(file)}
    assert wanted == {"__future__", "importlib", "json", "sys"}


def test_each_version_of_the_code_takes_an_attention_name_of_its_own(package: Path) -> None:
    def name() -> str:
        (line,) = [x for x in code_files(package)["modeling_sail_vl.py"].splitlines() if x.startswith("PACKED_")]
        return line

    first = name()
    assert first == name() and first.startswith("PACKED_ATTENTION = 'sail_packed_")
    (package / "numbers.py").write_text(SMALL["numbers.py"] + "\nMORE = 1\n")
    assert name() != first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("import webdataset\n", "needs webdataset to be imported, which a user need not have"),
        ("import sail_train.model.tables\n", "sail_train"),
    ],
)
def test_code_that_could_not_travel_is_named(package: Path, line: str, message: str) -> None:
    (package / "numbers.py").write_text(line + SMALL["numbers.py"])
    with pytest.raises(AssertionError, match=message):
        code_files(package)


def test_our_own_code_travels_and_holds_the_classes_of_the_auto_map() -> None:
    files = code_files()
    for reference in AUTO_MAP.values():
        module, _, name = reference.partition(".")
        assert f"class {name}(" in files[f"{module}.py"]
    assert all("sail_train." not in line for text in files.values() for line in text.splitlines() if "import" in line)


def test_names_stay_apart() -> None:
    names = ["sail_train.model", "sail_train.model.vlm", "sail_train.config", "sail_train.model.config",
             "sail_train.processor", "sail_train.processor.config", "sail_train.model.vision.aimv2"]  # fmt: skip
    assert len({flat_name(name) for name in names}) == len(names)
    assert flat_name("sail_train.model.vision.aimv2") == "modeling_sail_vl_vision_aimv2"
