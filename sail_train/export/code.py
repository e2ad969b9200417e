"""Our model's and processor's modules -> flat files that travel in a model folder.

With `trust_remote_code=True` transformers copies the files that `auto_map` names, and what they import relatively, out
of a model folder and imports them. So each module that the three roots reach becomes one file: `from sail_train.x.y
import z` turns into `from .sail_vl_x_y import z`, dotted paths in tables are renamed alike, and one module of the
export imports by such names. Everything else stays as it is written, comments included.
Two traps of that loader are met here: it wants every package that a file imports, also lazily (extras are wrapped in
`try`, which it skips), and it finds files by `from .x import` alone (the module that imports by name has one for each).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

ROOTS = {
    "sail_train.model.hf_config": "configuration_sail_vl",
    "sail_train.model.vlm": "modeling_sail_vl",
    "sail_train.processor.processor": "processing_sail_vl",
}
"""Where the classes that `AUTO_MAP` names are defined, and what the files are called."""

_MODEL = "modeling_sail_vl.SailVLForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_sail_vl.SailVLConfig",
    "AutoModel": _MODEL,
    "AutoModelForCausalLM": _MODEL,
    "AutoModelForImageTextToText": _MODEL,
    "AutoProcessor": "processing_sail_vl.SailVLProcessor",
}

_POINTERS = {
    "configuration_sail_vl.py": """

# sail_train's readers drop `auto_map` from any config; transformers finds these classes by it, and saves it again.
_post_init = SailVLConfig.__post_init__


def _with_auto_map(self, **kwargs):
    _post_init(self, **kwargs)
    self.auto_map = {auto_map}


SailVLConfig.__post_init__ = _with_auto_map
""",
    "processing_sail_vl.py": """

# So that a processor that is saved again says where its class is.
_to_dict = SailVLProcessor.to_dict
SailVLProcessor.to_dict = lambda self: {{**_to_dict(self), "auto_map": {auto_map}}}
""",
}
"""Added to the files that define the classes."""

_PREFIXES = {"sail_train.model.": "modeling_sail_vl_", "sail_train.processor.": "processing_sail_vl_"}
_REGISTRY = "sail_vl_modules"
_DOTTED = re.compile(r"(sail_train(?:\.\w+)+)(:\w+)?")
_REGISTERED_NAME = "PACKED_ATTENTION"
"""A global name of transformers that our code takes; each export takes one of its own, so that versions may meet."""
_THERE = {"torch", "transformers", "numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub", "jinja2"}
"""Packages that come with torch, transformers and Pillow."""


@dataclass(kw_only=True)
class _Module:
    """One module of ours and what is to be changed in it."""

    name: str
    text: str
    tree: ast.Module
    needs: list[str] = field(default_factory=list)
    """Modules of ours that it imports or names."""
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    """(start, end, new text), as offsets into `text`."""

    def offset(self, line: int, column: int) -> int:
        """Offset into `text` of the syntax tree's line, from 1, and column, which counts UTF-8 bytes."""
        lines = self.text.splitlines(keepends=True)
        return sum(map(len, lines[: line - 1])) + len(lines[line - 1].encode()[:column].decode())

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def replace(self, node: ast.expr | ast.stmt, new: str) -> None:
        self.edits.append((*self.span(node), new))

    def written(self) -> str:
        text = self.text
        for start, end, new in sorted(self.edits, reverse=True):
            text = text[:start] + new + text[end:]
        return text


def code_files(package: Path = PACKAGE) -> dict[str, str]:
    """Name -> text of every file that the model and the processor of `package` (the folder of sail_train) need."""
    modules: dict[str, _Module] = {}
    waiting = list(ROOTS)
    while waiting:
        name = waiting.pop(0)
        if name not in modules:
            modules[name] = _rewrite(name, package)
            waiting += modules[name].needs
    stamp = hashlib.sha256("".join(modules[name].text for name in sorted(modules)).encode()).hexdigest()[:8]
    files = {f"{_REGISTRY}.py": _registry(sorted(flat_name(name) for name in modules.keys() - ROOTS.keys()))}
    for name, module in modules.items():
        _own_attention(module, stamp)
        assert f"{flat_name(name)}.py" not in files, f"two modules would be called {flat_name(name)}"
        files[f"{flat_name(name)}.py"] = _header(name) + module.written()
    for file, text in _POINTERS.items():
        files[file] += text.format(auto_map=json.dumps(AUTO_MAP))
    for file, text in files.items():
        assert not re.search(r"^\s*(from|import) sail_train", text, re.MULTILINE), f"{file} still imports sail_train"
        compile(text, file, "exec", dont_inherit=True)
    return files


def flat_name(module: str) -> str:
    """What a dotted module of ours is called as a file of the export."""
    if module in ROOTS:
        return ROOTS[module]
    for prefix, flat in _PREFIXES.items():
        if module.startswith(prefix):
            return flat + module.removeprefix(prefix).replace(".", "_")
    return "sail_vl_" + module.removeprefix("sail_train.").replace(".", "_")


def _file(module: str, package: Path) -> Path | None:
    """The file of a dotted module of ours, if there is such a module."""
    path = package.joinpath(*module.split(".")[1:])
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _rewrite(name: str, package: Path) -> _Module:
    path = _file(name, package)
    assert path is not None, f"{name} is no module"
    text = path.read_text(encoding="utf-8")
    module = _Module(name=name, text=text, tree=ast.parse(text))
    for node, guarded, lazy in _walk(module.tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sail_train":
            _own_import(module, node, package)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            _foreign_import(module, node, guarded=guarded, lazy=lazy)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            _dotted_text(module, node, node.value, package)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            module.replace(node.func, "_import_sibling")
    if name in ROOTS or any(new == "_import_sibling" for _, _, new in module.edits):
        _insert(module, f"from .{_REGISTRY} import import_sibling as _import_sibling  # noqa: F401\n")
    return module


def _walk(tree: ast.AST, guarded: bool = False, lazy: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """(node, whether it stands in a `try`, whether in a function) of every node."""
    for node in ast.iter_child_nodes(tree):
        yield node, guarded, lazy
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(node, guarded or isinstance(node, ast.Try), inside)


def _own_import(module: _Module, node: ast.ImportFrom, package: Path) -> None:
    """`from sail_train.x import y`, where y is a name in the module x, or a module itself."""
    assert node.module is not None
    dotted = {alias: f"{node.module}.{alias.name}" for alias in node.names}
    modules = {alias: name for alias, name in dotted.items() if _file(name, package) is not None}
    module.needs += modules.values()
    if not modules:
        module.needs.append(node.module)
        start, end = module.span(node)
        module.edits.append((start, end, module.text[start:end].replace(node.module, f".{flat_name(node.module)}", 1)))
        return
    beside = [f"{flat_name(name)} as {alias.asname or alias.name}" for alias, name in modules.items()]
    new = f"from . import {', '.join(beside)}"
    if names := [ast.unparse(alias) for alias in node.names if alias not in modules]:
        module.needs.append(node.module)
        new += f"\n{' ' * node.col_offset}from .{flat_name(node.module)} import {', '.join(names)}"
    module.replace(node, new)


def _foreign_import(module: _Module, node: ast.Import | ast.ImportFrom, *, guarded: bool, lazy: bool) -> None:
    """An extra, imported where it is used: in a `try`, so that the loader does not ask for it."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    extras = {name.split(".")[0] for name in names} - _THERE - sys.stdlib_module_names
    if not extras or guarded:
        return
    assert lazy, f"{module.name}:{node.lineno} needs {', '.join(extras)} to be imported, which a user need not have"
    start, end = module.span(node)
    margin = " " * node.col_offset
    module.edits.append(
        (start, end, f"try:\n{margin}    {module.text[start:end]}\n{margin}except ImportError:\n{margin}    raise")
    )


def _dotted_text(module: _Module, node: ast.Constant, text: str, package: Path) -> None:
    """The text "sail_train.x.y:Name", as tables have it."""
    found = _DOTTED.fullmatch(text)
    if found and _file(found[1], package) is not None:
        module.needs.append(found[1])
        module.replace(node, f'"{flat_name(found[1])}{found[2] or ""}"')


def _own_attention(module: _Module, stamp: str) -> None:
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == _REGISTERED_NAME:
            module.replace(node.value, repr(f"{ast.literal_eval(node.value)}_{stamp}"))


def _insert(module: _Module, line: str) -> None:
    """A line before the first statement behind the docstring and the imports from __future__."""
    for node in module.tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            start = module.offset(node.lineno, 0)
            module.edits.append((start, start, line))
            return


def _header(name: str) -> str:
    return f"# SPDX-License-Identifier: Apache-2.0\n# Written by `sail-train export` from the module {name}.\n"


def _registry(names: list[str]) -> str:
    branches = "".join(
        f'    {"if" if i == 0 else "elif"} name == "{name}":\n        from .{name} import __name__ as found\n'
        for i, name in enumerate(names)
    )
    return f'''# SPDX-License-Identifier: Apache-2.0
# Written by `sail-train export`.
"""The modules of this folder by name; that each is imported here makes transformers bring them all."""

import importlib
import sys


def import_sibling(name):
    """The module of this folder called `name`; any other as Python finds it."""
{branches}    else:
        return importlib.import_module(name)
    return sys.modules[found]
'''
