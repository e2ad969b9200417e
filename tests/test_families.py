"""Every family of models, from pixels to log-probs: what the generator drew is what a training forward sees.

The shipped tiny presets, shrunk further; real processor, real chat styles, text, images, tiles and video frames.
"""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sail_train.generate.generator import Generator
from sail_train.job.compose import Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.model.build import build_model
from sail_train.model.packed import PackedLM
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import IGNORE_INDEX, Completion, Conversation, Message, Part, Prompt, Sampling

SHRUNK = (
    "model.vision.patch_size=4", "model.vision.hidden_size=16", "model.vision.intermediate_size=24",
    "model.vision.num_attention_heads=2", "model.vision.initializer_range=0.3", "model.adapter.initializer_range=0.3",
    "model.language.hidden_size=32", "model.language.intermediate_size=48", "model.language.num_hidden_layers=2",
    "model.language.num_attention_heads=2", "model.language.num_key_value_heads=1", "model.language.head_dim=16",
    "model.language.initializer_range=0.3", "model.language.vocab_size=null",
    "model.image.min_pixels=64", "model.image.max_pixels=2304", "model.video.levels=[4,2]",
    "model.video.max_tokens=24", "model.video.min_frames=3", "model.video.num_frames=3", "model.video.frame_pixels=256",
)  # fmt: skip
EXPERTS = "model.language.moe_intermediate_size=24"
FAMILIES = {
    "tiny": ("model=tiny",),
    "moe": ("model=tiny_moe", EXPERTS, "model.template=sail_vl2", "model.video.mode=uniform"),
    "seed": ("model=tiny_native", "model.template=seed1_5_vl"),
    "anyres": ("model=tiny_anyres", "model.template=sail_vl2", "model.video.mode=uniform",
               "model.vision.position_grid=4"),
    "tiles": ("model=tiny_anyres", "model.template=sail_vl2", "model.video.mode=uniform", "model.image.mode=tile",
              "model.image.tile_size=16", "model.image.max_tiles=4", "model.vision.position_grid=4"),
}  # fmt: skip

TOLERANCE = 1e-4
"""Of a log-prob in fp32: the generator decodes token by token from a cache, the training forward reads packed rows;
both add the same numbers in another order. Measured: below 1e-5; a dropped or misplaced picture moves one by 0.1."""

Family = tuple[SailVLForConditionalGeneration, SailVLProcessor]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(
        ["What is shown? Two frames, 3 pictures.", "Image-1: Frame-2: [1.5 second]"] * 9, 330
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tokenizer: Path) -> Family:
    config = compose_model(Configs(), parse_tokens([*FAMILIES[request.param], *SHRUNK]))
    image = {"patch_size": config.vision.patch_size, "merge_size": config.adapter.merge_size, **asdict(config.image)}
    processor = build_processor(
        ProcessorConfig(
            tokenizer=str(tokenizer), image=image, video=asdict(config.video), template=config.template, system=""
        )
    )
    ids, rows = processor.token_ids, processor.vocab_size
    return build_model(config, parents={}, seed=0, token_ids=ids, vocab_size=rows).eval(), processor


def picture(height: int, width: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def video(path: Path) -> bytes:
    """Two seconds in which one frame differs from the next."""
    av = pytest.importorskip("av", reason="videos need the extra `video`")
    with av.open(str(path), "w") as made:
        stream = made.add_stream("mpeg4", rate=Fraction(8))
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        for i in range(16):
            pixels = np.zeros((32, 32, 3), dtype=np.uint8)
            pixels[:, 2 * i : 2 * i + 8] = 255
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode())
    return path.read_bytes()


def ask(*kinds: str, images: tuple[bytes, ...] = (), videos: tuple[bytes, ...] = ()) -> Conversation:
    parts = tuple(Part(type=kind, text="What is shown?" if kind == "text" else "") for kind in kinds)
    return Conversation(
        key="0", source="t", messages=(Message(role="user", content=parts),), images=images, videos=videos
    )


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Conversation]:
    one, two = picture(24, 40, 1), picture(40, 24, 2)
    return {
        "text": ask("text"),
        "image": ask("image", "text", images=(one,)),
        "images": ask("image", "image", "text", images=(one, two)),
        "swapped": ask("image", "image", "text", images=(two, one)),
        "video": ask("video", "text", videos=(video(tmp_path_factory.mktemp("video") / "v.mp4"),)),
    }


def training_logprobs(
    model: SailVLForConditionalGeneration, prompts: list[Prompt], answers: list[Completion]
) -> list[Tensor]:
    """Of the answers, all samples packed into one row, in training mode."""
    ids = [torch.tensor([*p.input_ids.tolist(), *a.token_ids]) for p, a in zip(prompts, answers, strict=True)]
    labels = []
    for row, prompt in zip(ids, prompts, strict=True):
        label = torch.full_like(row, IGNORE_INDEX)
        label[len(prompt.input_ids) - 1 : -1] = row[len(prompt.input_ids) :]
        labels.append(label)
    model.train()
    with torch.no_grad():
        found, _ = PackedLM(model)(
            torch.cat(ids),
            torch.cat(labels),
            torch.cat([torch.arange(len(row)) for row in ids]),
            torch.tensor([0, *np.cumsum([len(row) for row in ids])], dtype=torch.int32),
            torch.from_numpy(np.concatenate([prompt.patches for prompt in prompts])),
            torch.tensor([grid for prompt in prompts for grid in prompt.grids], dtype=torch.int64).reshape(-1, 2),
        )
    model.eval()
    return list(found.split([len(answer.token_ids) for answer in answers]))


def generate(family: Family, prompts: list[Prompt]) -> list[Completion]:
    model, processor = family
    generator = Generator(
        model,
        stop_token_ids=processor.stop_token_ids,
        pad_token_id=processor.token_ids["pad"],
        banned_token_ids=(processor.image_token_id,),
    )
    return [answers[0] for answers in generator.generate(prompts, Sampling(max_new_tokens=6))]


def test_training_sees_the_log_probs_that_were_drawn_from(family: Family, questions: dict[str, Conversation]) -> None:
    model, processor = family
    prompts = [processor.prompt(asked, uid=name) for name, asked in questions.items()]
    answers = generate(family, prompts)
    for prompt, answer, trained in zip(prompts, answers, training_logprobs(model, prompts, answers), strict=True):
        torch.testing.assert_close(
            trained, torch.tensor(answer.logprobs), atol=TOLERANCE, rtol=0, msg=lambda m, p=prompt: f"{p.uid}: {m}"
        )


def test_what_is_seen_matters(family: Family, questions: dict[str, Conversation]) -> None:
    """Images in the other order, and a video backwards, give other log-probs for the same answer."""
    model, processor = family
    images, swapped = (processor.prompt(questions[name], uid=name) for name in ("images", "swapped"))
    film = processor.prompt(questions["video"], uid="video")
    assert len(film.grids) >= 3 and len(set(film.grids)) == 1
    frames = film.patches.reshape(len(film.grids), -1, film.patches.shape[-1])
    backwards = replace(film, patches=np.ascontiguousarray(frames[::-1]).reshape(film.patches.shape))
    (answer, shown) = generate(family, [images, film])
    for asked, other, said in ((images, swapped, answer), (film, backwards, shown)):
        here, there = training_logprobs(model, [asked, other], [said, said])
        assert (here - there).abs().max() > 100 * TOLERANCE


def test_a_plain_forward_of_the_processors_inputs_agrees(family: Family, questions: dict[str, Conversation]) -> None:
    """`model(**processor(...))`, as a user of transformers calls it, gives the first token's log-prob."""
    model, processor = family
    asked = questions["images"]
    (answer,) = generate(family, [processor.prompt(asked, uid="0")])
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is shown?"}]}
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=text, images=list(asked.images), return_tensors="pt")
    with torch.no_grad():
        first = model(**inputs).logits[0, -1].float().log_softmax(-1)
    assert first[answer.token_ids[0]].item() == pytest.approx(answer.logprobs[0], abs=TOLERANCE)
