from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from sail_train.report.lineage import Edge, edges, layout, parents_of, run_name
from sail_train.report.reading import Recipe, Run, read_recipe


def link(parent: int, child: int, role: str = "model") -> Edge:
    return Edge(parent=parent, child=child, role=role)


def test_a_chain_is_one_line() -> None:
    plan = layout(4, [link(0, 1), link(1, 2), link(2, 3)])
    assert plan.lanes == [0, 0, 0, 0] and plan.width == 1


def test_branches_stand_beside_the_line_and_join_it_again() -> None:
    plan = layout(4, [link(0, 1), link(0, 2), link(1, 3, "member_1"), link(2, 3, "member_2")])
    assert plan.lanes == [0, 1, 0, 0]
    assert {(track.edge.parent, track.edge.child): track.lane for track in plan.tracks} == {
        (0, 1): 0, (0, 2): 0, (1, 3): 1, (2, 3): 0,
    }  # fmt: skip


def test_runs_without_parents_begin_a_line_of_their_own() -> None:
    assert layout(3, [link(0, 2, "language"), link(1, 2, "vision")]).lanes == [0, 1, 0]
    assert layout(2, []).lanes == [0, 0]


def test_two_roles_of_one_parent_are_one_line() -> None:
    plan = layout(2, [link(0, 1, "vision"), link(0, 1, "language")])
    assert len(plan.tracks) == 1


@pytest.mark.parametrize("seed", range(60))
def test_no_line_passes_through_a_foreign_station(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(2, 14)
    links = [link(parent, child) for parent, child in itertools.combinations(range(count), 2) if rng.random() < 0.25]
    plan = layout(count, links)
    assert len(plan.lanes) == count and len(plan.tracks) == len(links)
    stations = {(row, lane) for row, lane in enumerate(plan.lanes)}
    passing: dict[tuple[int, int], int] = {}
    for track in plan.tracks:
        for row in range(track.edge.parent + 1, track.edge.child):
            assert (row, track.lane) not in stations
            other = passing.setdefault((row, track.lane), track.edge.parent)
            assert other == track.edge.parent, "lines of two runs in one lane"


def test_edges_come_from_lineage_and_from_shards(finished_recipe: Path) -> None:
    recipe = read_recipe(finished_recipe)
    names = [run.name for run in recipe.runs]
    found = {(names[edge.parent], names[edge.child], edge.role) for edge in edges(recipe)}
    assert ("vision", "align", "vision") in found and ("language", "align", "language") in found
    assert ("harvest", "fusion", "data") in found and ("rlvr", "fusion", "model") in found
    assert ("sft_4b", "soup", "member_2") in found
    recipe.runs[names.index("fusion")].lineage = {}
    found = {(names[edge.parent], names[edge.child], edge.role) for edge in edges(recipe)}
    assert ("harvest", "fusion", "data") in found and ("rlvr", "fusion", "model") in found, "from the config"


def test_parents_that_are_no_runs_of_the_recipe_are_no_edges() -> None:
    runs = [
        Run(name="a", path=Path("a"), config={"parents": {"model": "elsewhere/x"}}),
        Run(name="b", path=Path("b"), config={"parents": {"model": "r/a/model", "vision": None}}),
        Run(name="c", path=Path("c"), config={"parents": {"model": "r/c"}}),
    ]
    found = edges(Recipe(name="r", path=Path("r"), runs=runs))
    assert [(edge.parent, edge.child) for edge in found] == [(0, 1)]
    assert parents_of(runs[1]) == {"model": "r/a/model"}


@pytest.mark.parametrize(
    ("path", "name"), [("runs/t/a", "a"), ("runs/t/a/model", "a"), ("runs/t/a/best", "a"), ("a/", "a")]
)
def test_a_model_folder_means_its_run(path: str, name: str) -> None:
    assert run_name(path) == name
