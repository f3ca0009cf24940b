"""Whether two identities stay apart, by time and by place: `python -m tools.measure.two_people time|halves`.

`time`: videos of FantasyID-nano whose first half is one TEST person and whose second half another, beside videos of
each of the two alone. `halves`: two true clips of strangers side by side on one canvas, drawn again in place with one
identity on each half, beside both identities everywhere and beside each clip drawn again alone. `--make FOLDER` draws
them (a GPU takes minutes), `--read FOLDER` measures them with dlib; without either both are done.
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.dit.config import FPS
from fantasyid_core.dit.injection import Injection
from fantasyid_core.dit.region import Region
from fantasyid_core.fusion.identity import Identity
from fantasyid_core.meters import likeness
from fantasyid_core.meters.embedding import DLIB, Embedding
from fantasyid_core.video.plan import arrange
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases, generate
from fantasyid_lab.evaluation.command import MANY, say
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.evaluation.processes import shared_out
from fantasyid_lab.evaluation.truth import vectors

DENOISES = (0.4, 0.5, 0.6, 0.8)  # of denoising
EVERY = 3  # frames, of those that are kept and measured
HALF, FADE = cases.FRAMES / FPS / 2, 0.25  # seconds
LEFT, RIGHT = BOXES = ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0))
STEPS, GUIDANCE = 20, 4.0
DOES = ("looks at the camera", "talks", "smiles", "is talking", "blinks")
COLOURS = ("white", "blue", "green", "red", "grey")

Frames = dict[str, np.ndarray]
Rows = list[dict[str, float | str]]


def pairs(people: int, count: int) -> list[tuple[int, int]]:
    """Numbers of the first and the second person of each of `count` pairs, or of as many as there are people."""
    return [(i, (i + people // 2) % people) for i in range(min(count, people))]


def prompt(number: int) -> str:
    """One that says of the person nothing at all."""
    shirt, behind = COLOURS[number % 5], COLOURS[(number // 5 + number + 1) % 5]
    return f"A person in a {shirt} shirt in front of a {behind} background {DOES[number % 5]}."


def make_time(people: int, count: int, seed: int, device: str, sampling: Mapping, strength: float) -> Frames:
    """Every third frame, uint8: gallery and true clips (N, …), and of the pairs (P, …) what was made."""
    found, chosen, generator, identities = _start(people, seed, device)
    found["true clips"] = _kept(cases.show([case.target for case in chosen], device).frames)
    both, first, second = [], [], []
    for i, (a, b) in enumerate(pairs(people, count)):
        request = Request(prompt(i), identities[a], 1000 * seed + i)
        regions = Region(to_second=HALF, fade=FADE), Region(from_second=HALF, fade=FADE)
        first.append(request)
        second.append(replace(request, identity=identities[b]))
        both.append(replace(request, injections=_injections(identities[a], identities[b], regions, strength)))
    videos = {"first then second": both, "first alone": first, "second alone": second}
    return found | {name: _drawn(generator, name, x, sampling) for name, x in videos.items()}


def read_time(found: Frames, faces: Embedding, device: str) -> Rows:
    """Re-identification of the halves; the frame in the middle belongs to neither."""
    gallery = likeness.average(vectors(faces, _frames(found, "gallery"), device))
    seen = {name: vectors(faces, _frames(found, name), device) for name in found if name != "gallery"}
    people, half = len(gallery), seen["true clips"].shape[1] // 2
    a, b = (torch.tensor(side) for side in zip(*pairs(people, len(seen["first alone"])), strict=True))

    def row(name: str, first: Tensor, second: Tensor) -> dict[str, float | str]:
        first, second = likeness.average(first[:, :half]), likeness.average(second[:, -half:])
        return {
            "video": name,
            "first half found": _found(first, gallery, a),
            "second half found": _found(second, gallery, b),
            "first nearer to its person": _nearer(first, gallery[a], gallery[b]),
            "second nearer to its person": _nearer(second, gallery[b], gallery[a]),
        }

    true, whole = seen["true clips"], likeness.average(seen["first alone"])
    rows = [
        row("true clips", true[a], true[b]),
        row("each alone", seen["first alone"], seen["second alone"]),
        row("first, then second", seen["first then second"], seen["first then second"]),
        {"video": "the first alone, the whole video", "first half found": _found(whole, gallery, a)},
    ]
    means = [(float(x["first half found"]) + float(x["second half found"])) / 2 for x in rows[1:3]]
    ratio = means[1] / means[0] if means[0] else math.nan
    return [*rows, {"video": "chance", "first half found": 1 / people}, {"video": "× each alone", "both halves": ratio}]


def make_halves(
    people: int, count: int, seed: int, device: str, sampling: Mapping, strength: float, denoises: Sequence[float]
) -> Frames:
    """Every third frame, uint8: gallery, the canvases, and by denoising strength what became of them."""
    found, chosen, generator, identities = _start(people, seed, device)
    both = pairs(people, count)
    strangers = cases.show([case.stranger for case in chosen], device).frames
    canvases = torch.stack([torch.cat([strangers[a], strangers[b]], 2) for a, b in both])
    found["canvases"] = _kept(canvases)
    start = generator.encode(canvases)
    sides = [generator.encode(strangers[[pair[side] for pair in both]]) for side in (0, 1)]
    apart, together, alone = [], [], ([], [])
    for i, (a, b) in enumerate(both):
        crops = arrange([identities[a].image, identities[b].image], BOXES)
        does = f"A person {DOES[i % len(DOES)]}."  # what else there is stands in the canvas
        request = Request(does, replace(identities[a], image=crops), 1000 * seed + i)
        for requests, regions in ((apart, [Region(box=box) for box in BOXES]), (together, [Region(), Region()])):
            made = _injections(identities[a], identities[b], regions, strength)
            requests.append(replace(request, injections=made))
        for side, person in enumerate((a, b)):
            alone[side].append(replace(request, identity=identities[person]))
    size = canvases.shape[2:4]  # patches of 16 px as far apart as in training, or nothing but a blur comes out
    for denoise in denoises:
        again = {**sampling, "denoising_strength": denoise}
        whole = {**again, "start": start, "size": size, "grid": (size[0] // 16, size[1] // 16)}
        found[f"apart {denoise:g}"] = _drawn(generator, f"apart {denoise:g}", apart, whole)
        found[f"together {denoise:g}"] = _drawn(generator, f"together {denoise:g}", together, whole)
        halves = [
            _drawn(generator, f"alone {denoise:g}", own, {**again, "start": x})
            for own, x in zip(alone, sides, strict=True)
        ]
        found[f"alone {denoise:g}"] = np.concatenate(halves, 3)
    return found


def read_halves(found: Frames, faces: Embedding, device: str) -> Rows:
    """Whose face each half shows."""
    gallery = likeness.average(vectors(faces, _frames(found, "gallery"), device))
    a, b = (torch.tensor(side) for side in zip(*pairs(len(gallery), len(found["canvases"])), strict=True))
    own, other = torch.cat([gallery[a], gallery[b]]), torch.cat([gallery[b], gallery[a]])
    rows = []
    for name in (name for name in found if name != "gallery"):
        left, right = _frames(found, name).chunk(2, 3)
        seen = vectors(faces, torch.cat([left, right]), device)
        mean = likeness.average(seen)
        rows.append(
            {
                "video": name,
                "nearer to its person": _nearer(mean, own, other),
                "found": _found(mean, gallery, torch.cat([a, b])),
                "similarity to its person": float((mean * own).sum(1).nanmean()),
                "similarity to the other": float((mean * other).sum(1).nanmean()),
                "frames with a face": float(seen.isfinite().all(-1).float().mean()),
            }
        )
    return [*rows, {"video": "chance", "nearer to its person": 0.5, "found": 1 / len(gallery)}]


def _start(people: int, seed: int, device: str) -> tuple[Frames, list[cases.Case], Generator, list[Identity]]:
    say(f"Rendering true clips of {people} people")
    chosen = cases.draw(people, seed)
    references = cases.show([case.reference for case in chosen], device).frames[:, 0]
    gallery = cases.show([case.gallery for case in chosen], device, stride=EVERY).frames
    generator = generate.load(nano.SHIPPED, device)
    say(f"Making the identities of {people} people")
    identities = [generator.identity(generate.reference(photo, device)) for photo in references]
    return {"gallery": cases.as_bytes(gallery).numpy()}, chosen, generator, identities


def _injections(first: Identity, second: Identity, regions: Sequence[Region], strength: float) -> tuple[Injection, ...]:
    tokens = (first.tokens, second.tokens)
    return tuple(Injection(x, strength, region=region) for x, region in zip(tokens, regions, strict=True))


def _kept(videos: Tensor) -> np.ndarray:
    return cases.as_bytes(videos[:, ::EVERY]).numpy()


def _drawn(generator: Generator, name: str, requests: Sequence[Request], sampling: Mapping) -> np.ndarray:
    """Every third frame (P, T', H, W, 3) uint8 of the videos."""
    say(f"Making {len(requests)} videos: {name}")
    return generator.videos(requests, **sampling)[:, ::EVERY].numpy()


def _frames(found: Frames, name: str) -> Tensor:
    return torch.from_numpy(found[name])


def _found(probes: Tensor, gallery: Tensor, person: Tensor) -> float:
    """Share of probes (P, D) that are nearest to their person (P,) of the gallery (N, D); without a face none."""
    near = (probes @ gallery.T).nan_to_num(-2.0)
    return float(((near.argmax(1) == person) & probes.isfinite().all(1)).double().mean())


def _nearer(probes: Tensor, own: Tensor, other: Tensor) -> float:
    """Share of probes (P, D) nearer to the one than to the other; without a face none is."""
    return float(((probes * own).sum(1) > (probes * other).sum(1)).double().mean())


def table(rows: Rows) -> str:
    """Rows as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[f"{x:.3f}" if isinstance(x := row.get(name, ""), float) else str(x) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "halves"))
    parser.add_argument("--people", type=int, default=100, help="among whom everybody is looked for (100)")
    parser.add_argument("--pairs", type=int, default=60, help="of them (60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--strength", type=float, default=1.0, help="of the two identities")
    parser.add_argument("--denoise", type=float, nargs="+", default=DENOISES, help="of denoising, for halves")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="draw, and write .npz files there, no more")
    parser.add_argument("--read", type=Path, metavar="FOLDER", help="measure what such a folder holds")
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    read: Callable[[Frames, Embedding, str], Rows] = read_time if options.what == "time" else read_halves
    sampling = {"steps": options.steps, "guidance": GUIDANCE, "guide_identity": True}
    made_of = (options.people, options.pairs, options.seed, options.device, sampling, options.strength)
    if options.read:
        found = {file.stem: np.load(file)["values"] for file in sorted(options.read.glob("*.npz"))}
        if "gallery" not in found:
            parser.error(f"{options.read} holds no frames: make them with --make {options.read}")
    else:
        found = make_time(*made_of) if options.what == "time" else make_halves(*made_of, options.denoise)
    if options.make:
        options.make.mkdir(parents=True, exist_ok=True)
        for name, values in found.items():
            np.savez_compressed(options.make / f"{name}.npz", values=values)
        return
    processes = os.cpu_count() or 1 if len(found["gallery"]) >= MANY else 1
    with shared_out(DLIB, [], processes) as faces:
        rows = read(found, faces, options.device)
    print(table(rows))
    if options.json:
        settings = {
            "what": options.what,
            "people": len(found["gallery"]),
            "seed": options.seed,
            "strength": options.strength,
        } | sampling
        options.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
