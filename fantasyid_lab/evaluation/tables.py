"""Tables in Markdown: one model's measures below each other, or several runs side by side."""

import math
from collections.abc import Mapping, Sequence

from .measure import Row
from .runs import Run

COLUMNS = {
    "re-identification": "re-identified",
    "similarity, share of the way": "share of the way",
    "face motion": "face motion",
    "  of it, motion that lasts": "lasting",
    "head motion": "head motion",
    "copy-paste index": "copy-paste",
    "turn direction": "turn",
    "expression as prompted": "expression",
    "shirt's colour": "shirt",
    "background's colour": "background",
}
"""Beginnings of measures' names → what a column is called."""


def one(rows: Sequence[Row]) -> str:
    """Every measure with the same of true renders, its bar, and whether it is met."""
    lines = ["| measure | value | true renders | bar | met |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        truth = "" if math.isnan(row.truth) else f"{row.truth:.3f}"
        met = "" if row.met is None else "yes" if row.met else "**no**"
        lines.append(f"| {row.measure} | {row.value:.3f} | {truth} | {row.bar} | {met} |")
    return "\n".join(lines)


def side_by_side(
    runs: Sequence[Run],
    tables: Sequence[Sequence[Row]],
    last: Mapping[str, Mapping[str, str]] | None = None,
) -> str:
    """A line per variant, several runs of it with a slash between them, and the true renders' line.

    Args:
        last: more columns: by their names, texts by variant.
    """
    last = dict(last or {})
    variants: dict[str, list[Sequence[Row]]] = {}
    for run, rows in zip(runs, tables, strict=True):
        variants.setdefault(run.variant, []).append(rows)
    lines = [_line("", *COLUMNS.values(), *last), _line("---", *["---"] * (len(COLUMNS) + len(last)))]
    lines.append(_line("true renders", *(_cell([_row(tables[0], name).truth]) for name in COLUMNS), *[""] * len(last)))
    for variant, its in variants.items():
        values = (_cell([_row(rows, name).value for rows in its]) for name in COLUMNS)
        lines.append(_line(variant, *values, *(texts.get(variant, "") for texts in last.values())))
    return "\n".join(lines)


def _row(rows: Sequence[Row], beginning: str) -> Row:
    return next(row for row in rows if row.measure.startswith(beginning))


def _cell(values: Sequence[float]) -> str:
    return " / ".join("" if math.isnan(value) else f"{value:.2f}" for value in values)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
