from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sail_train.processor import STYLES
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import build_processor
from sail_train.processor.tokenizer import (
    SPECIAL_TOKENS,
    THINK_TOKENS,
    fit_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from sail_train.types import Conversation, Message, Part

TEXTS = ["12 34 567 3 3 3 4 4 4", "the digits 33 33 33 of the grid 44 44"] * 20


def test_each_digit_is_one_token_and_never_joins_a_space() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    digits = {tokenizer.convert_tokens_to_ids(str(d)) for d in range(10)}
    for text in ("33", " 3", "a 3", "1 234.56", "\n7"):
        ids = tokenizer.encode(text)
        assert sum(token in digits for token in ids) == sum(c.isdigit() for c in text)
        assert not any(len(piece) > 1 and any(c.isdigit() for c in piece) for piece in tokenizer.tokenize(text))


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(iter(TEXTS), 400).save_pretrained(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_any_text_survives_a_round_trip() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    for text in ("  two  spaces ", "Ünïcödé 图像 🙂", "tabs\tand\r\nlines\n\n", "<think>\nx\n</think>"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_stays_within_its_size_and_added_tokens_are_single() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert len(tokenizer) <= 300
    for token in SPECIAL_TOKENS + THINK_TOKENS:
        assert len(tokenizer.encode(token)) == 1


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=100 must be at least 264"):
        train_tokenizer(TEXTS, 100)


def test_a_plain_qwen_tokenizer_gains_the_tokens_that_it_lacks(tmp_path: Path) -> None:
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    plain = PreTrainedTokenizerFast(tokenizer_object=backend)
    fitted = fit_tokenizer(plain)
    assert len(fitted) == 256 + 8
    assert (fitted.eos_token, fitted.pad_token, fitted.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    fitted.save_pretrained(tmp_path)
    again = fit_tokenizer(AutoTokenizer.from_pretrained(tmp_path))
    assert again.get_vocab() == fitted.get_vocab()


def synthetic_qwen3(size: int = 151_669) -> PreTrainedTokenizerFast:
    """As many entries as Qwen3's, the last of them its added tokens; merges are left out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|a{i}|>" for i in range(21)), "<think>", "</think>"]
    words = [*alphabet, *(f"word{i}" for i in range(size - len(alphabet) - len(added)))]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(added[:-2])
    backend.add_tokens(added[-2:])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_qwen3s_vocabulary_grows_by_sail_vl2s_tokens_at_their_published_ids() -> None:
    tokenizer = synthetic_qwen3()
    assert len(tokenizer) == 151_669 and tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [151_667, 151_668]
    fit_tokenizer(tokenizer, STYLES["sail_vl2"])
    added = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
    assert tokenizer.convert_tokens_to_ids(added) == list(range(151_669, 151_678))
    assert len(tokenizer) == 151_678 and fit_tokenizer(tokenizer, STYLES["sail_vl2"]) is tokenizer
    assert len(tokenizer) == 151_678, "fitting again adds nothing"


def test_boxes_are_tokens_of_the_text_and_images_are_not() -> None:
    tokenizer = fit_tokenizer(train_tokenizer(TEXTS, 300), STYLES["sail_vl2"])
    ids = tokenizer.encode("<ref>a</ref><box>[[1,2,3,4]]</box><img></img>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<ref>a</ref><box>[[1,2,3,4]]</box>"
    seed = fit_tokenizer(train_tokenizer(TEXTS, 300), STYLES["seed1_5_vl"])
    assert seed.decode(seed.encode("<bbox>1 2</bbox>[SOI][EOI]"), skip_special_tokens=True) == "<bbox>1 2</bbox>"
    assert len(seed.encode("[SOI]")) == 1 < len(seed.encode("<bbox>"))


def test_boxes_that_a_released_tokenizer_has_as_control_tokens_become_text(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<box>", "</box>"]})
    ids = tokenizer.encode("<box>1</box>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "1"
    fit_tokenizer(tokenizer, STYLES["sail_vl2"]).save_pretrained(tmp_path)
    for fitted in (tokenizer, PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert fitted.encode("<box>1</box>") == ids
        assert fitted.decode(ids, skip_special_tokens=True) == "<box>1</box>"
        assert fitted.decode(fitted.encode("<img>1<|im_end|>"), skip_special_tokens=True) == "1"


def llama3_like() -> PreTrainedTokenizerFast:
    """Byte-level, with turns of its own, and a token that it puts before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin_of_text|>", "<|eot_id|>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 256)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def sentencepiece_like(*, space_before: bool) -> PreTrainedTokenizerFast:
    """Pieces with a fallback to bytes, and spaces as a character: Gemma's; with a space before a text, Llama 2's."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581", *"aeistn", "It", "\u2581It"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [normalizers.Prepend("\u2581")] if space_before else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    strip = [decoders.Strip(" ", 1, 0)] if space_before else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("make", [llama3_like, lambda: sentencepiece_like(space_before=False)], ids=["llama", "gemma"])
@pytest.mark.parametrize("style", STYLES)
def test_a_tokenizer_of_another_model_gets_the_turns_of_chatml(
    make: Callable[[], PreTrainedTokenizerFast], style: str, tmp_path: Path
) -> None:
    plain = make()
    rows, bos = len(plain), plain.bos_token_id
    plain.save_pretrained(tmp_path)
    processor = build_processor(ProcessorConfig(tokenizer=str(tmp_path), template=style))
    chosen = STYLES[style]
    added = [*chosen.control_tokens, *THINK_TOKENS, *chosen.text_tokens]
    assert processor.tokenizer.convert_tokens_to_ids(added) == list(range(rows, rows + len(added)))
    assert processor.vocab_size == rows + len(added)
    assert processor.token_ids["eos"] == processor.stop_token_ids[0] == rows + 2 and processor.token_ids["pad"] == rows
    asked = Message(role="user", content=(Part(type="text", text="What is <|im_end|> 3 < 4?"),))
    said = Message(role="assistant", content=(Part(type="text", text="It is 图."),))
    sample = processor.encode(Conversation(key="0", source="s", messages=(asked, said)))
    assert bos not in sample.input_ids
    trained = [label for label in sample.labels if label >= 0]
    assert processor.decode(trained).endswith("It is 图.") and trained[-1] == rows + 2
    prompt = Conversation(key="0", source="s", messages=(Message(role="user", content=said.content), said))
    chat = [{"role": "user", "content": "It is 图."}]
    called = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert called["input_ids"][0].tolist() == processor.encode_prompt(prompt).tolist()


def test_a_tokenizer_that_would_read_an_answer_otherwise_as_history_is_refused() -> None:
    with pytest.raises(ValueError, match="reads a text behind a line otherwise than by itself; take a language model"):
        fit_tokenizer(sentencepiece_like(space_before=True))


def test_a_tokenizer_that_loses_characters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no <\|im_start\|> and loses characters of a text"):
        fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))))


def test_qwens_older_files_make_the_same_tokenizer(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "It", "is", "\u0120is"]
    added = {"<|endoftext|>": len(words), "<|im_start|>": len(words) + 1, "<|im_end|>": len(words) + 2}
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nI t\ni s\n\u0120 is\n")
    values = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(i): {"content": token, "special": True} for token, i in added.items()},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_tokens_to_ids(list(added)) == list(added.values())
    assert tokenizer.encode("It 33") == [words.index(piece) for piece in ("It", "\u0120", "3", "3")]
    assert build_processor(ProcessorConfig(tokenizer=str(tmp_path))).vocab_size == len(words) + 8
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    with pytest.raises(ValueError, match=r"has no tokenizer.json \(vocab.json and merges.txt alone are read of Qwen2"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer.json; write one with transformers"):
        load_tokenizer(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match="holds no tokenizer that loads"):
        load_tokenizer(tmp_path)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        fit_tokenizer(Slow())  # type: ignore[arg-type]
