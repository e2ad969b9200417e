"""Who came from whom, and where each run stands in the picture: lanes, as on a map of railway lines.

Every run is a row, in the recipe's order. A line runs from a parent down to its child in a lane of its own where
another run stands between them, so that lines never run through a station that they do not stop at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from sail_train.report.reading import Recipe, Run, mapping, shard_patterns

MAIN_ROLES = ("model", "member_1", "language", "vision", "adapter")
"""Parents in the order in which one counts as the run's own line."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    parent: int
    """Row of the run that hands something over."""
    child: int
    role: str
    """"model", a part, "member_n", or "data" for samples that one run made and another trains on."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """An edge with the lane in which it passes the rows between its ends."""

    edge: Edge
    start: int
    """Lane of the parent."""
    lane: int
    end: int
    """Lane of the child."""


@dataclass(frozen=True, kw_only=True)
class Map:
    lanes: list[int]
    """Lane of each run."""
    tracks: list[Track]

    @property
    def width(self) -> int:
        return 1 + max([*self.lanes, *(track.lane for track in self.tracks)], default=0)


def parents_of(run: Run) -> dict[str, str]:
    """Role -> path of the parents, from lineage.json, else from the config."""
    recorded = mapping(run.lineage.get("parents")) or mapping(run.config.get("parents"))
    found = {}
    for role, value in recorded.items():
        path = mapping(value).get("path") if isinstance(value, dict) else value
        if isinstance(path, str) and path:
            found[str(role)] = path
    return found


def edges(recipe: Recipe) -> list[Edge]:
    """Every handing-over between two runs of the recipe, earlier to later."""
    rows = {run.name: row for row, run in enumerate(recipe.runs)}
    found = []
    for child, run in enumerate(recipe.runs):
        handed = sorted(parents_of(run).items(), key=lambda item: _rank(item[0]))
        pairs = [(role, run_name(path)) for role, path in handed]
        pairs += [("data", name) for name in _data_parents(run, set(rows) - {run.name})]
        for role, name in pairs:
            if name in rows and rows[name] < child:
                found.append(Edge(parent=rows[name], child=child, role=role))
    return found


def _rank(role: str) -> int:
    return MAIN_ROLES.index(role) if role in MAIN_ROLES else len(MAIN_ROLES)


def run_name(path: str) -> str:
    """The run that a path to a run directory or to its model folder means."""
    pure = PurePath(path)
    return pure.parent.name if pure.name in ("model", "best") else pure.name


def _data_parents(run: Run, names: set[str]) -> list[str]:
    """Runs whose output this run reads: those lineage.json says it needs, and those where its shards lie."""
    needs = run.lineage.get("needs")
    found = {need for need in needs if need in names} if isinstance(needs, list) else set()
    for source in mapping(mapping(run.config.get("data")).get("sources")).values():
        patterns = [] if mapping(source).get("weight") == 0 else shard_patterns(source)
        for pattern in patterns:
            found |= {part for part in PurePath(pattern).parts[:-1] if part in names}
    return sorted(found - {run_name(path) for path in parents_of(run).values()})


def layout(count: int, links: Sequence[Edge]) -> Map:
    """Lanes for `count` rows so that no line passes through a run that it does not belong to."""
    lanes: list[int] = []
    taken: dict[tuple[int, int], int] = {}  # (row, lane) -> the run whose line passes there
    tracks: list[Track] = []
    for row in range(count):
        incoming = _once([edge for edge in links if edge.child == row])
        lane = _lane_of(row, incoming, links, lanes, taken)
        lanes.append(lane)
        taken[row, lane] = row
        for edge in incoming:
            track = _track(edge, lanes, taken)
            tracks.append(track)
            taken |= {(between, track.lane): edge.parent for between in range(edge.parent + 1, row)}
        # A run with children further down keeps its lane free for the last of them.
        for between in range(row + 1, max((edge.child for edge in links if edge.parent == row), default=row)):
            taken.setdefault((between, lane), row)
    return Map(lanes=lanes, tracks=tracks)


def _once(incoming: Sequence[Edge]) -> list[Edge]:
    """One line per parent: the first role's."""
    return list({edge.parent: edge for edge in reversed(incoming)}.values())[::-1]


def _lane_of(
    row: int, incoming: Sequence[Edge], links: Sequence[Edge], lanes: list[int], taken: dict[tuple[int, int], int]
) -> int:
    """The leftmost lane of a parent whose line this run ends, else the first that is free."""
    inherited = []
    for edge in incoming:
        last = max(other.child for other in links if other.parent == edge.parent)
        if last == row and taken.get((row, lanes[edge.parent])) in (None, edge.parent):
            inherited.append(lanes[edge.parent])
    return min(inherited) if inherited else next(lane for lane in range(row + 2) if (row, lane) not in taken)


def _track(edge: Edge, lanes: list[int], taken: dict[tuple[int, int], int]) -> Track:
    start, end = lanes[edge.parent], lanes[edge.child]
    between = range(edge.parent + 1, edge.child)
    candidates = [start, end, *range(len(lanes) + 1)]
    lane = next(
        lane for lane in candidates if all(taken.get((row, lane), edge.parent) == edge.parent for row in between)
    )
    return Track(edge=edge, start=start, lane=lane, end=end)
