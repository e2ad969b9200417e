from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import StaticCache

from sail_train.model.vlm import SailVLForConditionalGeneration

Sample = dict[str, Tensor]
PAD = 63


def left_pad(*samples: Sample) -> Sample:
    """What the processor's call gives: ids and mask padded on the left, all patches and grids."""
    width = max(len(sample["input_ids"]) for sample in samples)
    ids = torch.full((len(samples), width), PAD)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        ids[row, width - len(sample["input_ids"]) :] = sample["input_ids"]
        mask[row, width - len(sample["input_ids"]) :] = 1
    images = {name: torch.cat([sample[name] for sample in samples]) for name in ("patches", "grids")}
    return {"input_ids": ids, "attention_mask": mask, **images}


def greedy(vlm: SailVLForConditionalGeneration, sample: Sample, steps: int) -> list[int]:
    """Argmax, one token at a time, without a cache and without padding."""
    ids = sample["input_ids"]
    for _ in range(steps):
        logits = vlm(input_ids=ids[None], patches=sample["patches"], grids=sample["grids"], use_cache=False).logits
        ids = torch.cat((ids, logits[0, -1].argmax()[None]))
    return ids[len(sample["input_ids"]) :].tolist()


@pytest.fixture
def endless(make_model: Callable[..., SailVLForConditionalGeneration]) -> SailVLForConditionalGeneration:
    """A model that stops at no token, so that all rows are compared to the last."""
    vlm = make_model().eval()
    vlm.generation_config.eos_token_id = None
    return vlm


def test_generate_equals_a_loop_without_cache_on_a_left_padded_mixed_batch(
    endless: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    samples = [make_sample(0, 9, (4, 6)), make_sample(1, 4), make_sample(2, 12, (2, 2), (2, 8))]
    with torch.no_grad():
        out = endless.generate(**left_pad(*samples), max_new_tokens=8)
        expected = [greedy(endless, sample, 8) for sample in samples]
    assert out[:, -8:].tolist() == expected


@pytest.mark.parametrize("options", [{"num_return_sequences": 3, "do_sample": True}, {"num_beams": 3}])
def test_a_repeated_row_keeps_its_own_images(
    endless: SailVLForConditionalGeneration, make_sample: Callable[..., Sample], options: dict
) -> None:
    """Same tokens, different images: rows must not swap images when generate repeats them."""
    first, second = make_sample(0, 9, (4, 6)), make_sample(1, 9, (2, 2), (4, 6))
    torch.manual_seed(0)
    together = endless.generate(**left_pad(first, second), max_new_tokens=4, top_k=1, **options)
    count = options.get("num_return_sequences", 1)
    for i, sample in enumerate((first, second)):
        one = endless.generate(**left_pad(sample), max_new_tokens=4, top_k=1, **options)
        assert together[i * count : (i + 1) * count, -4:].tolist() == one[:, -4:].tolist()


def test_repeated_images_stand_with_their_rows(
    endless: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    samples = [make_sample(0, 3, (2, 2), (2, 4)), make_sample(1, 3), make_sample(2, 3, (4, 4))]
    inputs = left_pad(*samples)
    patches, grids = endless._repeat_images(inputs["input_ids"], inputs["patches"], inputs["grids"], 2)
    assert grids.tolist() == [[2, 2], [2, 4], [2, 2], [2, 4], [4, 4], [4, 4]]
    first, last = samples[0]["patches"], samples[2]["patches"]
    assert torch.equal(patches, torch.cat((first, first, last, last)))


def test_the_image_token_is_never_drawn(
    make_model: Callable[..., SailVLForConditionalGeneration], make_sample: Callable[..., Sample]
) -> None:
    vlm = make_model().eval()
    vlm.generation_config.eos_token_id = None
    vlm.get_output_embeddings().weight.data[61] *= 100  # else it would be drawn all the time
    out = vlm.generate(**left_pad(make_sample(0, 5)), max_new_tokens=40, do_sample=True)
    assert not (out == 61).any()


def test_generation_sees_the_image(endless: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]) -> None:
    sample = make_sample(0, 5, (6, 6))
    other = {**sample, "patches": 255 - sample["patches"]}
    logits = [endless(**left_pad(s)).logits for s in (sample, other)]
    assert not torch.allclose(*logits, atol=1e-3)


def test_a_static_cache_gives_the_same_tokens(
    endless: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    inputs = left_pad(make_sample(0, 9, (4, 6)), make_sample(1, 4))
    cache = StaticCache(config=endless.config.text_config, max_cache_len=inputs["input_ids"].shape[1] + 6)
    static = endless.generate(**inputs, max_new_tokens=6, past_key_values=cache, disable_compile=True)
    assert static.tolist() == endless.generate(**inputs, max_new_tokens=6).tolist()


def test_padding_on_the_left_changes_no_logit(
    model: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    short, long = make_sample(0, 5, (2, 2)), make_sample(1, 14)
    padded = model(**left_pad(short, long)).logits[0, -6:]
    torch.testing.assert_close(padded, model(**left_pad(short)).logits[0], atol=1e-5, rtol=1e-5)


def test_embeddings_hold_the_features_in_place_of_the_image_tokens(
    model: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    sample = make_sample(0, 5, (4, 4), (2, 2))
    embedded = model.embed(sample["input_ids"], sample["patches"], sample["grids"])
    features = model.image_features(sample["patches"], ((4, 4), (2, 2)))
    assert torch.equal(embedded[:5], features)
    assert torch.equal(embedded[5:], model.get_input_embeddings()(sample["input_ids"][5:]))
    assert torch.equal(model.embed(sample["input_ids"][5:]), embedded[5:])


def test_labels_give_transformers_mean_loss(
    model: SailVLForConditionalGeneration, make_sample: Callable[..., Sample]
) -> None:
    ids = make_sample(0, 9)["input_ids"][None]
    output = model(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [1, 2, 3]}, "0 image tokens, but the images .* give 6 features"),
        ({"input_ids": [61] * 5}, "5 image tokens, but the images .* give 6 features"),
        ({"patches": torch.zeros(20, 48, dtype=torch.uint8)}, "20 patches were given for grids .*, which have 24"),
        ({"grids": [[3, 8]]}, "not whole multiples of merge_size=2"),
        ({"patches": None, "grids": None}, "6 image tokens, but the images .* give 0 features"),
        ({"input_ids": None}, "input_ids and inputs_embeds are both missing"),
    ],
)
def test_images_that_do_not_fit_the_text_are_refused(
    model: SailVLForConditionalGeneration, change: dict, message: str
) -> None:
    inputs = {"input_ids": [61] * 6, "patches": torch.zeros(24, 48, dtype=torch.uint8), "grids": [[4, 6]], **change}
    for name in ("input_ids", "grids"):
        if inputs[name] is not None:
            inputs[name] = torch.tensor(inputs[name])[None] if name == "input_ids" else torch.tensor(inputs[name])
    with pytest.raises(ValueError, match=message):
        model(**inputs)
