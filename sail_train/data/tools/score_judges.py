"""Who judges samples: an OpenAI-compatible endpoint, or a model of ours. Both take a batch of cases at a time.

A verdict that cannot be had (no answer, none that can be read, an image that does not decode) is a failure with a
reason, never a score.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sail_train.data.tools.judgements import QUESTIONS, judged_text
from sail_train.data.writer import image_extension
from sail_train.processor.images import open_image
from sail_train.rewards.config import JudgeConfig
from sail_train.rewards.judge import Judge, is_address, shorten
from sail_train.rewards.judge_protocol import wrap
from sail_train.types import BadSample, Conversation, Message, Part, Prompt, Sampling, Score

MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
REPLY_TOKENS = 8
"""Enough for an empty thought and a number or a word, and for nothing else."""
OWN_FIELDS = ("model", "messages")
"""Of a request, that `extra_body` may not touch."""


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Which judge, and how it is asked. Hashable: a process makes each judge once."""

    endpoint: str = ""
    """Base address of an OpenAI-compatible endpoint, as in http://127.0.0.1:8000/v1."""
    model: str = ""
    """Its name for the model; without an endpoint the run directory or model folder that judges."""
    api_key_env: str = ""
    """Name of the environment variable that holds the endpoint's key."""
    timeout: float = 60.0
    """Seconds that one request may take."""
    max_retries: int = 3
    concurrency: int = 8
    """Requests in flight at once; rows that are generated at once by a model of ours is `batch`."""
    batch: int = 64
    """Cases that are judged together, and then written down."""
    max_chars: int = 8000
    """Longest text judged; the middle of a longer one is left out."""
    dtype: str = "float32"
    """Of a model of ours: "float32" or "bfloat16"."""
    extra_body: str = ""
    """Fields for the requests to an endpoint, as a JSON object; a null takes a field of ours away."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError(
                "which judge? Give --model: a run or model folder, or with --endpoint a model's name there"
            )
        if self.batch < 1:
            raise ValueError(f"--batch {self.batch} must be at least 1")
        if self.endpoint and not is_address(self.endpoint):
            raise ValueError(f"--endpoint {self.endpoint!r} should be http://HOST/v1 or https://HOST/v1")
        if self.extra_body and not self.endpoint:
            raise ValueError("--extra-body is for an --endpoint: a model of ours is asked in this process")
        taken = [name for name in OWN_FIELDS if name in self.extra_fields()]
        if taken:
            raise ValueError(
                f"--extra-body: {taken[0]!r} is what the tool says; {', '.join(OWN_FIELDS)} stay as they are"
            )

    @property
    def name(self) -> str:
        """Without the endpoint's address, which may change between two runs and need not travel with the data."""
        return self.model if self.endpoint else str(Path(self.model).resolve())

    @property
    def settings(self) -> str:
        """A digest of what else changes verdicts; empty where nothing is set, as in columns that do not tell it."""
        if self.endpoint:
            chosen, usual = json.dumps(self.extra_fields(), sort_keys=True), "{}"
        else:
            chosen, usual = self.dtype, "float32"
        return "" if chosen == usual else hashlib.blake2b(chosen.encode(), digest_size=8).hexdigest()

    def extra_fields(self) -> dict[str, Any]:
        """ValueError unless `extra_body` is empty or one JSON object."""
        try:
            fields = json.loads(self.extra_body or "{}")
        except ValueError as error:
            raise ValueError(f"--extra-body {self.extra_body!r} is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"--extra-body {self.extra_body!r} should be a JSON object, as in '{{\"top_k\": 1}}'")
        return fields


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question about one sample."""

    place: int
    column: str
    """A name in `QUESTIONS`."""
    conversation: Conversation


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to a case."""

    value: int | None
    """None: there is none."""
    failure: str = ""
    """Why there is none: short and countable."""
    detail: str = ""
    """What exactly was said."""


class SampleJudge(Protocol):
    """Judges cases, in order."""

    def judge(self, cases: Sequence[Case]) -> list[Verdict]: ...


class EndpointJudge:
    """Asks an endpoint, several requests at once."""

    def __init__(self, options: JudgeOptions) -> None:
        self._options = options
        self._client = Judge(
            JudgeConfig(
                url=options.endpoint,
                model=options.model,
                timeout=options.timeout,
                max_retries=options.max_retries,
                concurrency=options.concurrency,
                max_chars=options.max_chars,
                api_key_env=options.api_key_env,
            )
        )

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        self._client.unreachable = False
        with ThreadPoolExecutor(self._options.concurrency) as threads:
            return list(threads.map(self._judge, cases))

    def _judge(self, case: Case) -> Verdict:
        try:
            body = request_body(case, self._options)
        except (BadSample, ValueError) as error:
            return Verdict(value=None, failure=_reason(error))
        outcome = self._client.ask(body, QUESTIONS[case.column].read)
        if isinstance(outcome, Score):
            _, kind, *detail = outcome.detail.split(": ", 2)
            return Verdict(value=None, failure=f"{outcome.status}: {kind}", detail="".join(detail))
        return Verdict(value=outcome)


def request_body(case: Case, options: JudgeOptions) -> dict[str, Any]:
    """The chat completion that is asked for; BadSample if an image does not decode."""
    images = []
    for image in case.conversation.images:
        open_image(image)  # an endpoint would call it its own error, and be asked again
        url = f"data:{MIME[image_extension(image)]};base64,{base64.b64encode(image).decode()}"
        images.append({"type": "image_url", "image_url": {"url": url}})
    body = {
        "model": options.model,
        "temperature": 0,
        "max_tokens": REPLY_TOKENS,
        "messages": [
            {"role": "system", "content": QUESTIONS[case.column].instructions},
            {"role": "user", "content": [*images, {"type": "text", "text": _wrapped(case, options.max_chars)}]},
        ],
    }
    return {name: value for name, value in (body | options.extra_fields()).items() if value is not None}


class ModelJudge:
    """Asks a model of ours, greedily and without a thought; on the GPU if there is one."""

    def __init__(self, options: JudgeOptions) -> None:
        from sail_train import dist
        from sail_train.generate.generator import Generator
        from sail_train.model.build import load_model
        from sail_train.model.folder import resolve
        from sail_train.processor.processor import load_processor

        folder = resolve(options.model)
        self._options = options
        self._processor = load_processor(folder)
        self._generator = Generator(
            load_model(folder, dtype=options.dtype).to(dist.device()),  # type: ignore[arg-type]
            stop_token_ids=self._processor.stop_token_ids,
            pad_token_id=self._processor.tokenizer.pad_token_id,
            banned_token_ids=(self._processor.image_token_id,),
            max_batch=options.batch,
        )

    def judge(self, cases: Sequence[Case]) -> list[Verdict]:
        prompts: dict[int, Prompt] = {}
        verdicts: dict[int, Verdict] = {}
        for number, case in enumerate(cases):
            try:
                asked = model_prompt(case, self._options.max_chars)
                prompts[number] = self._processor.prompt(asked, uid=str(number), think="off", force=True)
            except BadSample as error:
                verdicts[number] = Verdict(value=None, failure=_reason(error))
        sampling = Sampling(max_new_tokens=REPLY_TOKENS, temperature=0.0)
        completions = self._generator.generate(list(prompts.values()), sampling)
        for number, (completion,) in zip(prompts, completions, strict=True):
            verdicts[number] = _read(cases[number].column, self._processor.decode(completion.token_ids))
        return [verdicts[number] for number in range(len(cases))]


def model_prompt(case: Case, max_chars: int) -> Conversation:
    """The case as a model of ours is asked it: the images, the instructions, the text, in one turn."""
    images = tuple(Part(type="image") for _ in case.conversation.images)
    text = f"{QUESTIONS[case.column].instructions}\n{_wrapped(case, max_chars)}"
    message = Message(role="user", content=(*images, Part(type="text", text=text)))
    key, source = case.conversation.key, case.conversation.source
    return Conversation(key=key, source=source, messages=(message,), images=case.conversation.images)


@functools.lru_cache(maxsize=1)
def open_judge(options: JudgeOptions) -> SampleJudge:
    """The judge of this process; ValueError if there is no such model, or no such key."""
    return EndpointJudge(options) if options.endpoint else ModelJudge(options)


def _wrapped(case: Case, max_chars: int) -> str:
    return wrap({"text": shorten(judged_text(case.conversation), max_chars)}, secrets.token_hex(16))


def _read(column: str, reply: str) -> Verdict:
    try:
        return Verdict(value=QUESTIONS[column].read(reply))
    except ValueError as error:
        return Verdict(value=None, failure="unreadable reply", detail=str(error))


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, BadSample) else "image_unreadable"
