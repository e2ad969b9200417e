"""Calls as users of transformers make them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.types import Conversation, Message, Part

Make = Callable[..., Message]
MakeConversation = Callable[..., Conversation]
MakeImage = Callable[..., bytes]
MakeVideo = Callable[..., bytes]
TILES = {"mode": "tile", "patch_size": 4, "tile_size": 16, "max_tiles": 4, "max_total_tiles": 6}


@pytest.fixture(scope="module")
def tiled(tokenizer_dir: Path) -> SailVLProcessor:
    config = ProcessorConfig(
        tokenizer=str(tokenizer_dir), image=TILES, video={"mode": "uniform", "num_frames": 3}, template="sail_vl2"
    )
    return build_processor(config)


def test_a_call_gives_left_padded_inputs_for_a_mixed_batch(processor: SailVLProcessor) -> None:
    image = Image.new("RGB", (24, 16))
    inputs = processor(text=["a<image>b", "a much longer text without any image in it"], images=[image])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["grids"].tolist() == [[4, 6]] and inputs["patches"].dtype == torch.uint8
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][:, -1].all()
    assert (inputs["input_ids"][0] == processor.image_token_id).sum() == 6


def test_images_come_flat_nested_as_bytes_or_as_paths(
    processor: SailVLProcessor, encoded_image: MakeImage, tmp_path: Path
) -> None:
    data = encoded_image()
    (tmp_path / "a.png").write_bytes(data)
    expected = processor(text="<image>", images=data)["patches"]
    for images in ([data], [[data]], str(tmp_path / "a.png"), [tmp_path / "a.png"]):
        assert torch.equal(processor(text="<image>", images=images)["patches"], expected)


def test_messages_with_images_become_inputs_in_one_call(processor: SailVLProcessor) -> None:
    image = Image.new("RGB", (24, 16))
    message = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]}
    inputs = processor.apply_chat_template(
        [message], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, think="off"
    )
    assert set(inputs) == set(processor.model_input_names)
    assert processor.decode(inputs["input_ids"][0]).endswith("what? /no_think\nassistant\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<image><image>", "images": [Image.new("RGB", (8, 8))]}, "2 <image> placeholders for 1 images"),
        ({"text": "none", "images": [Image.new("RGB", (8, 8))]}, "0 <image> placeholders for 1 images"),
        ({"text": "<image>"}, "1 <image> placeholders for 0 images"),
        ({"images": []}, "text is missing"),
        ({"text": "a", "audio": [1]}, "audio is not read"),
        ({"text": "a", "videos": [1]}, "0 <video> placeholders for 1 videos"),
        ({"text": "<video>", "videos": [1]}, "'1' is no video"),
        ({"text": "<image>", "images": "https://example.org/a.png"}, "is no image"),
        ({"text": "<image>", "images": [3]}, "'3' is no image"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(processor: SailVLProcessor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_a_call_gives_what_a_prompt_gives(
    tiled: SailVLProcessor,
    make_message: Make,
    make_conversation: MakeConversation,
    encoded_image: MakeImage,
    encoded_video: MakeVideo,
) -> None:
    film, images = encoded_video(), (encoded_image(64, 16), encoded_image(30, 60))
    content = [{"type": "image", "image": images[0]}, {"type": "video", "video": film}]
    content += [{"type": "text", "text": "Both?"}, {"type": "image", "image": images[1]}]
    inputs = tiled.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, think="on",
    )  # fmt: skip
    conversation = make_conversation(make_message("user", None, Part(type="video"), "Both?", None), images=images)
    conversation = Conversation(**{**vars(conversation), "videos": (film,)})
    prompt = tiled.prompt(conversation, uid="0", think="on")
    assert inputs["input_ids"][0].tolist() == prompt.input_ids.tolist()
    assert np.array_equal(inputs["patches"], prompt.patches) and inputs["grids"].tolist() == list(
        map(list, prompt.grids)
    )
    assert len(prompt.grids) == (3 + 1) + 3 + (2 + 1), "three tiles of six each, thumbnails, three frames"
    assert (prompt.input_ids == tiled.image_token_id).sum() == 4 * len(prompt.grids)
    assert "Frame-3: " in tiled.decode(prompt.input_ids) and "Image-2: " in tiled.decode(prompt.input_ids)


def test_the_images_of_each_text_share_its_own_tiles(tiled: SailVLProcessor) -> None:
    image = Image.new("RGB", (64, 16))
    one = tiled(text="<image>", images=[image])["grids"]
    assert len(one) == 4 + 1
    assert len(tiled(text=["<image>", "<image><image>"], images=[[image], [image, image]])["grids"]) == 5 + 2 * (3 + 1)
    assert len(tiled(text="<image>", images=image, max_tiles=2)["grids"]) == 2 + 1


def test_videos_come_as_bytes_or_paths_at_the_rate_asked_for(
    processor: SailVLProcessor, encoded_video: MakeVideo, tmp_path: Path
) -> None:
    data = encoded_video(count=100, fps=10)
    (tmp_path / "a.mp4").write_bytes(data)
    expected = processor(text="<video>", videos=data)
    assert len(expected["grids"]) == 16
    for videos in ([data], [[data]], str(tmp_path / "a.mp4"), [tmp_path / "a.mp4"]):
        assert torch.equal(processor(text="<video>", videos=videos)["patches"], expected["patches"])
    assert len(processor(text="<video>", videos=data, fps=5.0)["grids"]) == 50


def test_a_call_takes_transformers_options(processor: SailVLProcessor) -> None:
    image, text = Image.new("RGB", (24, 16)), ["a<image>b", "one two three four five"]
    first = processor([image], text, padding=True, truncation=True, return_tensors="pt")
    assert all(torch.equal(first[name], processor(images=image, text=text)[name]) for name in first)
    assert processor(text=text, images=image, padding="max_length", max_length=64)["input_ids"].shape == (2, 64)
    loose = processor(text=text, images=image, padding=False, return_tensors=None)
    assert [len(ids) for ids in loose["input_ids"]] != [len(loose["input_ids"][0])] * 2
    assert isinstance(processor(text=text, images=image, return_tensors="np")["input_ids"], np.ndarray)
    moved = first.to(torch.bfloat16)
    assert moved["patches"].dtype == torch.uint8


def test_truncation_may_cut_text_but_no_image(processor: SailVLProcessor) -> None:
    image = Image.new("RGB", (24, 16))
    whole = processor(text="a<image>and some more text", images=image)["input_ids"][0]
    cut = processor(text="a<image>and some more text", images=image, truncation=True, max_length=12)["input_ids"][0]
    assert len(whole) > 12 and cut.tolist() == whole[:12].tolist()
    for length in (1, 5, 8):
        with pytest.raises(ValueError, match=f"truncation to max_length={length} tokens cuts an image: . of . <"):
            processor(text="a<image>and some more text", images=image, truncation=True, max_length=length)


def test_options_of_one_call_do_not_reach_the_next(processor: SailVLProcessor) -> None:
    processor(text="a b c d e f", truncation=True, max_length=2, padding="max_length")
    assert processor(text="a b c d e f")["input_ids"].shape[1] > 2
