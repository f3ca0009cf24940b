"""Two cards against one in the real ComfyUI server: the released recipe with its node MultiGPU CFG Split and without.

`python -m benchmarks.multigpu [--steps N] [--runs N] [--base DIR] [--json FILE]`, with COMFYUI_PATH set to a ComfyUI
that has the node (0.33). `--tiny` runs a small model, on a computer without cards too, where ComfyUI splits nothing.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from tools.comfy_client import Graph
from tools.comfy_host import ComfyServer
from tools.graphs import changed, node

from .measure import relative_error
from .server import NO_DYNAMIC_VRAM, Bench, Measured, line, stock_server, whole_run
from .workload import RELEASE, SMOKE, Workload

SPLIT = "MultiGPU_WorkUnits"  # the id of MultiGPU CFG Split
DEEPCLONE = "Creating deepclone of FantasyIDModel for"  # what ComfyUI logs of each further card


def on_cards(work: Workload, steps: int, cards: int) -> Graph:
    """From the files on to latents, the DiT on one card or shared out over several."""
    graph = whole_run(work, steps)
    settings = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    graph |= {"apply": node("FantasyIDApply", model=["load", 0], identity=["id", 0], **settings)}
    graph = changed(graph, sample={"model": ["apply", 0]})
    if cards > 1:
        graph |= {"cards": node(SPLIT, model=["apply", 0], max_gpus=cards)}
        graph = changed(graph, sample={"model": ["cards", 0]})
    needed = {name: one for name, one in graph.items() if name not in ("decode", "shown")}
    return needed | {"save": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/cards")}


def measure(server: ComfyServer, work: Workload, arguments: argparse.Namespace) -> list[Measured]:
    """Each number of cards: once to load, then measured runs, the last of which is compared with one card's."""
    bench = Bench(server, "plain" if arguments.plain else "dynamic", lambda text: print(text, file=sys.stderr))
    found, one_card = [], None
    for cards in (1, arguments.cards):
        graph, name = on_cards(work, arguments.steps, cards), f"{cards} card{'s' * (cards > 1)}"
        bench.run(f"{name}, first run", changed(graph, sample={"seed": 7, "steps": 2}), timeout=900)
        for i in range(arguments.runs):
            run = bench.run(name, changed(graph, sample={"seed": 42 + i}), timeout=900)
            found.append(run)
        if "FAILED" in run.note:
            continue
        [latents] = bench.latents[name]
        one_card = latents if one_card is None else one_card
        copies = sum(DEEPCLONE in logged for logged in server.log_tail(10**6).splitlines())
        note = "" if cards == 1 else f"{copies} further card{'s' * (copies != 1)} in ComfyUI's log"
        found[-1] = replace(run, error=relative_error(latents, one_card), note=note)
    return found


def verdict(one: list[Measured], several: list[Measured]) -> str:
    """What the cards came to."""
    steps = [min(run.step for run in runs) for runs in (one, several)]
    if not all(steps) or several[-1].note.startswith("0 "):
        return "Not compared: a run failed or had too few steps, or ComfyUI used one card."
    error = several[-1].error
    return f"{steps[0] / steps[1]:.2f} times as fast; latents differ by {error:.1e} (another batch rounds otherwise)."


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.multigpu", description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, default=2, help="cards that ComfyUI may use")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps of a run")
    parser.add_argument("--runs", type=int, default=2, help="measured runs of each")
    parser.add_argument("--plain", action="store_true", help="without dynamic VRAM")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--host", default="", help="ComfyUI's own arguments, such as '--front-end-root DIR'")
    parser.add_argument("--base", type=Path, help="where the server's folders and the 23 GB of random weights are kept")
    parser.add_argument("--json", type=Path, help="write all runs to this file")
    arguments = parser.parse_args()
    work = SMOKE if arguments.tiny else RELEASE
    with tempfile.TemporaryDirectory() as folder:
        base = arguments.base or Path(folder)
        stock_server(base, work)
        switches = [NO_DYNAMIC_VRAM] if arguments.plain else []
        with ComfyServer(base, [*switches, *arguments.host.split()]) as server:
            found = measure(server, work, arguments)
            if failed := any("FAILED" in one.note for one in found):
                print(server.log_tail(60), file=sys.stderr)
    print("\n".join(map(line, found)))
    print(verdict(found[: arguments.runs], found[arguments.runs :]))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(run) for run in found], indent=1) + "\n", "utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
