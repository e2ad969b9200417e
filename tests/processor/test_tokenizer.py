from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

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


def test_a_tokenizer_without_turns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no <\|endoftext\|>, <\|im_start\|>, <\|im_end\|>"):
        fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, []))))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow is not a fast tokenizer"):
        fit_tokenizer(Slow())  # type: ignore[arg-type]
