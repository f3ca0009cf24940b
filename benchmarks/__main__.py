"""Measure and print a table: `python -m benchmarks [--smoke] [--json FILE] [--host ARGUMENTS]`.

Set up the environment with `python run.py test` first, or set COMFYUI_PATH to a ComfyUI with what it requires.
"""

import argparse
import gc
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from . import baselines
from .measure import Row, reset_peak, time_step
from .ours import Host
from .workload import RELEASE, SMOKE, random_inputs, random_published

LIMITED = (12, 7)  # GiB free


@torch.no_grad()
def measure(smoke: bool, host_arguments: list[str]) -> list[Row]:
    """All rows. A mode that this machine cannot run is left out with a line on stderr."""
    work = SMOKE if smoke else RELEASE
    device = "cuda" if torch.cuda.is_available() and not smoke else "cpu"
    published, inputs = random_published(work), random_inputs(work, device)
    rows = []
    for name, make in (
        ("CogVideoX, diffusers", lambda: baselines.plain(work, published, inputs, device)),
        ("ConsisID, diffusers", lambda: baselines.consisid(work, inputs, device)),
        ("FantasyID as released", lambda: baselines.as_released(work, published, inputs, device)),
    ):
        if smoke and name.startswith("ConsisID"):
            continue  # its face modules have the released size only
        step = make()
        rows.append(time_step(name, step))
        del step
        gc.collect()
        reset_peak()
        _say(rows[-1])
    with tempfile.TemporaryDirectory() as base:
        arguments = ["--cpu"] if device == "cpu" else host_arguments
        rows += _ours(Host(Path(base), work, published, inputs, *arguments), device)
    return rows


def _ours(host: Host, device: str) -> list[Row]:
    rows = []

    def add(row: Row) -> None:
        rows.append(row)
        _say(row)

    row, _ = host.run("ours, no identity", host.model(identity=False))
    add(row)
    host.forget()
    row, exact = host.run("ours, identity", model := host.model())
    add(row)
    if device == "cuda":
        row, _ = host.run("ours, identity, compiled blocks", host.compiled(model), exact)
        add(row)
        for gib in LIMITED:
            with host.only_free(gib) as taken:
                row, _ = host.run(f"ours, identity, {gib} GiB free", model, exact, taken)
                add(row)
    del model
    host.forget()
    row, _ = host.run("ours, identity, fp8 storage", host.model("fp8_e4m3fn"), exact)
    add(row)
    return rows


def _say(row: Row) -> None:
    print(_line(row), file=sys.stderr, flush=True)


def _line(row: Row) -> str:
    error = "" if row.error is None else f"{row.error:.1e}"
    return f"{row.name:34} {row.milliseconds:9.1f} ms {row.peak:7.2f} GiB {error:>9} {row.note}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to see that everything runs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--host", default="", help="ComfyUI's own arguments for our rows, such as '--novram'")
    arguments = parser.parse_args()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    rows = measure(arguments.smoke, arguments.host.split())
    print(f"{card}, torch {torch.__version__}, {(SMOKE if arguments.smoke else RELEASE).name}")
    for row in rows:
        print(_line(row))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"card": card, "torch": torch.__version__, "rows": [asdict(r) for r in rows]}, indent=1)
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
