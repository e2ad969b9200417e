"""The learning rate is a pure function of the step."""

import pytest

from sail_train.engine.config import ScheduleConfig
from sail_train.engine.schedule import CURVES, learning_rate_factor


def factors(max_steps: int = 100, **values: float | str) -> list[float]:
    config = ScheduleConfig(**values)
    return [learning_rate_factor(step, max_steps, config) for step in range(max_steps + 1)]


@pytest.mark.parametrize("name", sorted(CURVES))
def test_warmup_is_linear_from_the_first_step(name: str) -> None:
    found = factors(name=name, warmup_steps=4)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_warmup_ratio_is_a_share_of_the_steps_rounded_up() -> None:
    assert factors(max_steps=10, name="constant", warmup_ratio=0.25)[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_decay_ends_at_the_minimum(name: str) -> None:
    found = factors(name=name, warmup_steps=10, min_ratio=0.1, decay_ratio=0.2)
    assert found[100] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in zip(found[10:], found[11:], strict=False))
    assert found[99] > 0.1, "the last update is taken before the minimum is reached"


def test_cosine_is_half_way_in_the_middle() -> None:
    assert factors(name="cosine", warmup_steps=20, min_ratio=0.2)[60] == pytest.approx(0.6)


def test_wsd_is_flat_until_its_decay() -> None:
    found = factors(name="wsd", warmup_steps=5, decay_ratio=0.2)
    assert found[5:81] == [1.0] * 76
    assert found[90] == pytest.approx(0.5)


def test_constant_stays() -> None:
    assert factors(name="constant") == [1.0] * 101


def test_warmup_longer_than_training_never_peaks() -> None:
    assert max(factors(max_steps=5, name="cosine", warmup_steps=50)[:5]) == 0.1
