"""What a metric's name means to the page: its suite and mode, and which one stands for a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sail_train.eval.config import MODES
from sail_train.report.reading import Run, mapping

READ_FIRST = ("greedy", "on", "off", "auto", "t1", "on_t1", "off_t1", "on_forced", "off_forced")
"""Modes by how well one stands for a suite where only one can be shown."""


@dataclass(frozen=True, kw_only=True, order=True)
class Pass:
    """One suite asked in one mode."""

    suite: str
    mode: str

    @property
    def metric(self) -> str:
        return f"{self.suite}/{self.mode}"


def passes(metrics: Mapping[str, float]) -> list[Pass]:
    """The accuracies among `metrics`, in their order."""
    found = []
    for name in metrics:
        suite, _, mode = name.rpartition("/")
        if suite and mode in MODES:
            found.append(Pass(suite=suite, mode=mode))
    return found


def by_suite(found: Iterable[Pass]) -> dict[str, list[Pass]]:
    """Passes by suite, the most telling mode first; suites in order of appearance."""
    suites: dict[str, list[Pass]] = {}
    for one in found:
        if one not in suites.setdefault(one.suite, []):
            suites[one.suite].append(one)
    return {suite: sorted(modes, key=lambda one: READ_FIRST.index(one.mode)) for suite, modes in suites.items()}


def headline(run: Run) -> str | None:
    """The metric that stands for a run: that of its gate, else the first that its config asks for and that is there."""
    after = run.result("after")
    metric = gate(run).get("metric")
    if isinstance(metric, str) and metric in after:
        return metric
    asked = mapping(mapping(run.config.get("eval")).get("modes"))
    wanted = [f"{suite}/{mode}" for suite, modes in asked.items() if isinstance(modes, list) for mode in modes]
    return next((name for name in [*wanted, *(one.metric for one in passes(after))] if name in after), None)


def gate(run: Run) -> dict[str, object]:
    """The gate of a run as its last event tells it: metric, floor, value, passed; empty without one."""
    events = [event for event in run.events if event.get("event") == "gate"]
    return events[-1] if events else {}
