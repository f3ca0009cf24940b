"""`python -m fantasyid_lab.training.oracle_bounds`: how near to a person any DiT could come.

Two parts stand around it. The autoencoder: true clips of the evaluation's cases go through it. The identity encoder:
ridge regressions learn, on people of the training split, to read shape code and paint in the tokens; the cases' people
are then drawn again as the tokens of their references tell, and these clips go through the autoencoder, too. All are
judged as outputs are.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.meters import embedding, likeness
from fantasyid_core.reconstruction import deca

from .. import nano
from ..evaluation import cases
from ..evaluation.cases import Case
from ..evaluation.command import guarded, say
from ..evaluation.processes import shared_out
from ..evaluation.truth import EMBED_EVERY, vectors
from ..people.clip import Clip, still
from ..people.person import TRAIN, Person, person
from ..people.render import render
from . import data
from .face import CROP, as_photos
from .face_truth import variance_explained, vertex_gram
from .vae import decode, encode

FIRST = len(TRAIN) * 7 // 10  # whom no pool reaches that begins with a seed below 7
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class Described:
    """N people: shape codes (N, 100) and paint (N, P), the numbers of `Paint` one after the other."""

    shape: Tensor
    paint: Tensor


@dataclass(frozen=True)
class OracleBound:
    """What cases come to, drawn or decoded in some way: normalised identity similarity and top-1 re-identification."""

    name: str
    share: float
    found: float


def described(people: Sequence[Person]) -> Described:
    """What is true of people."""
    paint = torch.from_numpy(np.stack([one.paint.vector for one in people])).float()
    return Described(torch.stack([one.shape_code for one in people]), paint)


def redrawn_as(one: Person, shape: Tensor, paint: Tensor) -> Person:
    """The person with another shape code (100,) and paint (P,)."""
    return replace(one, shape_code=shape, paint=one.paint.from_vector(paint.numpy()))


@torch.no_grad()
def tokens_of(model: nano.Nano, photos: Sequence[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
    """Photos of one frame, drawn as the evaluation's → the means of their face tokens and of their vertex tokens, each
    normalised as injection layers read them, side by side (N, 2 K); and the regressor's shape codes (N, 100). Faces lie
    by true landmarks.
    """
    encoder, found = model.encoder, []
    for start in range(0, len(photos), AT_ONCE):
        drawn = render(photos[start : start + AT_ONCE], cases.SIZE, device)
        pictures = cases.as_bytes(drawn.frames[:, 0])
        crops = data.align(pictures, drawn.landmarks[:, 0], CROP, torch.zeros(len(pictures), 4, device=device))
        face = encoder.face_tokens(crops)
        code = deca.split(model.regressor(as_photos(pictures))).shape
        mesh = encoder.vertex_tokens(model.face.decode(code), face)
        means = [F.layer_norm(tokens, tokens.shape[-1:]).mean(1) for tokens in (face, mesh)]
        found.append((torch.cat(means, 1).cpu(), code.cpu()))
    tokens, codes = (torch.cat(part) for part in zip(*found, strict=True))
    return tokens, codes


def ridge(known: Tensor, wanted: Tensor, new: Tensor) -> Tensor:
    """What a linear regression from `known` (N, A) to `wanted` (N, B) makes of `new` (M, A): (M, B), never beyond what
    it saw. Of `PENALTIES` it takes the best on the last fifth.
    """
    mean, scale = known.mean(0), known.std(0) + 1e-6
    middle, spread = wanted.mean(0), wanted.std(0) + 1e-6
    a, b, targets = (known - mean) / scale, (new - mean) / scale, (wanted - middle) / spread

    def weights(rows: Tensor, goals: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(rows.T @ rows + penalty * torch.eye(rows.shape[1]), rows.T @ goals)

    most = len(a) * 4 // 5
    errors = [(a[most:] @ weights(a[:most], targets[:most], p) - targets[most:]).square().mean() for p in PENALTIES]
    predicted = b @ weights(a, targets, PENALTIES[int(torch.stack(errors).argmin())]) * spread + middle
    return predicted.clamp(wanted.amin(0), wanted.amax(0))


def measure(
    model: nano.Nano,
    drawn: Sequence[Case],
    fit: int,
    faces: embedding.Embedding,
    device: torch.device,
    autoencoder: bool = True,
) -> tuple[list[OracleBound], dict[str, float]]:
    """Oracle upper bounds of cases, and the variance of shapes that tokens and regressor explain.

    Args:
        fit: people whom the regressions learn on.
        faces: who judges.
        autoencoder: whether clips, true and drawn again, go through it too, which takes longest.
    """
    say(f"Reading {fit} people of the training split")
    known = [person(TRAIN[FIRST + i]) for i in range(fit)]
    tokens, _ = tokens_of(model, [still(one, 0) for one in known], device)
    of_known, owners = described(known), [case.target.person for case in drawn]
    own = described(owners)
    new, codes = tokens_of(model, [case.reference for case in drawn], device)
    shape, paint = (ridge(tokens, x, new) for x in (of_known.shape, of_known.paint))
    mean = of_known.shape.mean(0).expand_as(shape)

    def embedded(frames: Tensor) -> Tensor:
        return likeness.average(vectors(faces, frames, device))

    def judged(clips: list[Clip]) -> Tensor:
        return embedded(cases.show(clips, device, every=EMBED_EVERY).frames)

    def redrawn(shapes: Tensor, paints: Tensor) -> list[Clip]:
        people = [redrawn_as(*what) for what in zip(owners, shapes, paints, strict=True)]
        return [replace(case.target, person=one) for case, one in zip(drawn, people, strict=True)]

    say("Judging the truth")
    reference, gallery, stranger, truth = (
        judged([getattr(case, name) for case in drawn]) for name in ("reference", "gallery", "stranger", "target")
    )

    def bound(name: str, outputs: Tensor) -> OracleBound:
        say(f"Judged: {name}")
        ways = ((x * reference).sum(1) for x in (outputs, stranger, truth))
        return OracleBound(name, likeness.normalised_similarity(*ways), likeness.reidentification(outputs, gallery))

    again = redrawn(shape, paint)
    found = [
        bound("true renders", truth),
        bound("drawn as the tokens tell", judged(again)),
        bound("shape as told, their own paint", judged(redrawn(shape, own.paint))),
        bound("paint as told, their own shape", judged(redrawn(own.shape, paint))),
        bound("shape as the regressor tells, their own paint", judged(redrawn(codes, own.paint))),
        bound("everybody's mean shape, their own paint", judged(redrawn(mean, own.paint))),
    ]
    if autoencoder:
        targets = [case.target for case in drawn]
        found += [
            bound("true clips through the autoencoder", embedded(_decoded(model, targets, device))),
            bound("drawn as the tokens tell, through the autoencoder", embedded(_decoded(model, again, device))),
        ]
    gram = vertex_gram(model.face.shape_basis[..., : own.shape.shape[1]]).cpu()
    codes_by_source = {"tokens": shape, "regressor": codes}
    return found, {name: variance_explained(code, own.shape, gram) for name, code in codes_by_source.items()}


@torch.no_grad()
def _decoded(model: nano.Nano, clips: list[Clip], device: torch.device) -> Tensor:
    """Every so many frames, as they are judged, of clips that went through the autoencoder; on the CPU."""
    parts = cases.show(clips, device).frames.split(4)
    frames = [decode(model.vae, encode(model.vae, cases.as_bytes(part).to(device)))[:, ::EMBED_EVERY] for part in parts]
    return torch.cat(frames).cpu()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return guarded(_run, _parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = nano.read(options.model).to(device)
    drawn = cases.draw(options.people, options.seed, options.frames)
    with shared_out(embedding.DLIB, options.embedding_folder, options.processes) as faces:
        found, explained = measure(model, drawn, options.fit, faces, device, not options.no_autoencoder)
    print(f"| | normalised identity similarity | re-identified of {len(drawn)} |\n| --- | --- | --- |")
    for row in found:
        print(f"| {row.name} | {row.share:.2f} | {row.found:.2f} |")
    shares = ", ".join(f"{value:.2f} by the {name}" for name, value in explained.items())
    print(f"\nShare of the variance of the shapes that is explained: {shares}.")
    if options.json:
        content = {"people": len(drawn), "fit": options.fit, "rows": [vars(row) for row in found], "told": explained}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fantasyid_lab.training.oracle_bounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=nano.SHIPPED, help="folder in the published layout (the shipped model)")
    add("--people", type=int, default=60, help="unseen people to judge (60)")
    add("--seed", type=int, default=0, help="which of them (0)")
    add("--frames", type=int, default=cases.FRAMES, help="frames of their clips, 4 k + 1 (25)")
    add("--fit", type=int, default=1500, help="people whom the regressions learn on (1500)")
    add("--no-autoencoder", action="store_true", help="leave out the clips through it, which take longest")
    add("--device", help="cuda or cpu (cuda if there is one)")
    add("--embedding-folder", type=Path, action="append", default=[], help="where dlib's model file lies")
    add("--processes", type=int, default=1, help="that share the faces' embedding (1)")
    add("--json", type=Path, help="write the numbers to this file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
