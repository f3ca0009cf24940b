"""`python -m tools.results`: write the documents' tables from the numbers in docs/results/*.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path

from .environment import ROOT

DOCS = ROOT / "docs"
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


TABLES: dict[str, Callable[[list[dict]], list[str]]] = {"nano": nano, "steps": steps}


def written(text: str) -> str:
    """A document's text with its tables as the results have them."""

    def table(found: re.Match) -> str:
        rows = json.loads((DOCS / "results" / f"{found[2]}.json").read_text("utf-8"))["rows"]
        return found[1] + "\n".join(TABLES[found[2]](rows)) + found[3]

    return TABLE.sub(table, text)


def documents() -> list[Path]:
    """Those that have such a table."""
    return [path for path in sorted(DOCS.rglob("*.md")) if TABLE.search(path.read_text("utf-8"))]


def main() -> None:
    """Write them."""
    for path in documents():
        path.write_text(written(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
