"""Decoding and batching."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from sail_train.data.batch import batch
from sail_train.data.decode import Decoded, decode
from sail_train.data.ready import ReadyRow, from_bytes, ready, to_bytes
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import IGNORE_INDEX, Batch, Conversation, Encoded


def encode(processor: SailVLProcessor, sample: Conversation) -> Encoded:
    return processor.encode(sample)


def batch_of(*rows: ReadyRow, patch_dim: int = 588) -> Batch:
    return batch(rows, patch_dim=patch_dim, source="made", pad_id=3)


def row_of(decoded: list[Decoded], index: int = 0) -> ReadyRow:
    return ready(index, decoded, ["a.tar"] * len(decoded))


def test_a_batch_lays_samples_end_to_end(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    samples = [encode(processor, make.sample(number, images=number, side=56)) for number in range(3)]
    decoded, failed = decode(samples, processor)
    made = batch_of(row_of(decoded[:1]), row_of(decoded[1:]))
    lengths = [sample.num_tokens for sample in samples]
    assert failed == []
    assert made.cu_seqlens.tolist() == np.cumsum([0, *lengths]).tolist() and made.cu_seqlens.dtype == torch.int32
    assert made.input_ids.tolist() == [token for sample in samples for token in sample.input_ids.tolist()]
    assert made.labels.tolist() == [label for sample in samples for label in sample.labels.tolist()]
    assert made.position_ids.tolist() == [place for length in lengths for place in range(length)]
    assert made.grids.tolist() == [[4, 4]] * 3 and made.patches.shape == (48, 588) and made.patches.dtype == torch.uint8
    assert made.keys == ("000000", "000001", "000002") and made.sources == ("made",) * 3
    assert {made.input_ids.dtype, made.labels.dtype, made.position_ids.dtype, made.grids.dtype} == {torch.int64}


def test_patches_are_those_of_the_processor(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    sample = make.sample(1, images=2, side=84)
    (decoded,), _ = decode([encode(processor, sample)], processor)
    for visual, patches in zip(processor.measure(sample), decoded.patches, strict=True):
        assert (patches == processor.pixels(visual)).all()


def test_a_target_never_lies_in_another_sample(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    decoded, _ = decode([encode(processor, make.sample(number)) for number in range(4)], processor)
    made = batch_of(row_of(decoded[:1]), row_of(decoded[1:]))
    for start, end in zip(made.cu_seqlens[:-1], made.cu_seqlens[1:], strict=True):
        assert made.labels[end - 1] == IGNORE_INDEX
        inner = made.labels[start : end - 1]
        trained = inner != IGNORE_INDEX
        assert (inner[trained] == made.input_ids[start + 1 : end][trained]).all()


def test_a_batch_without_images_has_empty_patches(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    decoded, _ = decode([encode(processor, make.sample(1, images=0))], processor)
    made = batch_of(row_of(decoded[:1]), row_of(decoded[1:]))
    assert made.patches.shape == (0, 588) and made.grids.shape == (0, 2)


def test_a_sample_whose_pixels_fail_leaves_and_the_others_stay(
    processor: SailVLProcessor, make: SimpleNamespace
) -> None:
    good = encode(processor, make.sample(1))
    (visual,) = good.visuals
    bad = replace(good, visuals=(replace(visual, data=make.broken_image()),))
    liar = replace(good, visuals=(replace(visual, data=make.image(1, (56, 28))),))
    for run in (map, ThreadPoolExecutor(3).map):
        decoded, failed = decode([good, bad, good, liar], processor, run=run)
        assert [sample.encoded for sample in decoded] == [good, good]
        assert [(place, error.reason) for place, error in failed] == [(1, "image_undecodable"), (3, "grid_mismatch")]


def test_rotated_photos_are_measured_as_they_are_decoded(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (112, 28), "red").save(buffer, "JPEG", exif=exif)
    sample = Conversation(**{**vars(make.sample(1)), "images": (buffer.getvalue(),)})
    encoded = encode(processor, sample)
    assert encoded.grids == ((8, 2),) and decode([encoded], processor)[1] == []


def test_a_micro_step_that_lost_all_samples_trains_on_nothing() -> None:
    made = batch_of(row_of([]), row_of([], 1))
    assert made.input_ids.tolist() == [3] and made.labels.tolist() == [IGNORE_INDEX]
    assert made.cu_seqlens.tolist() == [0, 1] and made.sources == ("made",) and made.keys == ("",)
    assert made.patches.shape == (0, 588) and made.grids.shape == (0, 2)


def test_a_row_is_one_buffer_and_comes_through_a_message(processor: SailVLProcessor, make: SimpleNamespace) -> None:
    decoded, _ = decode([encode(processor, make.sample(number, images=number)) for number in range(3)], processor)
    row = row_of(decoded, index=7)
    tokens = sum(sample.encoded.num_tokens for sample in decoded)
    assert row.buffer.nbytes == 8 * tokens + 588 * sum(row.picture_patches)
    message = to_bytes(row)
    found = from_bytes(message)
    assert found.describe() == row.describe() and found.index == 7 and found.num_trained == row.num_trained > 0
    assert found.buffer.tobytes() == row.buffer.tobytes() and not found.position
    assert (found.labels == np.concatenate([sample.encoded.labels for sample in decoded])).all()
