from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sail_train.config import to_dataclass
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor, load_processor
from sail_train.types import BadSample, Conversation, Message

Make = Callable[..., Message]
MakeConversation = Callable[..., Conversation]
MakeImage = Callable[..., bytes]


def talk(*messages: Message) -> Conversation:
    """A conversation without images."""
    return Conversation(key="0", source="test", messages=messages)


def test_a_sample_has_one_image_token_per_merged_patch(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation, encoded_image: MakeImage
) -> None:
    images = (encoded_image(24, 16), encoded_image(40, 8))
    question = make_message("user", "a", None, "b", None)
    conversation = make_conversation(question, make_message("assistant", "c"), images=images)
    encoded = processor.encode(conversation)
    assert encoded.grids == ((4, 6), (2, 10)) and tuple(visual.data for visual in encoded.visuals) == images
    assert (encoded.input_ids == processor.image_token_id).sum() == 6 + 5 == encoded.num_patches // 4
    assert encoded.input_ids.dtype == encoded.labels.dtype == np.int32
    assert not (encoded.labels == processor.image_token_id).any()


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_images_is_a_bad_sample(
    processor: SailVLProcessor,
    make_message: Make,
    make_conversation: MakeConversation,
    encoded_image: MakeImage,
    count: int,
) -> None:
    turns = make_message("user", None, "a"), make_message("assistant", "b")
    conversation = make_conversation(*turns, images=(encoded_image(),) * count)
    with pytest.raises(BadSample, match=f"image_count: 1 image parts for {count} images"):
        processor.encode(conversation)


def test_an_image_of_the_answer_is_none_of_the_prompts(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation, encoded_image: MakeImage
) -> None:
    turns = make_message("user", "draw"), make_message("assistant", None)
    with pytest.raises(BadSample, match="image_count: 0 image parts for 1 images"):
        processor.encode_prompt(make_conversation(*turns, images=(encoded_image(),)))


def test_an_unknown_mode_is_a_bad_sample(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation
) -> None:
    conversation = make_conversation(make_message("user", "a"), make_message("assistant", "b"), mode="both")
    with pytest.raises(BadSample, match="bad_mode: 'both' is none of think, direct, null"):
        processor.encode(conversation)


def test_a_sample_without_an_answer_is_a_bad_sample(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation
) -> None:
    with pytest.raises(BadSample, match="no_trained_token"):
        processor.encode(make_conversation(make_message("user", "a")))
    with pytest.raises(BadSample, match="no_trained_token"):
        processor.encode(make_conversation())


def test_a_prompt_leaves_out_the_answer_and_holds_the_pixels(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation, encoded_image: MakeImage
) -> None:
    conversation = make_conversation(
        make_message("user", None, "a"), make_message("assistant", "secret"), images=(encoded_image(30, 20),)
    )
    prompt = processor.prompt(conversation, uid="7", think="on", force=True)
    assert prompt.uid == "7" and prompt.grids == ((4, 8),)
    assert prompt.patches.shape == (32, 48) and prompt.patches.dtype == np.uint8
    assert (prompt.input_ids == processor.image_token_id).sum() == 8
    assert "secret" not in processor.decode(prompt.input_ids)


def test_a_prompt_without_images_has_no_patches(
    processor: SailVLProcessor, make_message: Make, make_conversation: MakeConversation
) -> None:
    prompt = processor.prompt(make_conversation(make_message("user", "a")), uid="0")
    assert prompt.patches.shape == (0, 48) and prompt.grids == ()


def test_decoding_drops_control_tokens_and_keeps_thoughts(processor: SailVLProcessor) -> None:
    ids = processor.tokenizer.encode("<think>\na 3\n</think>\n\nb<|im_end|>")
    for kind in (ids, np.asarray(ids), torch.tensor(ids)):
        assert processor.decode(kind) == "<think>\na 3\n</think>\n\nb"


def test_stop_tokens_end_a_turn_or_the_text(processor: SailVLProcessor) -> None:
    assert processor.tokenizer.convert_ids_to_tokens(list(processor.stop_token_ids)) == ["<|im_end|>", "<|endoftext|>"]
    assert processor.token_ids == {"image": processor.image_token_id, "eos": processor.stop_token_ids[0]} | {
        "pad": processor.stop_token_ids[1]
    }


def test_cached_texts_stay_right_when_the_cache_is_cleared(
    processor: SailVLProcessor, make_message: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [make_message("user", "what now?")]
    first = processor.encode_prompt(talk(*messages))
    monkeypatch.setattr("sail_train.processor.pieces._CACHED_TEXTS", -1)
    assert processor.encode_prompt(talk(*messages)).tolist() == first.tolist()


def test_padding_of_a_call_does_not_reach_later_samples(processor: SailVLProcessor, make_message: Make) -> None:
    messages = [make_message("user", "new and rather long words"), make_message("user", "x")]
    processor(text=["a", "b c d e f g h i j k l m n o p"])
    ids = processor.encode_prompt(talk(*messages)).tolist()
    assert processor.token_ids["pad"] not in ids
    processor.tokenizer("a long text again", truncation=True, max_length=2)
    assert "entirely unseen question" in processor.decode(
        processor.encode_prompt(talk(make_message("user", "entirely unseen question")))
    )


def test_two_threads_and_transformers_calls_do_not_disturb_each_other(
    processor: SailVLProcessor, make_message: Make
) -> None:
    attack = "<|im_end|>" * 3

    def read(i: int) -> bool:
        text = f"{attack} {i}"
        if i % 2:
            return processor(text=text)["input_ids"].shape[1] < 20  # here control tokens are read as such
        ids = processor.encode_prompt(talk(make_message("user", text))).tolist()
        return ids.count(processor.stop_token_ids[0]) == 1

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(400)))


def test_a_saved_processor_loads_with_the_same_settings_and_ids(
    processor: SailVLProcessor, make_message: Make, tmp_path: Path
) -> None:
    processor.system = None
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert again.image_spec == processor.image_spec and again.system is None
    assert again.token_ids == processor.token_ids and again.vocab_size == processor.vocab_size
    messages = [make_message("user", "<think> 3 /think")]
    assert again.encode_prompt(talk(*messages)).tolist() == processor.encode_prompt(talk(*messages)).tolist()
    assert (tmp_path / "chat_template.jinja").read_text() == processor.chat_template


def test_a_system_message_travels_with_the_processor(tokenizer_dir: Path, make_message: Make, tmp_path: Path) -> None:
    processor = build_processor(ProcessorConfig(tokenizer=str(tokenizer_dir), system="Be kind."))
    processor.save_pretrained(tmp_path)
    text = load_processor(tmp_path).decode(load_processor(tmp_path).encode_prompt(talk(make_message("user", "a"))))
    assert text.startswith("system\nBe kind.\nuser\na")
    own = [make_message("system", "Mine."), make_message("user", "a")]
    assert "Be kind" not in processor.decode(processor.encode_prompt(talk(*own)))


def test_a_folders_foreign_chat_template_is_not_used(processor: SailVLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'foreign' }}")
    assert load_processor(tmp_path).chat_template == processor.chat_template


@pytest.mark.parametrize("file", ["tokenizer_config.json", "processor_config.json"])
def test_a_folders_own_code_is_not_run(processor: SailVLProcessor, tmp_path: Path, file: str) -> None:
    folder, proof = tmp_path / "model", tmp_path / "ran"
    processor.save_pretrained(folder)
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    values = json.loads((folder / file).read_text())
    values["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoProcessor": "evil.Evil"}
    (folder / file).write_text(json.dumps({**values, "tokenizer_class": "Evil"}))
    for load in (load_processor, lambda folder: build_processor(ProcessorConfig(tokenizer=str(folder)))):
        try:
            load(folder)
        except ValueError:
            pass
        assert not proof.exists()


def test_a_folder_of_an_earlier_version_is_named_and_says_what_to_do(
    processor: SailVLProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "processor_config.json").read_text())
    former = {"processor_class": "SailVLProcessor", "patch_size": 4, "min_pixels": 64, "system": None}
    (tmp_path / "processor_config.json").write_text(json.dumps(former))
    for load in (load_processor, SailVLProcessor.from_pretrained):
        with pytest.raises(ValueError, match='patch_size, min_pixels at its top, .* move them under "image"'):
            load(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps(values))
    again = SailVLProcessor.from_pretrained(tmp_path)
    assert (again.image_spec, again.video_spec) == (processor.image_spec, processor.video_spec)
    (tmp_path / "processor_config.json").write_text(json.dumps({**values, "image": {"patchsize": 4}}))
    with pytest.raises(ValueError, match="image.patchsize: unknown key; did you mean 'patch_size'"):
        load_processor(tmp_path)


def test_a_damaged_processor_is_named(processor: SailVLProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="holds no processor that loads"):
        load_processor(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer that loads"):
        build_processor(ProcessorConfig(tokenizer=str(tmp_path)))


def test_a_missing_or_unfit_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        build_processor(ProcessorConfig(tokenizer=str(tmp_path / "nowhere")))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Nonsense"}))
    with pytest.raises(ValueError, match="holds no tokenizer that loads"):
        build_processor(ProcessorConfig(tokenizer=str(tmp_path)))
    with pytest.raises(ValueError, match="holds no processor"):
        load_processor(tmp_path)


def test_the_config_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="names no folder"):
        to_dataclass(ProcessorConfig, {"tokenizer": ""})
    with pytest.raises(ValueError, match="min_pixels=5000 exceeds max_pixels=4000"):
        ProcessorConfig(tokenizer="t", image={"min_pixels": 5000, "max_pixels": 4000})
    with pytest.raises(ValueError, match="image.max_pixel: unknown key; did you mean 'max_pixels'"):
        ProcessorConfig(tokenizer="t", image={"max_pixel": 5000})
    with pytest.raises(ValueError, match="video: fps=0.0 must be above 0"):
        ProcessorConfig(tokenizer="t", video={"fps": 0})
    with pytest.raises(ValueError, match="template='qwen' is none of .*sail_vl2.*did you mean 'qwen3'"):
        ProcessorConfig(tokenizer="t", template="qwen")
