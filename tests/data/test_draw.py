from sail_train.data.draw import Draws, permutation, uniform


def test_draws_depend_on_the_whole_key_only() -> None:
    assert uniform(0, "mix", 3, 7) == uniform(0, "mix", 3, 7)
    assert len({uniform(0, "mix", 3, 7), uniform(1, "mix", 3, 7), uniform(0, "mix", 7, 3), uniform(0, "x", 3, 7)}) == 4


def test_draws_of_one_key_are_those_of_the_whole_key() -> None:
    for key in (0, "mix", 3), (-1, "it's"), (12, "a", "\\", 5):
        draws = Draws(*key)
        assert [draws(n) for n in (0, 9, 10**12)] == [uniform(*key, n) for n in (0, 9, 10**12)]


def test_draws_are_spread_evenly() -> None:
    draws = [uniform(0, "spread", i) for i in range(4000)]
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.03
    assert abs(sum(draw < 0.25 for draw in draws) / len(draws) - 0.25) < 0.03


def test_draws_stay_the_same_for_ever() -> None:
    # written down: a change of these numbers would reorder every run that is resumed
    assert permutation(8, 0, "shards", "a", 1).tolist() == [5, 7, 4, 3, 1, 6, 2, 0]
    assert uniform(0, "mix", 3, 7) == 0.23058160048316811
    assert sorted(permutation(50, 3, "k").tolist()) == list(range(50))
    assert permutation(50, 3, "k").tolist() != permutation(50, 4, "k").tolist()
    assert permutation(0, 3).tolist() == []
