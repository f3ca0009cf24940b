"""Hundreds of runs of one real server: `python -m tools.reliability.soak --runs 500 --base DIR`.

Each run is drawn from the seed: the stand-in or FantasyID-nano; the released sampler, KSampler or a custom sampler;
with or without unloading before it; cancelled at a random moment, out of memory at a random operation, or left alone.
Every --restart runs the server is killed and started again. Every --check runs, and at the end of a server's life, a
fixed graph must give the latents that a fresh server gave, bit by bit. Memory must not grow; no process may be left.
"""

import argparse
import json
import random
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load

from fantasyid_lab import dummy_model
from tools.comfy_client import Event, Graph, Run, ServerError
from tools.comfy_host import ComfyServer
from tools.environment import ROOT
from tools.graphs import changed, custom, latents_of, node, released, stock, with_nano

LAUNCHER = ROOT / "tools" / "launch_comfy.py"
PHOTO = ROOT / "workflows" / "assets" / "portrait.jpg"
SAMPLERS = {"released": released, "KSampler": stock, "custom sampler": custom}
CANCELLED, OUT_OF_MEMORY, LEFT_ALONE = "cancelled", "out of memory", "left alone"
MAY_GROW = 64 << 20
"""Bytes over a server's life, after the first runs: caches of kernels and of finished runs; a model is more."""
_WARM = 12  # runs until a server's caches are full
_FAREWELL = 30.0  # s until a killed server's processes must be gone


@dataclass
class Report:
    """What happened.

    Attributes:
        runs: how many, by what was done to them and how they ended.
        servers: how many were started; growth: bytes each grew between its first reading and its last.
        compared: how often the fixed graph was run.
        faults: what was wrong.
        seconds: of the whole.
    """

    runs: dict[str, int] = field(default_factory=dict)
    servers: int = 0
    growth: list[int] = field(default_factory=list)
    compared: int = 0
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def draw(photo: str, rng: random.Random) -> tuple[Graph, str, str]:
    """A graph, what is done to it, and both in words."""
    sampler, nano = rng.choice(list(SAMPLERS)), rng.random() < 0.4
    graph = latents_of(
        SAMPLERS[sampler](photo, steps=rng.randint(1, 5), frames=4 * rng.randint(0, 2) + 1, seed=rng.randrange(1 << 30))
    )
    graph = with_nano(graph) if nano else graph
    fate = rng.choices((CANCELLED, OUT_OF_MEMORY, LEFT_ALONE), (2, 1, 4))[0]
    if fate == OUT_OF_MEMORY:
        graph = _capped(graph, round(10 ** rng.uniform(0, 4)))
    return graph, fate, f"{'nano' if nano else 'stand-in'}, {sampler}, {fate}"


def _capped(graph: Graph, operations: int) -> Graph:
    """The graph with the model out of memory at that operation."""
    user = next(name for name in ("guider", "sample") if "model" in graph.get(name, {}).get("inputs", {}))
    cap = node("SoakOutOfMemory", model=graph[user]["inputs"]["model"], operations=operations)
    return changed(graph | {"cap": cap}, **{user: {"model": ["cap", 0]}})


class Soak:
    """Servers one after another, and the report on them."""

    def __init__(self, base: Path, seed: int, arguments: list[str]):
        self.report, self._rng, self._arguments = Report(), random.Random(seed), arguments
        self._base = base
        self._expected: dict[str, torch.Tensor] = {}
        dummy_model.write(base / "models" / "fantasyid" / "FantasyID")
        pack = base / "custom_nodes" / "soak"
        pack.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("out_of_memory.py"), pack / "__init__.py")

    def live(self, runs: int, check: int) -> None:
        """One server's life; it is killed at the end."""
        server = ComfyServer(self._base, self._arguments)
        with server as comfy:
            self.report.servers += 1
            photo = comfy.upload_image(PHOTO)
            first = last = 0
            self._compare(comfy, photo)
            for number in range(runs):
                self._one(comfy, photo)
                if number == _WARM:
                    first = comfy.rss_bytes()
                if number % check == check - 1:
                    self._compare(comfy, photo)
                    last = comfy.rss_bytes()
            self._compare(comfy, photo)
            if first and last:
                self.report.growth.append(last - first)
                if last - first > MAY_GROW:
                    self._fault(
                        f"server {self.report.servers} grew by {(last - first) >> 20} MB in {runs - _WARM} runs"
                    )
            comfy.process.kill()
        self._say_farewell()

    def _one(self, comfy: ComfyServer, photo: str) -> None:
        graph, fate, words = draw(photo, self._rng)
        moment = self._rng.randint(1, 30)
        if self._rng.random() < 0.1:
            comfy.free()
        seen = 0

        def cancel(event: Event) -> None:
            nonlocal seen
            seen += 1
            if fate == CANCELLED and seen == moment:
                comfy.interrupt()

        try:
            run = comfy.run(graph, timeout=120, on_event=cancel)
        except (ServerError, TimeoutError) as error:
            self._fault(f"{words}: {str(error)[:300]}")
            return
        ended = f"{fate}: {run.status}"
        self.report.runs[ended] = self.report.runs.get(ended, 0) + 1
        if problem := _problem(run, fate):
            self._fault(f"{words}: {problem}")

    def _compare(self, comfy: ComfyServer, photo: str) -> None:
        for name, graph in {"stand-in": released(photo, seed=7), "nano": with_nano(released(photo, seed=7))}.items():
            run = comfy.run(changed(latents_of(graph), save={"filename_prefix": f"latents/{time.time_ns()}"}))
            if run.status != "success":
                self._fault(f"the fixed graph on {name} ended with {run.status}: {run.error and run.error.message}")
                continue
            found = load(comfy.download(run.outputs["save"]["latents"][0]))["latent_tensor"]
            self.report.compared += 1
            if not torch.equal(self._expected.setdefault(name, found), found):
                self._fault(f"the fixed graph on {name} gave other latents than a fresh server")

    def _say_farewell(self) -> None:
        import psutil

        deadline, left = time.monotonic() + _FAREWELL, [0]
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            commands = {p.pid: p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])}
            left = [pid for pid, words in commands.items() if {str(self._base), str(LAUNCHER)} <= set(words)]
        if left:
            self._fault(f"processes {left} are left of a killed server")

    def _fault(self, words: str) -> None:
        self.report.faults.append(words)
        sys.stdout.write(f"FAULT {words}\n")
        sys.stdout.flush()


def _problem(run: Run, fate: str) -> str:
    """What is wrong with how a run ended; empty if nothing is."""
    if run.status == "error":
        message = run.error.message if run.error else ""
        expected = fate == OUT_OF_MEMORY and "out of memory" in f"{run.error}".lower()
        return "" if expected else f"ended with an error: {message[:300]}"
    if run.status == "interrupted" and fate != CANCELLED:
        return "was interrupted by nobody"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.reliability.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--restart", type=int, default=100, help="runs of one server's life (100)")
    parser.add_argument("--check", type=int, default=20, help="runs between two looks at memory and latents (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, required=True, help="folder for the server")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--host", default="", help="more arguments of ComfyUI, such as --cpu")
    options = parser.parse_args()
    start = time.monotonic()
    soak = Soak(options.base.resolve(), options.seed, options.host.split())
    left = options.runs
    while left > 0:
        soak.live(min(left, options.restart), options.check)
        left -= options.restart
        soak.report.seconds = time.monotonic() - start
        if options.json:
            options.json.write_text(json.dumps(asdict(soak.report), indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(asdict(soak.report)) + "\n")
    return int(bool(soak.report.faults))


if __name__ == "__main__":
    sys.exit(main())
