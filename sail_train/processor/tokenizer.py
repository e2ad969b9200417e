"""Tokenizers: training a small one, loading any fast one, and making it fit for turns, images and thoughts.

Ours are byte-level BPE with Qwen's splitting rule: each digit is a token of its own and never joins the space
before it, so that " 3" is the same two tokens wherever it stands.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from sail_train.processor.style import END_OF_TEXT, QWEN3, THINK_END, THINK_START, TURN_END, TURN_START, ChatStyle

SPECIAL_TOKENS = QWEN3.control_tokens
"""Of a tokenizer trained here. Never read from a sample's text: the template alone writes them."""
THINK_TOKENS = (THINK_START, THINK_END)
"""One token each, but part of the text: a decoded answer keeps them."""

_PIECES = ("vocab.json", "merges.txt")

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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a folder; ValueError if there is none.

    Qwen's is also read from vocab.json and merges.txt alone; of other models these two do not say how text is split.
    """
    whole, pieces = (folder / "tokenizer.json").is_file(), all((folder / name).is_file() for name in _PIECES)
    if not whole and not (pieces and _is_qwen(folder)):
        hint = f" ({' and '.join(_PIECES)} alone are read of Qwen2, Qwen2.5 and Qwen3)" if pieces else ""
        raise ValueError(
            f"{folder} holds no tokenizer that loads: it has no tokenizer.json{hint}; write one with transformers: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        # Not AutoTokenizer: beside a model's config.json it warns about a model type that it does not need.
        kind = PreTrainedTokenizerFast if whole else Qwen2Tokenizer
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no other
        raise ValueError(f"{folder} holds no tokenizer that loads: {error}") from error


def _is_qwen(folder: Path) -> bool:
    """Whether a folder's configs say that its tokenizer is Qwen's."""
    said = []
    for file, key in (("tokenizer_config.json", "tokenizer_class"), ("config.json", "model_type")):
        try:
            said.append(str(json.loads((folder / file).read_text(encoding="utf-8")).get(key)))
        except (OSError, ValueError, AttributeError):  # not there, or no object
            continue
    return any(name.lower().startswith(("qwen2", "qwen3")) for name in said)


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, style: ChatStyle = QWEN3) -> PreTrainedTokenizerBase:
    """Add the turn, image, thought and text tokens of `style` that `tokenizer` lacks, behind its own, in that order.

    Any tokenizer becomes one of ChatML by it; a token that begins every text (`bos`) is its own and never written.
    ValueError if it cannot hold a conversation.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer; give a folder with a tokenizer.json")
    vocabulary = tokenizer.get_vocab()
    control, text = style.control_tokens, (*THINK_TOKENS, *style.text_tokens)
    tokenizer.add_tokens([_special(token) for token in control if token not in vocabulary], special_tokens=True)
    tokenizer.add_tokens([_text(token) for token in text if token not in vocabulary])
    _read_as_text(tokenizer, text)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side = TURN_END, END_OF_TEXT, "left"
    if not vocabulary.keys() >= {END_OF_TEXT, TURN_START, TURN_END}:
        _check_stable(tokenizer.backend_tokenizer)
    return tokenizer


def _check_stable(backend: Tokenizer) -> None:
    """ValueError if a text is other tokens behind its turn's header than by itself, or is not the same when read back.

    An answer is trained on by itself, and stands behind its header when it is history; SentencePiece's tokenizers that
    put a space before every text (Llama 2, Mistral 7B) read it differently.
    """
    header, answer = (f"{role}\n" for role in ("assistant", "It is 3 < 4 | 图."))
    alone, behind = ([backend.encode(text, add_special_tokens=False).ids for text in texts]
                     for texts in ((header, answer), (header + answer,)))  # fmt: skip
    remedy = "take a language model with another (Qwen's, Llama 3's, Gemma's and Mistral's later ones are fit)"
    if alone[0] + alone[1] != behind[0]:
        raise ValueError(
            f"the tokenizer has no {TURN_START} and reads a text behind a line otherwise than by itself; {remedy}"
        )
    if backend.decode(behind[0], skip_special_tokens=False) != header + answer:
        raise ValueError(f"the tokenizer has no {TURN_START} and loses characters of a text; {remedy}")


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
