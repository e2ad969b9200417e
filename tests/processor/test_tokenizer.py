from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sail_train.processor import STYLES
from sail_train.processor.tokenizer import SPECIAL_TOKENS, THINK_TOKENS, fit_tokenizer, train_tokenizer

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


def test_a_tokenizer_without_turns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>, <\|im_start\|>, <\|im_end\|>"):
        fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        fit_tokenizer(Slow())  # type: ignore[arg-type]
