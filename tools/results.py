"""`python -m tools.results`: write the tables of documents and help pages from the numbers in docs/results/*.json."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .environment import ROOT

DOCS, HELP = ROOT / "docs", ROOT / "web" / "docs"
TABLE = re.compile(
    r"(<!-- written by `python -m tools.results` from results/(\w+)\.json -->\n\n).*?(\n\n<!-- end -->)", re.S
)


def nano(rows: list[dict]) -> list[str]:
    """FantasyID-nano's measures, by `python -m fantasyid_lab.evaluation`."""
    lines = ["| measure | value | true renders | bar | met |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        name = ("  " if row.get("of_it") else "") + row["measure"]
        true = f"{row['true_renders']:.3f}" if "true_renders" in row else ""
        met = {True: "yes", False: "**no**", None: ""}[row.get("met")]
        lines.append(f"| {name} | {row['value']:.3f} | {true} | {row.get('bar', '')} | {met} |")
    return lines


def steps(rows: list[dict]) -> list[str]:
    """A denoising step in every mode, by `python -m benchmarks`."""
    lines = [
        "| mode | ms / step | × as released | peak GiB | error to exact | |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = f"**{row['mode']}**" if row.get("bold") else row["mode"]
        numbers = f"{row['ms_per_step']} | {row['times_as_released']:.3f} | {row['peak_gib']:.1f}"
        lines.append(f"| {name} | {numbers} | {row.get('error', '')} | {row.get('note', '')} |")
    return lines


PRESETS = {
    "reidentification": "re-identified",
    "identity_similarity": "identity similarity",
    "face_motion": "face motion",
    "head_motion": "head motion",
    "copy_paste": "copy-paste index",
    "expression": "expression as prompted",
}


def presets(rows: list[dict]) -> list[str]:
    """What presets do to FantasyID-nano's videos, by `python -m tools.measure.presets`."""
    lines = [f"| preset | {' | '.join(PRESETS.values())} |", f"| --- {'| --- ' * len(PRESETS)}|"]
    for row in rows:
        lines.append(f"| {row['preset']} | {' | '.join(_rounded(row, key) for key in PRESETS)} |")
    return lines if rows else ["Not measured yet."]


def preset_list(rows: list[dict]) -> list[str]:
    """The same as a list, as help pages are narrow."""
    if not rows:
        return ["Their effect on FantasyID-nano was not measured yet."]
    lines = ["Measured on FantasyID-nano, people that it never saw:", ""]
    for row in rows:
        numbers = ", ".join(f"{name} {_rounded(row, key)}" for key, name in list(PRESETS.items())[:4])
        lines.append(f"- `{row['preset']}`: {numbers}.")
    return lines


def _rounded(row: dict, key: str) -> str:
    return f"{row[key]:.2f}" if key in row else "–"  # of so few people that it has no meaning


Table = Callable[[list[dict]], list[str]]
TABLES: dict[str, Table] = {"nano": nano, "steps": steps, "presets": presets}
LISTS: dict[str, Table] = {"presets": preset_list}


def written(text: str, tables: Mapping[str, Table] = TABLES) -> str:
    """A document's text with its tables as the results have them."""

    def table(found: re.Match) -> str:
        rows = json.loads((DOCS / "results" / f"{found[2]}.json").read_text("utf-8"))["rows"]
        return found[1] + "\n".join(tables[found[2]](rows)) + found[3]

    return TABLE.sub(table, text)


def documents() -> dict[Path, Mapping[str, Table]]:
    """Those that have such a table, and in which form."""
    places = {DOCS: TABLES, HELP: LISTS}
    paths = {path: tables for place, tables in places.items() for path in sorted(place.rglob("*.md"))}
    return {path: tables for path, tables in paths.items() if TABLE.search(path.read_text("utf-8"))}


def main() -> None:
    """Write them."""
    for path, tables in documents().items():
        path.write_text(written(path.read_text("utf-8"), tables), "utf-8")


if __name__ == "__main__":
    main()
