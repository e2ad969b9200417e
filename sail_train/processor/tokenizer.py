"""Tokenizers: training a small one, and making any fast one fit for images and thoughts.

Both are byte-level BPE with Qwen's splitting rule: each digit is a token of its own and never joins the space
before it, so that " 3" is the same two tokens wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sail_train.processor.style import END_OF_TEXT, QWEN3, THINK_END, THINK_START, TURN_END, TURN_START, ChatStyle

SPECIAL_TOKENS = QWEN3.control_tokens
"""Of a tokenizer trained here. Never read from a sample's text: the template alone writes them."""
THINK_TOKENS = (THINK_START, THINK_END)
"""One token each, but part of the text: a decoded answer keeps them."""

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's and Qwen3's pre-tokenisation."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocab_size` tokens at most; the same texts give the same bytes.

    ValueError if `vocab_size` has no room for the 256 bytes and the added tokens.
    """
    added = [_special(token) for token in SPECIAL_TOKENS] + [_text(token) for token in THINK_TOKENS]
    if vocab_size < 256 + len(added):
        raise ValueError(f"vocab_size={vocab_size} must be at least {256 + len(added)}: all bytes and the added tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, style: ChatStyle = QWEN3) -> PreTrainedTokenizerBase:
    """Add the image, thought and text tokens of `style` that `tokenizer` lacks, behind its own and in that order.

    ValueError if it cannot hold a conversation.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer; give a folder with a tokenizer.json")
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in (END_OF_TEXT, TURN_START, TURN_END) if token not in vocabulary]:
        raise ValueError(f"the tokenizer has no {', '.join(missing)}; Qwen2's and Qwen3's have, and train_tokenizer's")
    control, text = style.control_tokens, (*THINK_TOKENS, *style.text_tokens)
    tokenizer.add_tokens([_special(token) for token in control if token not in vocabulary], special_tokens=True)
    tokenizer.add_tokens([_text(token) for token in text if token not in vocabulary])
    _read_as_text(tokenizer, text)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = TURN_END, END_OF_TEXT, "left"
    return tokenizer


def _read_as_text(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """Make `tokens` part of the text. Released models have <box> as a control token: decoding would leave it out, and
    in a sample's text it would be spelled out."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not special.intersection(tokens):
        return
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for added in state["added_tokens"]:
        added["special"] = added["special"] and added["content"] not in tokens
    # A token's kind is fixed once it is added, and transformers has no way to exchange the backend.
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _text(token: str) -> AddedToken:
    return AddedToken(token, special=False, normalized=False)
