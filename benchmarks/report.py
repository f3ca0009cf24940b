"""Rows as a line, as a table in Markdown, as JSON and as a plot."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .measure import MEMORY, STEP, Row

WIDTH, BAR, LEFT = 1100, 22, 380
INK, TIME, PEAK, GRID = (40, 40, 48), (38, 84, 190), (214, 112, 20), (222, 222, 228)


def line(row: Row) -> str:
    """One row for the terminal."""
    error = "" if row.error is None else f"{row.error:.1e}"
    return f"{row.name:52} {row.milliseconds:10.1f} ms {row.peak:7.2f} GiB {error:>9} {row.note}"


def table(rows: Sequence[Row], reference: str) -> str:
    """Markdown: the steps with their share of the row called `reference`, then the rest."""
    steps = [row for row in rows if row.kind == STEP]
    others = [row for row in rows if row.kind != STEP]
    base = next((row.milliseconds for row in steps if row.name == reference), None)
    lines = []
    if steps:
        lines += ["| mode | ms / step | × as released | peak GiB | error to exact | |", "| --- |" + " --- |" * 5]
        for row in steps:
            share = f"{row.milliseconds / base:.2f}" if base else ""
            error = "" if row.error is None else "0" if row.error == 0 else f"{row.error:.1e}"
            lines.append(f"| {row.name} | {row.milliseconds:.0f} | {share} | {row.peak:.1f} | {error} | {row.note} |")
        lines.append("")
    if others:
        lines += ["| part | seconds | peak GiB | |", "| --- | --- | --- | --- |"]
        for row in others:
            of = " (computer)" if row.kind == MEMORY else ""
            peak = f"{row.peak:.1f}{of}" if row.peak else ""
            lines.append(f"| {row.name} | {row.milliseconds / 1000:.2f} | {peak} | {row.note} |")
    return "\n".join(lines).rstrip() + "\n"


def save_json(path: Path, about: dict[str, str], rows: Sequence[Row]) -> None:
    """All rows so far; written anew after each, so that a run that is cut off leaves its results."""
    content = {**about, "rows": [asdict(row) for row in rows]}
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    partial.replace(path)


def plot(path: Path, about: dict[str, str], rows: Sequence[Row]) -> None:
    """Bars of time per step and of peak memory as a PNG. Does nothing without step rows."""
    from PIL import Image, ImageDraw

    steps = [row for row in rows if row.kind == STEP]
    if not steps:
        return
    height = 70 + len(steps) * (2 * BAR + 12)
    picture = Image.new("RGB", (WIDTH, height), (252, 252, 252))
    draw = ImageDraw.Draw(picture)
    draw.text((12, 8), "   ".join(about.values()).replace("×", "x"), fill=INK)
    draw.text((LEFT, 30), "ms per step", fill=TIME)
    draw.text((LEFT + 110, 30), "peak GiB", fill=PEAK)
    room = WIDTH - LEFT - 90
    for row, y in zip(steps, range(56, height, 2 * BAR + 12), strict=False):
        draw.text((12, y + BAR // 2), row.name[:60], fill=INK)
        for value, most, colour, top, text in (
            (row.milliseconds, max(r.milliseconds for r in steps), TIME, y, f"{row.milliseconds:.0f}"),
            (row.peak, max(r.peak for r in steps), PEAK, y + BAR, f"{row.peak:.1f}"),
        ):
            length = room * value / most if most else 0
            draw.rectangle((LEFT, top + 3, LEFT + room, top + BAR - 3), fill=GRID)
            draw.rectangle((LEFT, top + 3, LEFT + length, top + BAR - 3), fill=colour)
            draw.text((LEFT + room + 8, top + 4), text, fill=INK)
    picture.save(path, "PNG")
