from __future__ import annotations

import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.quarantine import Budget, Ledger, TooManyBadSamples, carried
from sail_train.types import BadSample


def budget(max_bad: float, *, max_in_a_row: int = 1000) -> Budget:
    return Budget({"s": SourceConfig(max_bad=max_bad)}, max_in_a_row=max_in_a_row)


def spoil(ledger: Ledger, count: int, reason: str = "bad_json") -> None:
    for number in range(count):
        ledger.bad("s", "s.tar", f"k{number}", BadSample(reason, "why"))


def test_records_say_what_where_and_why_and_are_given_out_once() -> None:
    ledger = budget(5).ledger()
    spoil(ledger, 1)
    assert ledger.take() == (
        {"source": "s", "shard": "s.tar", "key": "k0", "reason": "bad_json", "detail": "why"},
    )  # fmt: skip
    assert ledger.take() == ()


def test_a_count_stops_the_run_with_the_last_reasons() -> None:
    ledger = budget(3).ledger()
    spoil(ledger, 3)
    with pytest.raises(TooManyBadSamples, match=r"source 's': 4 of 4 samples are bad.*max_bad=3.*s.tar 'k0': too_long"):
        spoil(ledger, 1, "too_long")


def test_what_stops_the_run_carries_all_that_no_row_took_along() -> None:
    shared = budget(3)
    first, second = shared.ledger(), shared.ledger()
    spoil(first, 2)
    taken = first.take()
    spoil(first, 1)
    with pytest.raises(TooManyBadSamples) as caught, carried(taken):
        spoil(second, 1)
    assert len(taken) == 2 and len(caught.value.records) == 4 and caught.value.records[:2] == taken
    assert first.take() == second.take() == ()


def test_a_share_says_nothing_before_a_hundred_samples() -> None:
    ledger = budget(0.1).ledger()
    spoil(ledger, 50)
    for _ in range(49):
        ledger.good("s")
    with pytest.raises(TooManyBadSamples, match="51 of 100"):
        spoil(ledger, 1)


def test_a_share_that_is_kept_does_not_stop() -> None:
    ledger = budget(0.1).ledger()
    for _ in range(200):
        spoil(ledger, 1)
        for _ in range(10):
            ledger.good("s")
    assert len(ledger.take()) == 200


def test_zero_allows_none() -> None:
    with pytest.raises(TooManyBadSamples, match="1 of 1"):
        spoil(budget(0).ledger(), 1)


def test_budgets_add_up_over_the_streams_of_a_rank() -> None:
    shared = budget(3)
    first, second = shared.ledger(), shared.ledger()
    spoil(first, 2)
    spoil(second, 1)
    with pytest.raises(TooManyBadSamples, match="4 of 4"):
        spoil(second, 1)


def test_bad_samples_in_a_row_stop_and_a_good_one_between_does_not() -> None:
    ledger = budget(1000, max_in_a_row=3).ledger()
    for _ in range(5):
        spoil(ledger, 3)
        ledger.good("s")
    with pytest.raises(TooManyBadSamples, match="4 bad samples in a row"):
        spoil(ledger, 4)


def test_broken_pixels_count_as_bad_and_not_as_read_again() -> None:
    ledger = budget(5).ledger()
    ledger.good("s")
    ledger.spoilt("s", "s.tar", "k", BadSample("image_undecodable"))
    assert ledger.counts == {"s": [1, 1]} and ledger.take()[0]["reason"] == "image_undecodable"


def test_samples_lost_with_their_shard_count_against_the_budget_one_where_their_number_is_not_known() -> None:
    ledger = budget(5).ledger()
    gone = BadSample("shard_unreadable", "gone")
    ledger.lost("s", "a.tar", gone, 4)
    ledger.lost("s", "b.tar", gone, None)
    assert (ledger.counts, ledger.apart) == ({"s": [5, 5]}, {"s": [0, 0, 5]})
    assert [record["samples"] for record in ledger.take()] == [4, None]
    with pytest.raises(TooManyBadSamples, match="6 of 6 samples are bad.*c.tar '': shard_unreadable: gone"):
        ledger.lost("s", "c.tar", gone, 1)
    with pytest.raises(TooManyBadSamples, match="4 bad samples in a row"):
        shards = budget(1000, max_in_a_row=3).ledger()
        for _ in range(4):
            shards.lost("s", "a.tar", gone, None)


def test_counts_are_part_of_the_state() -> None:
    ledger = budget(5).ledger()
    spoil(ledger, 2)
    again = budget(5).ledger()
    again.load_state(ledger.state())
    spoil(again, 1)
    again.load_state(ledger.state())
    assert (again.counts, again.in_a_row, again.take()) == ({"s": [2, 2]}, 2, ())
