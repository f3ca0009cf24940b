"""`python -m fantasyid_lab.training.oracle_bounds`: oracle upper bounds of identity similarity, whatever the DiT.

The autoencoder's: true clips of the evaluation's cases, decoded from their latents. The identity encoder's: ridge
regressions predict shape code and paint from the tokens of people of the training split; the cases' people are
re-rendered with what is predicted from their references' tokens, and these clips are decoded from latents, too. All are
measured as outputs are.
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
from ..latents import decode, encode
from ..people.clip import Clip, still
from ..people.crops import align
from ..people.person import TRAIN, Person, person
from ..people.render import render
from .face import CROP, as_photos
from .face_truth import variance_explained, vertex_gram

FIRST_PERSON = len(TRAIN) * 7 // 10  # whom no pool reaches that begins with a seed below 7
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
BATCH = 16


@dataclass(frozen=True, eq=False)
class PersonCodes:
    """N people: shape codes (N, 100) and paint (N, P), the numbers of `Paint` one after the other."""

    shape: Tensor
    paint: Tensor


@dataclass(frozen=True)
class OracleBound:
    """Normalised identity similarity and top-1 re-identification of cases, rendered or decoded in some way."""

    name: str
    identity_similarity: float
    reidentification: float


def codes_of(people: Sequence[Person]) -> PersonCodes:
    """True codes of people."""
    paint = torch.from_numpy(np.stack([one.paint.vector for one in people])).float()
    return PersonCodes(torch.stack([one.shape_code for one in people]), paint)


def with_codes(one: Person, shape: Tensor, paint: Tensor) -> Person:
    """The person with another shape code (100,) and paint (P,)."""
    return replace(one, shape_code=shape, paint=one.paint.from_vector(paint.numpy()))


@torch.no_grad()
def tokens_of(model: nano.Nano, photos: Sequence[Clip], device: torch.device) -> tuple[Tensor, Tensor]:
    """Photos of one frame, rendered as the evaluation's → the means of their face tokens and of their vertex tokens,
    each normalised as injection layers read them, side by side (N, 2 K); and the regressor's shape codes (N, 100).
    Faces lie by true landmarks.
    """
    encoder, batches = model.encoder, []
    for start in range(0, len(photos), BATCH):
        rendered = render(photos[start : start + BATCH], cases.SIZE, device)
        pictures = cases.as_bytes(rendered.frames[:, 0])
        crops = align(pictures, rendered.landmarks[:, 0], CROP, torch.zeros(len(pictures), 4, device=device))
        face = encoder.face_tokens(crops)
        shape = deca.split(model.regressor(as_photos(pictures))).shape
        mesh = encoder.vertex_tokens(model.face.decode(shape), face)
        means = [F.layer_norm(tokens, tokens.shape[-1:]).mean(1) for tokens in (face, mesh)]
        batches.append((torch.cat(means, 1).cpu(), shape.cpu()))
    tokens, shapes = (torch.cat(part) for part in zip(*batches, strict=True))
    return tokens, shapes


def ridge(inputs: Tensor, targets: Tensor, new_inputs: Tensor) -> Tensor:
    """Ridge regression from `inputs` (N, A) to `targets` (N, B), applied to `new_inputs` (M, A): (M, B), clamped to the
    targets' range. Of `PENALTIES` it takes the best on the last fifth.
    """
    mean, scale = inputs.mean(0), inputs.std(0) + 1e-6
    middle, spread = targets.mean(0), targets.std(0) + 1e-6
    a, b, y = (inputs - mean) / scale, (new_inputs - mean) / scale, (targets - middle) / spread

    def weights(rows: Tensor, goals: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(rows.T @ rows + penalty * torch.eye(rows.shape[1]), rows.T @ goals)

    most = len(a) * 4 // 5
    errors = [(a[most:] @ weights(a[:most], y[:most], p) - y[most:]).square().mean() for p in PENALTIES]
    predicted = b @ weights(a, y, PENALTIES[int(torch.stack(errors).argmin())]) * spread + middle
    return predicted.clamp(targets.amin(0), targets.amax(0))


def measure(
    model: nano.Nano,
    drawn: Sequence[Case],
    fit: int,
    faces: embedding.Embedding,
    device: torch.device,
    autoencoder: bool = True,
) -> tuple[list[OracleBound], dict[str, float]]:
    """Oracle upper bounds of cases, and the variance of shapes that tokens and regressor explain (R²).

    Args:
        fit: people whom the regressions learn on.
        faces: the face embedding.
        autoencoder: whether clips, true and re-rendered, are decoded from latents too, which takes longest.
    """
    true = codes_of([case.target.person for case in drawn])
    predicted, regressed_shape, mean_shape = predict_codes(model, drawn, fit, device)
    meter = _Meter(drawn, faces, device)
    clips = {
        "shape and paint predicted from tokens": rerender(drawn, predicted.shape, predicted.paint),
        "shape predicted from tokens, true paint": rerender(drawn, predicted.shape, true.paint),
        "true shape, paint predicted from tokens": rerender(drawn, true.shape, predicted.paint),
        "the regressor's shape, true paint": rerender(drawn, regressed_shape, true.paint),
        "mean shape, true paint": rerender(drawn, mean_shape, true.paint),
    }
    bounds = [meter.bound("true renders", meter.truth)]
    bounds += [meter.bound(name, meter.embed_clips(some)) for name, some in clips.items()]
    if autoencoder:
        decoded = {
            "true clips": [case.target for case in drawn],
            "predicted from tokens": clips["shape and paint predicted from tokens"],
        }
        for name, some in decoded.items():
            frames = _decoded(model, some, device)
            bounds.append(meter.bound(f"{name}, through the autoencoder", meter.embed_frames(frames)))
    gram = vertex_gram(model.face.shape_basis[..., : true.shape.shape[1]]).cpu()
    shapes = {"tokens": predicted.shape, "regressor": regressed_shape}
    return bounds, {name: variance_explained(shape, true.shape, gram) for name, shape in shapes.items()}


class _Meter:
    """Measures outputs of cases (N,) against their references, true renders and strangers.

    Attributes:
        truth: (N, D) unit vectors of the true renders.
    """

    def __init__(self, drawn: Sequence[Case], faces: embedding.Embedding, device: torch.device):
        self._faces, self._device = faces, device
        say("Embedding the true renders")
        self._reference, self._gallery, self._stranger, self.truth = (
            self.embed_clips([getattr(case, name) for case in drawn])
            for name in ("reference", "gallery", "stranger", "target")
        )

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Frames (N, T, H, W, 3) → unit vectors (N, D)."""
        return likeness.average(vectors(self._faces, frames, self._device))

    def embed_clips(self, clips: list[Clip]) -> Tensor:
        """Clips, rendered → unit vectors (N, D)."""
        return self.embed_frames(cases.show(clips, self._device, stride=EMBED_EVERY).frames)

    def bound(self, name: str, outputs: Tensor) -> OracleBound:
        """What outputs (N, D) come to."""
        say(f"Measured: {name}")
        similarities = ((x * self._reference).sum(1) for x in (outputs, self._stranger, self.truth))
        top1 = likeness.reidentification(outputs, self._gallery)
        return OracleBound(name, likeness.normalised_similarity(*similarities), top1)


def rerender(drawn: Sequence[Case], shapes: Tensor, paints: Tensor) -> list[Clip]:
    """The cases' clips with other shape codes (N, 100) and paint (N, P)."""
    changes = zip(drawn, shapes, paints, strict=True)
    return [replace(case.target, person=with_codes(case.target.person, *codes)) for case, *codes in changes]


def predict_codes(
    model: nano.Nano, drawn: Sequence[Case], fit: int, device: torch.device
) -> tuple[PersonCodes, Tensor, Tensor]:
    """Codes of the cases' people from their references.

    Returns:
        the ridge regressions' of the tokens, learned on `fit` people of the training split; the regressor's shape codes
        (N, 100); the mean shape of those people, likewise.
    """
    say(f"Encoding {fit} people of the training split")
    train_people = [person(TRAIN[FIRST_PERSON + i]) for i in range(fit)]
    train_tokens, _ = tokens_of(model, [still(one, 0) for one in train_people], device)
    train = codes_of(train_people)
    tokens, regressed_shape = tokens_of(model, [case.reference for case in drawn], device)
    shape, paint = (ridge(train_tokens, x, tokens) for x in (train.shape, train.paint))
    return PersonCodes(shape, paint), regressed_shape, train.shape.mean(0).expand_as(shape)


@torch.no_grad()
def _decoded(model: nano.Nano, clips: list[Clip], device: torch.device) -> Tensor:
    """Clips decoded from their latents, every `EMBED_EVERY`-th frame, on the CPU."""
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
        bounds, explained = measure(model, drawn, options.fit, faces, device, not options.no_autoencoder)
    print(f"| | normalised identity similarity | re-identified of {len(drawn)} |\n| --- | --- | --- |")
    for row in bounds:
        print(f"| {row.name} | {row.identity_similarity:.2f} | {row.reidentification:.2f} |")
    shares = ", ".join(f"{value:.2f} by the {name}" for name, value in explained.items())
    print(f"\nVariance of the shapes explained (R²): {shares}.")
    if options.json:
        rows = [{"name": x.name, "share": x.identity_similarity, "found": x.reidentification} for x in bounds]
        content = {"people": len(drawn), "fit": options.fit, "rows": rows, "told": explained}
        options.json.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fantasyid_lab.training.oracle_bounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, default=nano.SHIPPED, help="folder in the published layout (the shipped model)")
    add("--people", type=int, default=60, help="unseen people to measure (60)")
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
