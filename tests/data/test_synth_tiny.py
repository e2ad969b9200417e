"""The tiny recipe's samples stay what they are: its figures in docs/tiny.md were reached on exactly these."""

from __future__ import annotations

import hashlib
import json

import pytest

from sail_train.data.synth.sources import HELD_OUT, TRAIN, Source, draw, record

DIGESTS = {
    "train/text_read": "3f8261dbc65c24c6",
    "train/text_think": "4599b8d99215bcad",
    "train/text_plain": "04d406de99761411",
    "train/read": "39971d489e79252d",
    "train/caption": "6d83d48e635bd042",
    "train/basic": "c87c9cc5bd9c02c8",
    "train/chart": "ad3a16af581c2590",
    "train/shapes": "8ef5557906249503",
    "train/steps": "ff5adbfe5e675940",
    "train/frames": "76a3fa03f607becd",
    "train/thoughts": "50944fa117684229",
    "train/rl": "e40d34c9b776306b",
    "eval/text_read": "5d1eb2aa73cfbc93",
    "eval/text_plain": "e8ecc4c3351b41e6",
    "eval/read": "bea7d8dfee8bf255",
    "eval/caption": "ed7b3329c27794aa",
    "eval/basic": "6444ee82facf74f8",
    "eval/chart": "03a7fa5a22079a7a",
    "eval/shapes": "e154f6ca89767d69",
    "eval/steps": "bb3f4ed3755aaedd",
    "eval/frames": "eb5582eeb051da2e",
    "eval/text_think": "205e6166f4bdf4ad",
}
"""First digits of the digest of 40 samples of each source, taken before there were rule engines beside them."""

SOURCES = [("train", name, source) for name, source in TRAIN.items()]
SOURCES += [("eval", name, source) for name, source in HELD_OUT.items()]


def digest(name: str, source: Source, *, held_out: bool) -> str:
    """Of records and pixels: how far PNG squeezes them may differ between machines, what they show may not."""
    found = hashlib.sha256()
    for index in range(40):
        sample = draw(name, source, index, seed=3, hasty=0.6, held_out=held_out)
        found.update(json.dumps(record(sample, name)).encode())
        for image in sample.images:
            found.update(repr((image.mode, image.size)).encode() + image.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("side", "name", "source"), SOURCES, ids=[f"{side}-{name}" for side, name, _ in SOURCES])
def test_a_source_is_byte_for_byte_what_it_was(side: str, name: str, source: Source) -> None:
    assert digest(name, source, held_out=side == "eval") == DIGESTS[f"{side}/{name}"]
