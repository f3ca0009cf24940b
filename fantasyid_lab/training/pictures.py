"""Pictures of a training run: sample grids and loss curves, drawn with Pillow alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.images import to_pil
from fantasyid_core.optional_import import require

_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75))


def grid(tiles: Tensor, gap: int = 2) -> Tensor:
    """Tiles (rows, columns, H, W, 3) 0…1 → one picture (height, width, 3)."""
    tiles = torch.nn.functional.pad(tiles.float().cpu(), (0, 0, 0, gap, 0, gap), value=1.0)
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def save(picture: Tensor, path: Path) -> None:
    """Write a picture (H, W, 3) 0…1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(picture.clamp(0, 1)).save(path)


def curves(log: Path, stage: str, path: Path, size: tuple[int, int] = (900, 420)) -> None:
    """Draw the losses of a stage over its steps, on a logarithmic scale, from the run's `metrics.jsonl`."""
    Image = require("PIL.Image", "Drawing loss curves", "pillow")
    ImageDraw = require("PIL.ImageDraw", "Drawing loss curves", "pillow")
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line["stage"] == stage and "losses" in line]
    names = sorted({name for line in lines for name in line["losses"]})
    series = {n: [(x["step"], x["losses"][n]) for x in lines if x["losses"].get(n, 0) > 0] for n in names}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    _plot(draw, series, (60, 10, size[0] - 10, size[1] - 30))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _plot(draw, series: Mapping[str, Sequence[tuple[float, float]]], box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    last = max(points[-1][0] for points in series.values()) or 1
    logs = {name: [(s, torch.tensor(v).log10().item()) for s, v in points] for name, points in series.items()}
    values = [v for points in logs.values() for _, v in points]
    low, high = min(values), max(values)
    high = max(high, low + 0.1)
    draw.rectangle(box, outline=(160, 160, 160))
    for k in range(int(low) - 1, int(high) + 2):
        if low <= k <= high:
            y = y1 - (k - low) / (high - low) * (y1 - y0)
            draw.line((x0, y, x1, y), fill=(225, 225, 225))
            draw.text((5, y - 6), f"1e{k}", fill=(0, 0, 0))
    draw.text((x0, y1 + 8), f"0 … {last} steps", fill=(0, 0, 0))
    for i, (name, points) in enumerate(logs.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        places = [(x0 + s / last * (x1 - x0), y1 - (v - low) / (high - low) * (y1 - y0)) for s, v in points]
        draw.line(places, fill=colour, width=2)
        draw.text((x1 - 150, y0 + 6 + 14 * i), name, fill=colour)
