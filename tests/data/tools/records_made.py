"""Foreign records for the tests of the import, and what an import makes of them."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools.field_map import FieldMap
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.import_told import ImportReport
from sail_train.data.tools.importing import import_records
from sail_train.types import Conversation


def import_list(folder: Path, records: list[Any] | bytes, **more: Any) -> tuple[ImportReport, list[Conversation], Any]:
    """(report, what training then reads, the refused lines)."""
    path = folder / "records.json"
    path.write_bytes(records if isinstance(records, bytes) else json.dumps(records).encode())
    options = {name: more.pop(name) for name in list(more) if name in {each.name for each in fields(ImportOptions)}}
    report = import_records(
        ImportOptions(input=path, output=folder / "out", prefix="set", map=FieldMap(**more), **options)
    )
    assert report.read == report.written + report.refused.total() and not report.failed
    found = held_out({"set": SourceConfig(shards=[str(path) for path in report.shards])}) if report.shards else []
    lines = report.refused_file.read_text().splitlines() if report.refused_file else []
    return report, found, [json.loads(line) for line in lines]


def llava(value: str = "<image>\nWhat is it?", answer: str = "A cat.", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}], **more}


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}], **more}


def shape(conversation: Conversation) -> list[tuple[str, list[str]]]:
    return [
        (message.role, [part.text if part.type == "text" else "<img>" for part in message.content])
        for message in conversation.messages
    ]
