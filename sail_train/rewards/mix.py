"""The reward of a response: verifier, format and judge, weighed.

`Sample`s -> format, verifier and (where the part `think` has a weight) judge -> `Reward`s, whose parts are kept for
the records. A part that failed fails the whole reward, which masks the response; more failures than a source of
verdicts may have stop the run.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from sail_train.rewards.config import RewardsConfig
from sail_train.rewards.format import format_ok, split_thought
from sail_train.rewards.judge import Judge, JudgeRequest
from sail_train.rewards.judge_server import JudgeServer
from sail_train.rewards.verifiers import Request, verify_all
from sail_train.types import RunStopped, Score

logger = logging.getLogger(__name__)

WINDOW = 256
"""Verdicts over which a rate of failures is taken."""
FEW_FAILURES = 3
"""So many failures stop no run: a rate over a handful of verdicts says nothing."""


class RewardsFailed(RunStopped):
    """Rewards fail too often to go on; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A response and all that it is graded by; plain text."""

    source: str
    question: str
    response: str
    """Thought included, and what the prompt forced of it."""
    finish_reason: str
    mode: str | None
    """What was asked for: "on", "off", "auto", or a sample's "think", "direct", None."""
    answer: str
    verifier: str
    block: bool = True
    """Whether the chat style opens a direct answer too with a thought block, an empty one."""
    reference: str = ""
    """A true description of the image and the task, for the judge."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    total: Score
    parts: dict[str, Score] = field(default_factory=dict)
    """Every part that was graded; `answer` and `format` always, whatever their weight."""

    @property
    def correct(self) -> bool:
        """Whether the verifier found the answer right: what dynamic sampling filters by."""
        return not self.parts["answer"].failed and self.parts["answer"].value >= 1.0


class FailWatch:
    """Stops the run when too many of the last verdicts failed."""

    def __init__(self, name: str, max_rate: float) -> None:
        self.name, self.max_rate = name, max_rate
        self.recent: deque[bool] = deque(maxlen=WINDOW)

    def add(self, scores: Iterable[Score]) -> None:
        """Raises RewardsFailed when the rate is exceeded."""
        detail = ""
        for score in scores:
            self.recent.append(score.failed)
            detail = score.detail if score.failed else detail
        failed = sum(self.recent)
        if failed > FEW_FAILURES and failed > self.max_rate * len(self.recent):
            raise RewardsFailed(
                f"{failed} of the last {len(self.recent)} verdicts of the {self.name} failed, more than the share "
                f"{self.max_rate:g} that rewards.{self.name}.max_fail_rate allows; the last: {detail}"
            )


class Rewards:
    """Grades responses; a context manager, since it may hold a judge."""

    def __init__(self, config: RewardsConfig, *, judge: Judge | None = None) -> None:
        self.config = config
        self.watches = {
            "verifier": FailWatch("verifier", config.verifier.max_fail_rate),
            "judge": FailWatch("judge", config.judge.max_fail_rate),
        }
        self.stack = ExitStack()
        self.judge = judge
        if config.uses_judge and judge is None:
            self.judge = self._connect()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.stack.close()

    def score(self, samples: Sequence[Sample]) -> list[Reward]:
        """One reward per sample, in order. Raises RewardsFailed when verdicts fail too often."""
        requests = [Request(sample.verifier, sample.answer, sample.response) for sample in samples]
        answers = verify_all(requests, self.config.verifier)
        self.watches["verifier"].add(answers)
        formats = [
            format_ok(sample.response, sample.finish_reason, sample.mode, block=sample.block) for sample in samples
        ]
        parts = [{"answer": a, "format": f} for a, f in zip(answers, formats, strict=True)]
        self._judge(samples, parts)
        return [
            Reward(total=self._total(sample.source, graded), parts=graded)
            for sample, graded in zip(samples, parts, strict=True)
        ]

    def _connect(self) -> Judge:
        config = self.config.judge
        if config.url == "embedded":
            server = self.stack.enter_context(JudgeServer())
            config = replace(config, url=server.url)
        judge = Judge(config)
        self.stack.callback(judge.close)
        try:
            judge.check()
        except ValueError:
            self.close()
            raise
        return judge

    def _judge(self, samples: Sequence[Sample], parts: Sequence[dict[str, Score]]) -> None:
        """Add the part `think` where it has a weight; a response without a thought gets 0 without asking."""
        asked: list[int] = []
        requests = []
        for number, sample in enumerate(samples):
            if "think" not in self.config.weights(sample.source):
                continue
            thought, answer = split_thought(sample.response)
            if not thought or not answer or self._gated(parts[number]):
                parts[number]["think"] = Score(value=0.0, detail="nothing to judge")
                continue
            asked.append(number)
            requests.append(
                JudgeRequest(question=sample.question, thought=thought, answer=answer, reference=sample.reference)
            )
        if requests:
            assert self.judge is not None, "a part `think` with a weight comes with a judge"
            scores = self.judge.score(requests)
            self.watches["judge"].add(scores)
            for number, score in zip(asked, scores, strict=True):
                parts[number]["think"] = score

    def _gated(self, parts: dict[str, Score]) -> bool:
        return self.config.format_gate and parts["format"].value < 1

    def _total(self, source: str, parts: dict[str, Score]) -> Score:
        if self._gated(parts):
            return Score(value=0.0, detail=f"gate: {parts['format'].detail}")
        weights = self.config.weights(source)
        failed = [(name, parts[name]) for name in weights if parts[name].failed]
        if failed:
            name, score = failed[0]
            return Score(value=0.0, status=score.status, detail=f"{name}: {score.detail}")
        return Score(value=sum(weight * parts[name].value for name, weight in weights.items()))
