"""A model to ask: from a request's body to the pieces of its answers, whatever carries them.

`load` (folder -> model, processor, worker) -> `Service.ask` (body -> `Exchange`: checked, images decoded, queued) ->
`Exchange.chunks` or `Exchange.completion`. Images are decoded by `PREPARING` requests at once, so that many large ones
cannot take the machine's memory together.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from sail_train import dist
from sail_train.generate.generator import Generator
from sail_train.model.build import load_model
from sail_train.processor.processor import SailVLProcessor, load_processor
from sail_train.serve import protocol
from sail_train.serve.answer import Answer, Piece
from sail_train.serve.protocol import Gone, Head, RequestError
from sail_train.serve.request import Limits, Question, parse, read_question
from sail_train.serve.worker import Busy, Job, Worker
from sail_train.types import BadSample, Prompt

PREPARING = 2
"""Requests whose images are decoded at once."""

LOOK_SECONDS = 0.25
"""How often it is looked whether the reader of an answer is still there."""

UID = "chat"
"""Of every prompt: the seed alone decides what is drawn."""


class Service:
    """A model, its processor and its worker, under a name."""

    def __init__(self, name: str, processor: SailVLProcessor, worker: Worker, *, context: int, limits: Limits) -> None:
        """`context` is the longest sequence of the model, in tokens."""
        self.name = name
        self.processor = processor
        self.worker = worker
        self.context = context
        completions, tokens = min(limits.max_completions, worker.rows), min(limits.max_tokens, context)
        self.limits = replace(limits, max_completions=completions, max_tokens=tokens)
        self.created = int(time.time())
        self._preparing = threading.BoundedSemaphore(PREPARING)

    def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.model(self.name)]}

    def model(self, name: str) -> dict[str, Any]:
        """What is served under `name`, with its limits; RequestError if it is not."""
        self._check_model(name)
        limits = {"max_tokens": self.limits.max_tokens, "max_images": self.limits.max_images}
        about = {"id": self.name, "object": "model", "created": self.created, "owned_by": "sail_train"}
        return {**about, "max_model_len": self.context, **limits, "max_body": self.limits.max_body}

    def health(self) -> tuple[int, dict[str, Any]]:
        """(HTTP status, what to say): 503 when the thread that answers has ended."""
        alive = self.worker.alive
        counts = {"active": self.worker.active, "waiting": self.worker.waiting}
        return (200 if alive else 503), {"status": "ok" if alive else "stopped", "model": self.name, **counts}

    def ask(self, data: bytes) -> Exchange:
        """Checks a body, decodes its images and queues it; RequestError if it cannot be served."""
        with self._preparing:
            question = read_question(parse(data), self.limits)
            if question.model is not None:
                self._check_model(question.model)
            prompt, max_new_tokens = self._prompt(question)
        try:
            job = self.worker.submit(prompt, question.sampling(max_new_tokens))
        except Busy as error:
            raise RequestError(f"{error}; try again later", status=503, code="overloaded") from None
        return Exchange(self, question, job)

    def _prompt(self, question: Question) -> tuple[Prompt, int]:
        """The prompt, and how many tokens may follow it: told from its images' headers, before they are decoded."""
        asked = question.conversation
        try:
            room = self._room(question, len(self.processor.encode_prompt(asked, think=question.think)))
            return self.processor.prompt(asked, uid=UID, think=question.think), room
        except BadSample as error:
            raise RequestError(f"messages: {error}", param="messages", code=error.reason) from None

    def _check_model(self, name: str) -> None:
        if name != self.name:
            raise RequestError(
                f"there is no model {name[:64]!r} here; {self.name!r} is served",
                status=404, param="model", code="model_not_found",
            )  # fmt: skip

    def _room(self, question: Question, prompt_tokens: int) -> int:
        """How many tokens a completion may have."""
        room = self.context - prompt_tokens
        if room < 1 or (question.max_tokens or 0) > room:
            asked = f" and max_tokens={question.max_tokens}" if question.max_tokens else ""
            raise RequestError(
                f"messages have {prompt_tokens} tokens{asked}; the model's context has {self.context}",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        return question.max_tokens or min(room, self.limits.max_tokens)


class Exchange:
    """One question that was queued, and its answers. It is read once, by `chunks` or by `completion`."""

    def __init__(self, service: Service, question: Question, job: Job) -> None:
        self.question = question
        self.head = Head(id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()), model=service.name)
        self.answers = [Answer(service.processor, stop=question.stop) for _ in range(question.n)]
        self.tokens = [0] * question.n
        """Read of each answer, its end token included."""
        self._reasons: dict[int, str] = {}
        """Why each answer ended, of those that have."""
        self._worker = service.worker
        self._job = job

    @property
    def prompt_tokens(self) -> int:
        return len(self._job.prompt.input_ids)

    def completion(self, gone: Callable[[], bool]) -> dict[str, Any]:
        """The whole answers. `gone` says whether their reader has left: then the rows are freed, and Gone raised."""
        for _ in self._read(gone):
            pass
        choices = [
            protocol.choice(index, thought=answer.thought, answer=answer.answer, finish_reason=self._reasons[index])
            for index, answer in enumerate(self.answers)
        ]
        return protocol.completion(self.head, choices, self.usage())

    def chunks(self, gone: Callable[[], bool]) -> Iterator[bytes]:
        """Server-sent events as the answers are written; an error on the way is the last one."""
        opened: set[int] = set()
        for index, piece, reason in self._read(gone):
            if index not in opened:
                opened.add(index)
                yield self._chunk(index, {"role": "assistant", "content": ""})
            if piece.thought:
                yield self._chunk(index, {"reasoning_content": piece.thought})
            if piece.answer:
                yield self._chunk(index, {"content": piece.answer})
            if reason:
                yield self._chunk(index, {}, reason)
        if self.question.include_usage:
            yield protocol.event(protocol.last_chunk(self.head, self.usage()))
        yield protocol.DONE

    def leave(self) -> None:
        """Free the rows of what is not finished."""
        self._worker.leave(self._job)

    def usage(self) -> dict[str, Any]:
        thought = sum(answer.thought_tokens for answer in self.answers)
        return protocol.usage(prompt=self.prompt_tokens, completion=sum(self.tokens), thought=thought)

    def _chunk(self, index: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        return protocol.event(protocol.chunk(self.head, index, delta, finish_reason=reason))

    def _read(self, gone: Callable[[], bool]) -> Iterator[tuple[int, Piece, str | None]]:
        """(answer, what is new of it, why it ended if it has) for each token; RequestError if the model fails."""
        try:
            looked = time.monotonic()
            while len(self._reasons) < self.question.n:
                if time.monotonic() - looked > LOOK_SECONDS:
                    looked = time.monotonic()
                    if gone():
                        raise Gone
                try:
                    event = self._job.events.get(timeout=LOOK_SECONDS)
                except Empty:
                    continue
                if event.error is not None:
                    raise RequestError(event.error, status=503, code="model_failed")
                if event.copy not in self._reasons:  # else: drawn while its stop string was read
                    yield self._take(event.copy, event.token, event.finish_reason)
        finally:
            self.leave()

    def _take(self, index: int, token: int, reason: str | None) -> tuple[int, Piece, str | None]:
        answer = self.answers[index]
        self.tokens[index] += 1
        piece = answer.feed([token])
        if reason and not answer.stopped:
            last = answer.end()
            piece = Piece(thought=piece.thought + last.thought, answer=piece.answer + last.answer)
        if answer.stopped:
            reason = "stop"
            self._worker.leave(self._job, index)
        if reason:
            self._reasons[index] = reason
        return index, piece, reason


def chosen_dtype(dtype: str, device: torch.device) -> str:
    """What "auto" means on a device: bfloat16 on a GPU, where 4 bytes a weight would be wasted, else float32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.type == "cuda" else "float32"


def load(folder: Path, *, dtype: str, max_batch: int, queue: int, limits: Limits) -> Service:
    """The model of a folder, on the GPU if there is one, in `dtype` ("auto": bfloat16 there, else float32)."""
    device = dist.device()
    model: Any = load_model(folder, dtype=chosen_dtype(dtype, device))
    processor = load_processor(folder)
    generator = Generator(
        model.to(device),
        stop_token_ids=processor.stop_token_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_batch=max_batch,
        banned_token_ids=(processor.image_token_id,),
    )
    worker = Worker(generator, queue=queue)
    context = model.config.text_config.max_position_embeddings
    return Service(name_of(folder), processor, worker, context=context, limits=limits)


def name_of(folder: Path) -> str:
    """A model's name, without the path to it: its folder's, or its run's."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name or "model"
