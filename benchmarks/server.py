"""The real ComfyUI server on a card, dynamic VRAM on and off: every workflow and mode, the same latents, what it takes.

`python -m benchmarks.server [--smoke] [--json FILE] [--only REGEX] [--free 24 8 6 4] [--steps N]`. Set COMFYUI_PATH to
a ComfyUI with what it requires. On a computer without a card only `--smoke` runs: the small runs, without memory.
"""

import argparse
import importlib.metadata
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.reconstruction.mesh_files import write_ply
from fantasyid_lab import dummy_model
from tools import graphs
from tools.comfy_host import ComfyServer, Graph, Run, find_host, has_accelerator
from tools.environment import ROOT
from tools.graphs import changed, node
from tools.workflow import to_graph

from . import model_folder
from .measure import GIB, relative_error
from .workload import RELEASE, SMOKE, Workload

NANO, DUMMY, FULL = "FantasyID-nano", "FantasyID", "Random-5B"
RELEASED_STEPS = 50
PLAIN, DYNAMIC = "plain", "dynamic"
NO_DYNAMIC_VRAM = "--disable-dynamic-vram"  # ComfyUI's switch, where it has dynamic VRAM
PERSON = "Rosa"
PROMPT = "A person with short hair stands at the window of a bright kitchen, turns to the camera and smiles warmly."


@dataclass(frozen=True)
class Measured:
    """One run of one server.

    Attributes:
        name: what ran.
        patcher: PLAIN or DYNAMIC.
        seconds: of the whole graph; where steps were extrapolated, of all RELEASED_STEPS.
        step: seconds of a denoising step, median; 0 where fewer than three were seen.
        peak: most memory of the card that this server held, GiB; 0 without a card.
        error: relative difference of the latents to the plain patcher's, or to what `note` says; None: not compared.
        note: anything a reader must know; an error's text.
    """

    name: str
    patcher: str
    seconds: float
    step: float
    peak: float
    error: float | None = None
    note: str = ""


def with_example(graph: Graph) -> Graph:
    """`graph` on one of the pack's own photos: Load Image needs PyAV, which is too large for a rented machine."""
    return graph | {"photo": node("FantasyIDExamplePhoto", person=PERSON)}


def small_runs(info: dict) -> Iterator[tuple[str, Graph]]:
    """Every workflow and mode at a small size, each saving the latents of its `sample` node."""
    for model in (NANO, DUMMY):
        adapt = graphs.with_nano if model == NANO else lambda graph: graph
        for name, make in {"FantasyID Sampler": graphs.released, "KSampler": graphs.stock}.items():
            yield f"{model}: {name}", graphs.latents_of(adapt(make("", steps=4, frames=9)))
        yield f"{model}: SamplerCustomAdvanced", graphs.latents_of(adapt(graphs.custom("", steps=4, frames=9)))
    stock = graphs.stock("", steps=4, frames=9)
    lora = node("LoraLoaderModelOnly", model=["load", 0], lora_name="card.safetensors", strength_model=1.0)
    yield "LoRA", graphs.latents_of(changed(stock | {"lora": lora}, apply={"model": ["lora", 0]}))
    yield "fp8 storage", graphs.latents_of(changed(stock, load={"weight_dtype": "fp8_e4m3fn"}))
    switches = {"step_cache": "first block", "fp8_products": has_accelerator()}
    known = info["FantasyIDFaster"]["input"]
    names = {**known.get("required", {}), **known.get("optional", {})}
    faster = node("FantasyIDFaster", model=["apply", 0], **_defaults(names) | switches)
    fast = graphs.with_nano(graphs.stock("", steps=20, frames=9))
    yield (
        "step cache and fp8 matmuls",
        graphs.latents_of(changed(fast | {"fast": faster}, sample={"model": ["fast", 0]})),
    )
    names = info["FantasyIDLongVideo"]["input"]["required"]
    windows = node("FantasyIDLongVideo", model=["apply", 0], **_defaults(names))
    long_video = graphs.stock("", steps=2, frames=49)
    yield "Long Video", graphs.latents_of(changed(long_video | {"long": windows}, sample={"model": ["long", 0]}))
    yield (
        f"{NANO} again, after other models",
        graphs.latents_of(graphs.with_nano(graphs.released("", steps=4, frames=9))),
    )
    for file in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(file.read_text("utf-8"))
        if any(one["type"] == "GetVideoComponents" for one in workflow["nodes"]) and not _reads_video():
            logging.warning("%s is left out: this machine has no PyAV.", file.name)
            continue
        yield f"workflows/{file.name}", _saving_latents(to_graph(workflow, info))


def _reads_video() -> bool:
    """Whether PyAV is there; on a rented machine an empty package may stand in for it."""
    try:
        return importlib.metadata.version("av") != ""
    except importlib.metadata.PackageNotFoundError:
        return False


def _defaults(inputs: dict) -> dict:
    """Every widget of a node at what its schema says."""
    return {name: rest[0]["default"] for name, (_, *rest) in inputs.items() if rest and "default" in rest[0]}


def _saving_latents(graph: Graph) -> Graph:
    """A shipped workflow at a size for tests, saving latents in place of a video: a rented card has no PyAV."""
    nano = any(NANO in node["inputs"].values() for node in graph.values())
    size = graphs.NANO_SIZE if nano else graphs.SIZE
    decoded = []
    for name, one in graph.items():
        inputs = one["inputs"]
        if one["class_type"] == "CLIPLoader":
            graph[name] = node("FantasyIDLoadTextEncoder", model_name=DUMMY)
        if "VAEDecode" in one["class_type"]:
            decoded.append(inputs["samples"])
        small = {**size, "frames": 9, "steps": 2}
        inputs.update({key: small[key] for key in small if isinstance(inputs.get(key), int)})
    ends = ("SaveVideo", "CreateVideo", "SaveImage")
    graph = {name: one for name, one in graph.items() if one["class_type"] not in ends}
    saved = {
        f"save{i}": node("SaveLatent", samples=link, filename_prefix="latents/card") for i, link in enumerate(decoded)
    }
    return graph | saved


def whole_run(work: Workload, steps: int) -> Graph:
    """The released recipe from the files on, at the full size, decoded; the mesh is the model's own template."""
    _, height, width = work.video
    size = {"width": width, "height": height, "frames": work.video[0]}
    graph = with_example(graphs.released("", steps=steps, seed=42))
    graph |= {"mesh": node("FantasyIDLoadMesh", file="template.ply")}
    graph = changed(
        graph,
        load={"model_name": FULL, "weight_dtype": "default"},
        clip={"model_name": FULL},
        pos={"text": PROMPT},
        sample=size,
    )
    shown = {"shown": graphs.frames_of(graph)["save"]}
    return graphs.frames_of(graph) | shown | graphs.latents_of(graph)


class Bench:
    """One server with the models in its folders."""

    def __init__(self, server: ComfyServer, patcher: str, say: Callable[[str], None]):
        self.server, self.patcher, self.say = server, patcher, say
        self.others = used_gib()  # what is not this server's
        self.latents: dict[str, list[Tensor]] = {}

    def run(self, name: str, graph: Graph, steps: int = 0, timeout: float = 300) -> Measured:
        """Run once; with `steps`, seconds are those of RELEASED_STEPS of them."""
        ends: list[float] = []
        began: list[tuple[str, float]] = []

        def follow(event) -> None:
            if event.kind == "progress" and event.node == "sample":
                ends.append(time.monotonic())
            elif event.kind == "executing":
                began.append((event.node, time.monotonic()))

        with card_peak(self.others) as peak:
            start = time.monotonic()
            try:
                run = self.server.run(graph, timeout, follow)
            except TimeoutError as error:
                self.server.interrupt()
                return self._report(Measured(name, self.patcher, time.monotonic() - start, 0, peak[0], note=str(error)))
            seconds = time.monotonic() - start
        if run.error:
            return self._report(
                Measured(name, self.patcher, seconds, 0, peak[0], note=f"FAILED: {run.error.message[:300]}")
            )
        self.latents[name] = list(_latents(self.server, run))
        step = median(b - a for a, b in pairwise(ends[1:])) if len(ends) > 3 else 0.0
        note = ""
        if steps and step:
            seconds += (RELEASED_STEPS - steps) * step
            parts = pairwise([*began, ("", start + seconds - (RELEASED_STEPS - steps) * step)])
            long = [f"{name} {end - at:.1f} s" for (name, at), (_, end) in parts if end - at > 0.5]
            note = f"{steps} steps done, {RELEASED_STEPS} reckoned; done: {', '.join(long)}"
        return self._report(Measured(name, self.patcher, seconds, step, peak[0], note=note))

    def _report(self, measured: Measured) -> Measured:
        self.say(line(measured))
        return measured


def used_gib() -> float:
    """GiB of the card that are in use, whoever has them; 0 without a card."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def _latents(server: ComfyServer, run: Run) -> Iterator[Tensor]:
    for node_id in sorted(run.outputs):
        for file in run.outputs[node_id].get("latents", []):
            yield load(server.download(file))["latent_tensor"]


@contextmanager
def card_peak(others: float) -> Iterator[list[float]]:
    """Most GiB of the card that are in use while the context lasts beyond what others hold, sampled every 20 ms."""
    peak, stop = [0.0], threading.Event()
    if not torch.cuda.is_available():
        yield peak
        return

    def watch() -> None:
        while not stop.is_set():
            peak[0] = max(peak[0], used_gib() - others)
            stop.wait(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


@contextmanager
def only_free(gib: float | None) -> Iterator[float]:
    """Another process holds the card's memory but for `gib` GiB; yields how many GiB it took. None: all is free."""
    if gib is None:
        yield 0.0
        return
    free = torch.cuda.mem_get_info()[0] / GIB
    take = max(0, int((free - gib) * GIB))
    program = (
        f"import torch; x = torch.empty({take}, dtype=torch.uint8, device='cuda'); print('held', flush=True); input()"
    )
    hog = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        hog.stdout.readline()
        yield free - torch.cuda.mem_get_info()[0] / GIB
    finally:
        hog.kill()
        hog.wait()


def stock_server(base: Path, work: Workload | None) -> None:
    """Models, photo, mesh and LoRA in a server's folders."""
    dummy = base / "models" / "fantasyid" / DUMMY
    if not dummy.exists():
        dummy_model.write(dummy)
    (base / "input").mkdir(parents=True, exist_ok=True)
    mesh = mesh_hierarchy.load(dummy / "face_model" / "topology.safetensors")
    write_ply(base / "input" / "face.ply", mesh.template, mesh.faces[0])
    (base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    layer = "transformer.transformer_blocks.1.attn1.to_q"
    down, up = (torch.randn(size, generator=generator) for size in ((4, dummy_model.DIM), (dummy_model.DIM, 4)))
    save_file(
        {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, base / "models" / "loras" / "card.safetensors"
    )
    if work is not None:
        folder = model_folder.write(base / "models" / "fantasyid" / FULL, work)
        mesh = mesh_hierarchy.load(folder / "face_model" / "topology.safetensors")
        write_ply(base / "input" / "template.ply", mesh.template, mesh.faces[0])


def measure_small(bench: Bench, only: re.Pattern) -> Iterator[Measured]:
    """The small runs; a process's first sampling may round otherwise than later ones, so each is run twice."""
    for name, graph in small_runs(bench.server.object_info()):
        if not only.search(name):
            continue
        graph = with_example(graph) if "photo" in graph else graph
        warm = _with_another_seed(graph)
        bench.server.run(warm)
        yield bench.run(name, graph)
    if only.search("cancel"):
        yield _cancelled(bench)


def _with_another_seed(graph: Graph) -> Graph:
    """So that nothing after the noise comes from the server's cache."""
    other = {"seed": 7, "noise_seed": 7}
    return {
        name: {**one, "inputs": one["inputs"] | {key: other[key] for key in other if key in one["inputs"]}}
        for name, one in graph.items()
    }


def _cancelled(bench: Bench) -> Measured:
    """A run that is cancelled while it samples, then one that is not: the latents are those of an undisturbed run."""
    graph = with_example(graphs.latents_of(graphs.with_nano(graphs.released("", steps=8, frames=9, seed=3))))
    before = bench.run("cancel", graph)
    undisturbed = bench.latents["cancel"]
    cancelled = bench.server.run(
        changed(graph, sample={"seed": 4}),
        on_event=lambda e: bench.server.interrupt() if e.kind == "progress" else None,
    )
    bench.server.run(changed(graph, sample={"seed": 5}))  # else the server would answer from its cache
    after = bench.run("cancel", graph)
    same = torch.equal(undisturbed[0], bench.latents["cancel"][0])
    note = f"the other run was {cancelled.status}; then latents {'equal' if same else 'DIFFER'}"
    return replace(after, seconds=before.seconds, note=note)


def line(one: Measured) -> str:
    """One run for the terminal."""
    error = "" if one.error is None else f"{one.error:.1e}"
    numbers = f"{one.seconds:8.2f} s {one.step:7.3f} s/step {one.peak:6.2f} GiB {error}"
    return f"{one.patcher:8} {one.name:44} {numbers} {one.note}"


def table(found: list[Measured]) -> str:
    """Markdown: a row a run, both patchers side by side."""
    rows = [
        "| run | s, dynamic | s, plain | s / step | GiB, dynamic | GiB, plain | latents differ by | |",
        "| --- |" + " --- |" * 7,
    ]
    by_name: dict[str, dict[str, Measured]] = {}
    for one in found:
        by_name.setdefault(one.name, {})[one.patcher] = one
    for name, both in by_name.items():
        one = both.get(DYNAMIC) or both[PLAIN]
        seconds, peaks = (
            [f"{getattr(both[p], what):.1f}" if p in both else "" for p in (DYNAMIC, PLAIN)]
            for what in ("seconds", "peak")
        )
        error = "" if one.error is None else "0" if one.error == 0 else f"{one.error:.1e}"
        notes = "; ".join(dict.fromkeys(each.note for each in both.values() if each.note))
        step = f"{one.step:.2f}" if one.step else ""
        rows.append(f"| {' | '.join((name, *seconds, step, *peaks, error, notes))} |")
    return "\n".join(rows) + "\n"


def measure(arguments: argparse.Namespace, base: Path, say: Callable[[str], None]) -> list[Measured]:
    """All runs of both patchers, saved after each server."""
    only = re.compile(arguments.only)
    full = None if arguments.smoke else SMOKE if arguments.tiny else RELEASE
    stock_server(base, full)
    found: list[Measured] = []
    known: dict[str, list[Tensor]] = {}
    has_both = NO_DYNAMIC_VRAM in (find_host() / "comfy" / "cli_args.py").read_text("utf-8")
    for patcher in (PLAIN, DYNAMIC) if has_both else (PLAIN,):
        switches = [NO_DYNAMIC_VRAM] if has_both and patcher == PLAIN else []
        with ComfyServer(base, [*switches, *arguments.host.split()]) as server:
            bench = Bench(server, patcher, say)
            ours = list(measure_small(bench, only))
            if full is not None and only.search("whole run"):
                ours += _whole_runs(bench, full, arguments)
            log = server.log_tail(4000)
        say(
            f"{patcher}: " + ("dynamic VRAM" if "DynamicVRAM support detected and enabled" in log else "plain patchers")
        )
        for one in ours:
            mine, theirs = bench.latents.get(one.name), known.get(one.name)
            if mine and theirs:
                error = max(relative_error(a, b) for a, b in zip(mine, theirs, strict=True))
                one = replace(one, error=error)
            found.append(one)
        known = known or bench.latents
        if arguments.json:
            arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", "utf-8")
    return found


def _whole_runs(bench: Bench, work: Workload, arguments: argparse.Namespace) -> Iterator[Measured]:
    """At the full size with less and less of the card free, every model loaded anew.

    A run before them is not measured: it reads the files from the disk and compiles packages never imported before.
    """
    graph = whole_run(work, arguments.steps)
    bench.server.run(changed(graph, sample={"seed": 7, "steps": 1}), timeout=400)
    for free in (None, *arguments.free):
        _empty(bench)
        with only_free(free) as taken:
            bench.others += taken
            name = "whole run" if free is None else f"whole run, {free:g} GiB free"
            yield bench.run(name, changed(graph, sample={"seed": 42}), arguments.steps, timeout=400)
            bench.others -= taken


def _empty(bench: Bench) -> None:
    """Ask until the server holds little of the card: it misses the request while it collects garbage after a run."""
    for _ in range(30):
        bench.server.free()
        time.sleep(2)
        if used_gib() - bench.others < 2:
            return
    raise TimeoutError(f"The server still holds {used_gib() - bench.others:.1f} GiB a minute after it was to free them")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="the small runs only, on whatever there is")
    parser.add_argument("--tiny", action="store_true", help="whole runs of a tiny model, to see that they run")
    parser.add_argument("--only", default=".", metavar="REGEX", help="runs whose name matches")
    parser.add_argument(
        "--free", type=float, nargs="*", default=[], help="whole runs with so many GiB of the card free"
    )
    parser.add_argument("--steps", type=int, default=6, help="steps really done in a whole run")
    parser.add_argument("--host", default="", help="ComfyUI's own arguments, such as '--front-end-root DIR'")
    parser.add_argument("--base", type=Path, help="where the servers' folders and the 23 GB of random weights are kept")
    parser.add_argument("--json", type=Path, help="write all runs to this file")
    parser.add_argument("--table", type=Path, help="write a table in Markdown to this file")
    arguments = parser.parse_args()
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, arguments.base or Path(folder), say)
    if arguments.table:
        arguments.table.write_text(table(found), "utf-8")
    print(table(found))
    return 1 if any("FAILED" in one.note or "DIFFER" in one.note for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
