from __future__ import annotations

import math

import pytest

from sail_train.eval.tally import FIGURES, by_prompt, mean_and_error, paired, summarise


def record(index: int, score: float | None, **figures: float) -> dict[str, object]:
    return {**dict.fromkeys(FIGURES), "index": index, "sample": 0, "score": score, **figures}


def test_error_of_zero_one_scores_is_binomial() -> None:
    mean, error = mean_and_error([1.0] * 30 + [0.0] * 70)
    assert mean == pytest.approx(0.3)
    assert error == pytest.approx(math.sqrt(0.3 * 0.7 / 100))


def test_answers_to_one_prompt_are_not_independent() -> None:
    once = summarise("s/t1", [record(0, 1.0), record(1, 0.0), record(2, 1.0), record(3, 0.0)])
    copied = summarise("s/t1", [record(i, s) for i, s in ((0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0)) for _ in range(4)])
    assert copied["s/t1"] == once["s/t1"] == 0.5
    assert copied["s/t1_se"] == once["s/t1_se"] == 0.25
    assert copied["s/t1_n"] == 4


def test_a_failed_verifier_is_not_a_wrong_answer() -> None:
    metrics = summarise("s/on", [record(0, 1.0), record(1, None), record(2, 1.0), record(3, 0.0)])
    assert metrics["s/on"] == pytest.approx(2 / 3)
    assert metrics["s/on_n"] == 3
    assert metrics["s/on_failed"] == 0.25


def test_without_any_grade_there_is_no_accuracy() -> None:
    metrics = summarise("s/on", [record(0, None)])
    assert "s/on" not in metrics
    assert metrics["s/on_failed"] == 1.0


def test_figures_that_do_not_apply_are_left_out() -> None:
    metrics = summarise("s/on", [record(0, 1.0, tokens=10, digits=0.5), record(1, 0.0, tokens=20)])
    assert metrics["s/on_tokens"] == 15
    assert metrics["s/on_digits"] == 0.5
    assert "s/on_digits_se" in metrics
    assert "s/on_followed" not in metrics


def test_the_order_of_records_does_not_matter() -> None:
    records = [record(index, value) for index, value in enumerate([0.1, 0.7, 0.2, 0.4])]
    assert summarise("a", records) == summarise("a", records[::-1])
    assert list(by_prompt(records[::-1], "score")) == [0, 1, 2, 3]


def test_paired_differences_are_over_prompts() -> None:
    pair = paired([0.0, 0.0, 1.0, 1.0, None], [1.0, 0.0, 1.0, 0.0, 1.0])
    assert pair is not None
    assert (pair.n, pair.better, pair.worse, pair.difference) == (4, 1, 1, 0.0)
    assert pair.se == pytest.approx(math.sqrt(2) / 4)


def test_prompts_that_fare_alike_have_no_error() -> None:
    pair = paired([0.0, 1.0, 0.0], [0.0, 1.0, 0.0])
    assert pair is not None and pair.se == 0.0


def test_nothing_in_common_is_no_pair() -> None:
    assert paired([], []) is None
    assert paired([None, 1.0], [1.0, None]) is None
