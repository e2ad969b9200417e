"""Conditions on the columns of an index: "score_vir >= 3", "language == en", "duplicate_of == ''".

A condition is one column, one comparison, and one number or text (quotes are needed only for an empty text or one
with spaces at its ends). It is parsed here and compared by numpy; nothing is ever evaluated as code. Several
conditions all have to hold. Nothing known (null or NaN) never holds, whatever the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sail_train.config import suggestion

if TYPE_CHECKING:
    from pyarrow import Table

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
}
TEXT_COMPARISONS = ("==", "!=")
"""Those that mean something for a text."""

_FORM = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(>=|<=|==|!=|>|<)\s*(.*?)\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One comparison."""

    text: str
    """As it was written."""
    column: str
    comparison: str
    """A name in `COMPARISONS`."""
    value: str
    """Without its quotes."""
    number: float | None
    """The value as a number, if it is one and stands without quotes."""

    def mask(self, table: Table) -> np.ndarray:
        """(rows,) bool: where it holds.

        Raises:
            ValueError: the table has no such column, or the column and the value are not of one kind.
        """
        import pyarrow
        import pyarrow.compute

        if self.column not in table.column_names:
            hint = suggestion(self.column, table.column_names)
            raise ValueError(f"condition {self.text!r}: the index has no column {self.column!r}; {hint}")
        column = table.column(self.column).combine_chunks()
        known = ~np.asarray(
            pyarrow.compute.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False), dtype=bool
        )
        mask = np.zeros(len(column), dtype=bool)
        kept = column.filter(pyarrow.array(known))
        mask[known] = self._text_mask(kept) if _is_text(column.type) else self._number_mask(kept)
        return mask

    def _text_mask(self, column: Any) -> np.ndarray:
        if self.comparison not in TEXT_COMPARISONS:
            raise ValueError(f"condition {self.text!r}: {self.column} is text, and is compared by == or != only")
        values = column.to_numpy(zero_copy_only=False).astype(object)
        return np.asarray(COMPARISONS[self.comparison](values, self.value), dtype=bool)

    def _number_mask(self, column: Any) -> np.ndarray:
        if self.number is None:
            raise ValueError(f"condition {self.text!r}: {self.column} is a number, {self.value!r} is none")
        values = column.to_numpy(zero_copy_only=False)
        return np.asarray(COMPARISONS[self.comparison](values.astype(np.float64), self.number), dtype=bool)


def parse(text: str) -> Condition:
    """A condition as it is written; ValueError if it is none."""
    match = _FORM.fullmatch(text)
    if match is None or not match[3]:
        raise ValueError(
            f"condition {text!r} should be a column, one of {', '.join(COMPARISONS)}, and a number or text, "
            "as in 'score_vir >= 3' or \"language == en\""
        )
    value, number = match[3], None
    if value[0] in "'\"":
        if len(value) < 2 or value[-1] != value[0] or value[0] in value[1:-1]:
            raise ValueError(f"condition {text!r}: the quotes around {value!r} do not match")
        value = value[1:-1]
    else:
        number = _number(value)
    return Condition(text=text, column=match[1], comparison=match[2], value=value, number=number)


def all_hold(conditions: Sequence[Condition], table: Table) -> np.ndarray:
    """(rows,) bool: where all of them hold; everywhere if there is none."""
    mask = np.ones(len(table), dtype=bool)
    for condition in conditions:
        mask &= condition.mask(table)
    return mask


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text) else None


def _is_text(kind: Any) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_null(kind))
