"""One thread that owns the model: questions wait in a short queue, are let in first come first served, and are
written together, a token at a time.

`submit` (any thread) -> the queue -> `Session.admit`, one question between two steps, so that those who are being
answered wait for one prefill at most -> `Session.step` -> each job's `events`. `leave` (any thread) gives a row away
whose reader has gone. An error fails the jobs it hits, never the thread: the next question finds it at work.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue

import torch

from sail_train.generate.generator import Generator
from sail_train.generate.session import PromptTooLarge, Session, Writing
from sail_train.types import Prompt, Sampling

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = "out of memory: ask with fewer or smaller images, or for fewer tokens"


class Busy(Exception):
    """The queue is full, or the worker stops."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One token of one completion, or what went wrong with all of them."""

    copy: int = 0
    token: int = 0
    finish_reason: str | None = None
    """"stop" or "length" with the last token."""
    error: str | None = None


@dataclass(kw_only=True, eq=False)
class Job:
    """A question in the queue or being answered."""

    prompt: Prompt
    sampling: Sampling
    events: SimpleQueue[Event] = field(default_factory=SimpleQueue)
    left: set[int] = field(default_factory=set)
    """Completions that nobody reads any more."""


class Worker:
    """The thread, its queue and its rows."""

    def __init__(self, generator: Generator, *, queue: int) -> None:
        """`queue` is how many questions wait at most, beside those that are being answered."""
        self.queue = queue
        self._session = Session(generator)
        self._waiting: deque[Job] = deque()
        self._writing: dict[Writing, Job] = {}
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def rows(self) -> int:
        return self._session.rows

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def active(self) -> int:
        """Completions being written."""
        return len(self._writing)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the token being drawn; every job hears that it is not finished."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self.alive:
            self._thread.join()

    def submit(self, prompt: Prompt, sampling: Sampling) -> Job:
        """Queues a question; Busy if as many wait as may."""
        job = Job(prompt=prompt, sampling=sampling)
        with self._condition:
            if self._stopping or len(self._waiting) >= self.queue:
                raise Busy("the server stops" if self._stopping else f"{self.queue} requests are waiting already")
            self._waiting.append(job)
            self._condition.notify()
        return job

    def leave(self, job: Job, copy: int | None = None) -> None:
        """Nobody reads a completion any more (None: any of the job): its row goes to the next one."""
        job.left |= {copy} if copy is not None else set(range(job.sampling.n))
        with self._condition:
            if job in self._waiting and len(job.left) == job.sampling.n:
                self._waiting.remove(job)

    def _run(self) -> None:
        while not self._stopping:
            job = self._next()
            try:
                if job is not None:
                    self._admit(job)
                self._step()
            except Exception as error:  # whatever a model can raise: the jobs hear of it, the thread goes on
                logger.exception("the model failed")
                self._fail(_reason(error), [job] if job else [])
        with self._condition:
            waiting, self._waiting = list(self._waiting), deque()
        self._fail("the server stops", waiting)

    def _next(self) -> Job | None:
        """The first in the queue, once there are rows for it; None to go on with those that live."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or self._waiting or self._writing)
            if self._waiting and self._waiting[0].sampling.n <= self._session.free and not self._stopping:
                return self._waiting.popleft()
        return None

    def _admit(self, job: Job) -> None:
        try:
            begun = self._session.admit(job.prompt, job.sampling)
        except PromptTooLarge:  # the others go on
            job.events.put(Event(error=OUT_OF_MEMORY))
            return
        self._writing |= dict.fromkeys(begun, job)
        self._deliver(begun)

    def _step(self) -> None:
        for writing, job in list(self._writing.items()):
            if writing.copy in job.left:
                writing.finish_reason = "left"
                del self._writing[writing]
        self._deliver(self._session.step())

    def _deliver(self, written: list[Writing]) -> None:
        for writing in written:
            reason = writing.finish_reason
            job = self._writing.pop(writing) if reason else self._writing[writing]
            job.events.put(Event(copy=writing.copy, token=writing.token_ids[-1], finish_reason=reason))

    def _fail(self, reason: str, others: list[Job]) -> None:
        """Tell every job that is being answered, and `others`; the rows are forgotten."""
        for job in {*self._writing.values(), *others}:
            job.events.put(Event(error=reason))
        self._writing.clear()
        self._session.clear()


def _reason(error: Exception) -> str:
    """What a stranger is told: no text of ours, which could hold paths."""
    if isinstance(error, torch.OutOfMemoryError):
        return OUT_OF_MEMORY
    return f"the model failed ({type(error).__name__})"
