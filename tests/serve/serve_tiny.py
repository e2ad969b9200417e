"""A tiny real model that has learnt four answers by heart, behind a real server on a port of its own."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image
from torch import Tensor

from sail_train.model.build import build_model, save_model
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.serve.request import Limits
from sail_train.serve.server import Server
from sail_train.serve.service import load
from sail_train.types import Conversation, Message, Part

COLOUR = "What colour is it?"
ALPHABET = "Say the alphabet."
THOUGHT, ANSWER = "The square is red.", "It is red, \u00e9\u4e2d."
LETTERS = " ".join("abcdefghijklmnopqrstuvwxyz")

LEARNT = (
    (COLOUR, True, "on", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
    (COLOUR, True, "off", f"<think>\n\n</think>\n\n{ANSWER}"),
    (COLOUR, True, "auto", f"<think>\n\n</think>\n\n{ANSWER}"),
    (ALPHABET, False, "auto", f"<think>\n\n</think>\n\n{LETTERS}"),
)
"""(question, whether with a picture, think, what is said)."""


def picture(side: int = 56, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(file, kind)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def about_picture(question: str = COLOUR, **fields: Any) -> dict[str, Any]:
    """A greedy request about one picture."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture())}}, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


def about(question: str = ALPHABET, **fields: Any) -> dict[str, Any]:
    """A greedy request without a picture."""
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, **fields}


def make_speaker(root: Path) -> Path:
    """A model folder as a run called "speaker" leaves it."""
    train_tokenizer([" ".join((q, a)) for q, _, _, a in LEARNT] * 2, 320).save_pretrained(root / "tokenizer")
    processor = build_processor(ProcessorConfig(tokenizer=str(root / "tokenizer")))
    shapes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = ModelConfig(
        vision=VisionConfig(**shapes, num_hidden_layers=1, initializer_range=0.2),
        language=LanguageConfig(
            **shapes, num_hidden_layers=2, num_key_value_heads=1, head_dim=16, initializer_range=0.2,
            max_position_embeddings=512,
        ),
    )  # fmt: skip
    ids, size = processor.token_ids, processor.vocab_size
    model = build_model(config, parents={}, seed=0, token_ids=ids, vocab_size=size)
    learn(model, processor)
    save_model(model, root / "speaker" / "model")
    processor.save_pretrained(root / "speaker" / "model")
    return root / "speaker" / "model"


def learn(model: Any, processor: SailVLProcessor) -> None:
    batches = [taught(processor, *line) for line in LEARNT]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        losses = [model(**batch).loss for batch in batches]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        if max(loss.item() for loss in losses) < 0.01:
            return
    raise AssertionError("the tiny model did not learn its lines")


def taught(processor: SailVLProcessor, question: str, pictured: bool, think: str, said: str) -> dict[str, Tensor]:
    parts = (*[Part(type="image")] * pictured, Part(type="text", text=question))
    asked = Conversation(
        key="k", source="s", messages=(Message(role="user", content=parts),), images=(picture(),) * pictured
    )
    prompt = processor.prompt(asked, uid="u", think=think)
    answer = [*processor.tokenizer(said, add_special_tokens=False).input_ids, processor.stop_token_ids[0]]
    ids = torch.tensor([[*prompt.input_ids.tolist(), *answer]])
    labels = ids.clone()
    labels[:, : len(prompt.input_ids)] = -100
    grids = torch.tensor(prompt.grids, dtype=torch.int64).reshape(-1, 2)
    return {"input_ids": ids, "labels": labels, "patches": torch.from_numpy(prompt.patches), "grids": grids}


class Served:
    """A running server and a client of it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.service = server.service
        self.url = server.url
        self.client = httpx.Client(base_url=server.url, timeout=30)

    def ask(self, body: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body)

    def slow(self, seconds: float) -> None:
        """Every step of the model takes so long from now on."""
        self.service.worker._session.model.language_model.register_forward_pre_hook(lambda *_: time.sleep(seconds))

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 5.0) -> dict[str, Any]:
        """/health, once it is as wanted."""
        deadline = time.monotonic() + seconds
        while not condition(health := self.client.get("/health").json()):
            assert time.monotonic() < deadline, f"still {health}"
            time.sleep(0.01)
        return health


@contextmanager
def serving(
    folder: Path, *, host: str = "127.0.0.1", max_batch: int = 4, queue: int = 8, **limits: int
) -> Iterator[Served]:
    with Server(host, 0) as server:
        chosen = Limits(**{"max_tokens": 200, **limits})
        server.service = load(folder, dtype="float32", max_batch=max_batch, queue=queue, limits=chosen)
        server.service.worker.start()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        served = Served(server)
        try:
            yield served
        finally:
            served.client.close()
            server.service.worker.stop()
            server.shutdown()
            thread.join()
