"""`python -m fantasyid_lab.people`: a grid of people and how fast they are drawn."""

import argparse
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

from . import render as rendering
from .clip import Clip, clip
from .person import VALIDATION, person
from .render import render


def main() -> None:
    """See `--help`."""
    parser = argparse.ArgumentParser(prog="python -m fantasyid_lab.people", description=__doc__)
    parser.add_argument("--frames", type=int, default=400, help="how many frames to time")
    parser.add_argument("--length", type=int, default=25, help="frames per clip")
    parser.add_argument("--size", type=int, default=160, help="side of a frame in px")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--grid", "--sheet", type=Path, help="picture to write: a person per row, frames in columns")
    parser.add_argument("--people", type=int, default=8, help="rows of the grid")
    parser.add_argument("--columns", type=int, default=7, help="columns of the grid")
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    arguments = parser.parse_args()
    if arguments.grid:
        _save_grid(arguments)
    if arguments.frames:
        _benchmark(arguments)


def _draw_clips(count: int, seed: int, length: int) -> list[Clip]:
    return [clip(person(VALIDATION.start + i), seed, length) for i in range(count)]


def _save_grid(arguments: argparse.Namespace) -> None:
    from PIL import Image

    clips = _draw_clips(arguments.people, arguments.seed, arguments.length)
    frames = render(clips, arguments.size, arguments.device).frames
    columns = torch.linspace(0, arguments.length - 1, arguments.columns).round().long()
    rows = torch.cat([torch.cat(list(row), 1) for row in frames[:, columns.to(frames.device)]])
    arguments.grid.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((rows * 255 + 0.5).byte().cpu().numpy()).save(arguments.grid)
    for i, each in enumerate(clips):
        print(f"{i}: {each.caption}")


def _benchmark(arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    count = max(1, arguments.frames // arguments.length)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(function: Callable[[], object]) -> float:
        wait()
        start = time.perf_counter()
        function()
        wait()
        return time.perf_counter() - start

    _draw_clips(1, arguments.seed, 1)  # reads the head
    clips: list[Clip] = []
    draw_seconds = seconds(lambda: clips.extend(_draw_clips(count, arguments.seed, arguments.length)))
    render(clips[:4], arguments.size, device)  # kernels and tables
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    total = seconds(lambda: render(clips, arguments.size, device))
    frames = count * arguments.length
    print(f"{frames} frames of {arguments.size} × {arguments.size} on {device}, {torch.get_num_threads()} threads")
    print(f"drawing people and clips by seed: {1e3 * draw_seconds / count:.2f} ms a clip")
    print(f"rendering: {total:.3f} s, {frames / total:.0f} frames a second")
    print(f"both: {frames / (total + draw_seconds):.0f} frames a second")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")
    shares: dict[str, float] = {}
    with _stage_times(shares, wait):
        render(clips, arguments.size, device)
    inside = ("raster", "paint and shade")
    shares["draw, the rest (compose, copies)"] = shares.pop("draw") - sum(
        shares[name] for name in ("geometry", "light", "background", "surface") if name in shares
    )
    shares["surface, the rest"] = shares.pop("surface") - sum(shares[name] for name in inside)
    for name, spent in shares.items():
        print(f"  {name}: {1e6 * spent / frames:.1f} µs a frame")


@contextmanager
def _stage_times(shares: dict[str, float], wait: Callable[[], None]):
    """Add up where `render` spends its time, waiting for the device at each stage."""
    model = rendering._Model
    stages = [
        ("setup per clip", model, "__init__"),
        ("draw", model, "draw"),
        ("surface", model, "_surface"),
        ("raster", rendering, "visible"),
        ("paint and shade", rendering.appearance, "paint_pixels"),
        ("light", rendering, "shade"),
        ("background", rendering, "backdrop"),
        ("geometry", rendering.Head, "linear_blend_skinning"),
    ]
    originals = [getattr(owner, name) for _, owner, name in stages]

    def timed(label: str, function: Callable) -> Callable:
        def call(*arguments, **named):
            wait()
            start = time.perf_counter()
            result = function(*arguments, **named)
            wait()
            shares[label] = shares.get(label, 0.0) + time.perf_counter() - start
            return result

        return call

    for (label, owner, name), function in zip(stages, originals, strict=True):
        setattr(owner, name, timed(label, function))
    try:
        yield
    finally:
        for (_, owner, name), function in zip(stages, originals, strict=True):
            setattr(owner, name, function)


if __name__ == "__main__":
    main()
