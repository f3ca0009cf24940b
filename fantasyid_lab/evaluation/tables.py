"""Tables in Markdown: one model's measures below each other, or several runs side by side."""

import math
from collections.abc import Mapping, Sequence

from .measure import Row
from .runs import Run

COLUMNS = {
    "reidentification": "re-identified",
    "identity_similarity": "identity similarity",
    "face_motion": "face motion",
    "lasting_motion": "lasting",
    "head_motion": "head motion",
    "copy_paste": "copy-paste",
    "turn": "turn",
    "expression": "expression",
    "shirt": "shirt",
    "background": "background",
}
"""Keys of measures → what a column is called."""


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
    lines.append(_line("true renders", *(_cell([_row(tables[0], key).truth]) for key in COLUMNS), *[""] * len(last)))
    for variant, its in variants.items():
        values = (_cell([_row(rows, key).value for rows in its]) for key in COLUMNS)
        lines.append(_line(variant, *values, *(texts.get(variant, "") for texts in last.values())))
    return "\n".join(lines)


def _row(rows: Sequence[Row], key: str) -> Row:
    return next(row for row in rows if row.key == key)


def _cell(values: Sequence[float]) -> str:
    return " / ".join("" if math.isnan(value) else f"{value:.2f}" for value in values)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
