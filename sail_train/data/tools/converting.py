"""One foreign record -> the sample that it becomes, its images and videos read and decoded.

map's names -> layout -> places of images -> thoughts and answers -> files -> a conversation; or a BadSample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sail_train.data.conversation import MODES, text
from sail_train.data.tools import LAYOUTS
from sail_train.data.tools.answers import check_answered, mode_of, settled, settled_text
from sail_train.data.tools.field_map import FieldMap, rewritten
from sail_train.data.tools.import_job import SpanJob
from sail_train.data.tools.imported import Imported, MediaRef, placed
from sail_train.data.tools.media import load_image, load_video
from sail_train.data.tools.noted import Noted, unused
from sail_train.data.tools.records import Record
from sail_train.rewards import VERIFIERS
from sail_train.types import BadSample, Conversation, Message, Part

_BOX_MARK = re.compile(r"<ref-object>|<bbox>(?!\s*-?\d)")
"""ms-swift's places of `objects` in a text. A <bbox> with numbers in it is a box already."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a record became."""

    conversation: Conversation
    unused: list[str]
    """Fields that held something and were not used."""
    converted: list[str]
    """Formats of images that were made PNG."""
    held: bool
    """Whether the record is to be held out."""


def convert(record: Record, number: int, job: SpanJob) -> Converted:
    """A record as a sample, its files read and decoded; BadSample if that cannot be."""
    if isinstance(record, BadSample):
        raise record
    if not isinstance(record, Mapping):
        raise BadSample("bad_record", f"is {type(record).__name__}, not an object")
    named = Noted(job.map.apply(record))
    if job.map.verifier and not named.get("verifier"):
        named["verifier"] = job.map.verifier
    imported = _settled(_read(named, job.map), job.map)
    _check_boxes(record, imported)
    graded = _graded(named)
    check_answered(imported.messages, graded["answer"], graded["verifier"])
    folders = [Path(folder) for folder in job.images]
    images = [load_image(_inside(ref, job.inside), folders, convert=job.convert) for ref in imported.images]
    formats = {str(place): kind for place, (_, kind) in enumerate(images) if kind}
    conversation = Conversation(
        key=f"{job.key}{number:08d}",
        source=job.source,
        messages=imported.messages,
        images=tuple(content for content, _ in images),
        videos=tuple(load_video(_inside(ref, job.inside), folders) for ref in imported.videos),
        answer=graded["answer"],
        verifier=graded["verifier"],
        mode=graded["mode"] or mode_of(imported.messages),
        meta=_meta(record, named, imported, job.map) | ({"converted": formats} if formats else {}),
    )
    return Converted(
        conversation=conversation,
        unused=unused(record, named, job.map.fields, job.map.meta),
        converted=list(formats.values()),
        held=_held(imported, job.hold_out),
    )


def _read(record: Noted, field_map: FieldMap) -> Imported:
    """By the first layout that knows the record, every image and video in its place."""
    names = list(LAYOUTS) if field_map.layout == "auto" else [field_map.layout]
    for name in names:
        module = importlib.import_module(LAYOUTS[name])
        if module.matches(record):
            return placed(module.read(record), prepend=field_map.prepends(name))
    keys = ", ".join(map(str, list(record)[:8]))
    raise BadSample("unknown_layout", f"keys {keys} are those of no layout ({', '.join(names)})")


def _settled(imported: Imported, field_map: FieldMap) -> Imported:
    """The record with its answers as a sample has them."""
    messages = imported.messages if field_map.thought is None else _thinking(imported, field_map)
    rejected = None if imported.rejected is None else settled_text(text(imported.rejected))
    return dataclasses.replace(imported, messages=tuple(map(settled, messages)), rejected=rejected)


def _thinking(imported: Imported, field_map: FieldMap) -> tuple[Message, ...]:
    """The messages, assistant turns with their tagged sections made a thought and an answer."""
    sections = field_map.thought
    assert sections is not None, "asked for by a map that has them"
    return tuple(
        Message(role=each.role, content=(Part(type="text", text=rewritten(each.text, sections)),))
        if each.role == "assistant"
        else each
        for each in imported.messages
    )


def _check_boxes(record: Mapping[str, Any], imported: Imported) -> None:
    """BadSample "boxes": numbers that a text only points to would be lost, and their scale is the model's."""
    said = (message.text for message in imported.messages)
    if record.get("objects") and (found := next(filter(None, map(_BOX_MARK.search, said)), None)):
        raise BadSample(
            "boxes",
            f"{found[0]} stands for a box in 'objects'; write the boxes into the text, in the scale of the model "
            "(docs/videos_and_boxes.md)",
        )


def _held(imported: Imported, share: float) -> bool:
    """By the record's first file, or else by what is said: records of one picture are held out together.

    Neither the record's place nor how many there are matters: a file that grows keeps what was held out.
    """
    if not share:
        return False
    files = (*imported.images, *imported.videos)
    said = json.dumps([[message.role, message.text] for message in imported.messages]).encode()
    digest = hashlib.blake2b(_named(files[0]) if files else said, digest_size=8).digest()
    return int.from_bytes(digest) < share * 2**64


def _named(ref: MediaRef) -> bytes:
    if isinstance(ref, Mapping):
        ref = ref.get("bytes") or ref.get("path") or b""
    return ref if isinstance(ref, bytes) else str(ref).encode(errors="backslashreplace")


def _graded(record: Noted) -> dict[str, str | None]:
    """Answer, verifier and mode: texts, and names that exist. A number is an answer too, in a question's record."""
    values: dict[str, str | None] = {}
    for name in ("answer", "verifier", "mode"):
        value = record.get(name)
        if name == "answer" and "messages" not in record and "conversations" not in record:
            value = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
        if value is not None and not isinstance(value, str):
            raise BadSample("bad_field", f"{name}={value!r:.80} should be a text")
        values[name] = None if value is None else text(value)
    if values["mode"] not in MODES:
        raise BadSample("bad_field", f"mode={values['mode']!r:.80} must be 'think' or 'direct'")
    if values["verifier"] is not None and values["verifier"] not in VERIFIERS:
        raise BadSample("bad_field", f"verifier={values['verifier']!r:.80} is none of {', '.join(VERIFIERS)}")
    return values


def _inside(ref: Any, folder: str) -> Any:
    """A path below the folder that its input names; anything but a path as it is."""
    name = ref.get("path") if isinstance(ref, Mapping) and not ref.get("bytes") else ref
    return f"{folder}/{name}" if folder and isinstance(name, str) and not name.startswith("data:") else ref


def _meta(record: Mapping[str, Any], named: Noted, imported: Imported, field_map: FieldMap) -> dict[str, Any]:
    meta: dict[str, Any] = {name: text(value) if isinstance(value, str) else value for name, value in
                            field_map.kept(record).items()}  # fmt: skip
    if (name := named.get("id")) is not None:
        meta["id"] = text(str(name))
    for name, value in (("license", field_map.license), ("origin", field_map.origin)):
        if value:
            meta[name] = value
    if imported.rejected is not None:
        meta["preference"] = {"chosen": imported.messages[-1].text, "rejected": imported.rejected}
    return meta
