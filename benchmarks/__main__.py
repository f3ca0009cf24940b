"""Measure every mode and print a table: `python -m benchmarks [--smoke] [--json FILE] …`.

Set up the environment with `python run.py test` first, or set COMFYUI_PATH to a ComfyUI with what it requires.
"""

import argparse
import gc
import logging
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from . import report
from .bench import Bench
from .measure import Row, reset_peak
from .modes import AS_RELEASED, MODES, Mode
from .workload import RELEASE, SMOKE, fitting

log = logging.getLogger("benchmarks")


def chosen(smoke: bool, only: str | None) -> list[Mode]:
    """The modes to measure on this machine."""
    cuda = torch.cuda.is_available() and not smoke
    wanted = [m for m in MODES if (re.search(only, m.name) if only else not m.by_name)]
    return [m for m in wanted if (cuda or not m.cuda) and not (smoke and m.full_size)]


@torch.no_grad()
def measure(bench: Bench, modes: list[Mode]) -> Iterator[Row]:
    """Rows as they come. A mode that fails is left out with its reason in the log."""
    for mode in modes:
        try:
            yield from mode.rows(bench, mode.name)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:300]
            log.error("%s: failed: %s: %s", mode.name, type(error).__name__, reason)
        gc.collect()
        reset_peak()


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> list[Row]:
    """All rows, each said and saved as soon as it is there."""
    cuda = torch.cuda.is_available() and not arguments.smoke
    work = SMOKE if arguments.smoke else fitting(torch.cuda.mem_get_info()[0]) if cuda else RELEASE
    about = {
        "card": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
        "torch": f"torch {torch.__version__}",
        "diffusers": f"diffusers {version('diffusers')}",
        "size": work.name,
    }
    say(", ".join(about.values()))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as base:
        folder = arguments.folder or Path(base) / "random" / "random-model"
        bench = Bench(
            work, "cuda" if cuda else "cpu", Path(base), folder, arguments.steps, tuple(arguments.host.split())
        )
        start = time.monotonic()
        for row in measure(bench, chosen(arguments.smoke, arguments.only)):
            rows.append(row)
            say(f"[{time.monotonic() - start:4.0f} s] {report.line(row)}")
            if arguments.json:
                report.save_json(arguments.json, about, rows)
            if arguments.table:
                arguments.table.write_text(report.table(rows, AS_RELEASED), "utf-8")
        if arguments.plot:
            report.plot(arguments.plot, about, rows)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to see that everything runs")
    parser.add_argument("--only", metavar="REGEX", help="modes whose name matches; also those that are left out else")
    parser.add_argument("--list", action="store_true", help="the modes of this machine, and end")
    parser.add_argument("--steps", type=int, default=3, help="steps really done in whole runs (50: nothing is guessed)")
    parser.add_argument("--folder", type=Path, help="where the 23 GB of a whole run's random model are kept for later")
    parser.add_argument("--json", type=Path, help="write the rows to this file, after each row")
    parser.add_argument("--table", type=Path, help="write a table in Markdown to this file, after each row")
    parser.add_argument("--plot", type=Path, help="draw time and memory of the steps into this PNG")
    parser.add_argument("--host", default="", help="ComfyUI's own arguments for our rows, such as '--novram'")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.list:
        for mode in MODES:
            remark = " (only by name)" if mode.by_name else ""
            print(mode.name + remark if mode in chosen(arguments.smoke, ".") else f"{mode.name} (not here)")
        return 0
    rows = run(arguments, lambda text: print(text, file=sys.stderr, flush=True))
    print(report.table(rows, AS_RELEASED))
    return 0


if __name__ == "__main__":
    sys.exit(main())
