"""What the best of several takes gains in likeness: `python -m tools.measure.takes --people 300 --json FILE`.

FantasyID-nano makes several takes of one prompt for each person. What they will become is foretold at a share of the
steps from the clean latents predicted there, decoded, by the identity encoder's own tokens; dlib, which has no part in
that choice, tells which takes are the person, re-identified among 100. All ways of choosing are measured on people of
the VALIDATION split first; the one that is best there is told of TEST people. Beside it: one take, and the best of all
by dlib itself, which no choice can beat by much.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.detection.alignment import BORDER_GREY, CROP_SIZE, FFHQ_TEMPLATE, similarity
from fantasyid_core.fusion.identity import Identity
from fantasyid_core.meters import likeness
from fantasyid_core.meters.embedding import Embedding, locate_small, warp
from fantasyid_core.meters.judge import token_similarity
from fantasyid_lab import nano
from fantasyid_lab.evaluation import cases, generate
from fantasyid_lab.evaluation.command import DTYPES
from fantasyid_lab.evaluation.generate import Generator, Request
from fantasyid_lab.evaluation.processes import shared_out
from fantasyid_lab.evaluation.truth import EMBED_EVERY, vectors
from fantasyid_lab.people.person import TEST, VALIDATION

TAKES, STEPS, GUIDANCE = 4, 20, 4.0
SHARES = (0.2, 0.3, 0.4, 0.5)
SMALL_SHARE = 0.3  # at which decoding less is tried too
LONGEST = 0.4  # share that four takes can go to within 2.2 times the steps of one
LOT = 100  # people among whom one is to be found
APART = 100_000  # between the seeds of a person's takes, so that no two people share one
WAY = "face tokens, each with its own"  # as `meters.judge` has it
FINISHED, STRANGER = "when finished", "face tokens against the next person's"
FORETOLD_SCORE = 0.3  # of the detector: predicted frames are not sharp yet


@dataclass(frozen=True, eq=False)
class Measured:
    """Of N people, K takes each.

    Attributes:
        foretold: (N, K) by way of judging, more is more like; NaN where no face was seen.
        similarity: (N, K) dlib's cosine of a take with the reference photo, mean over its frames.
        found: (N, K) bool, the take is nearest to its own gallery clip of those of the 100 people of its lot.
    """

    foretold: dict[str, Tensor]
    similarity: Tensor
    found: Tensor


def measure(
    generator: Generator,
    embedding: Embedding,
    split: range,
    people: int,
    batch: int,
    say: Callable[[str], None],
) -> Measured:
    """Draw all takes of people of a split, foretell them and measure what they became."""
    drawn = cases.draw(people, 0, split=split)
    device = generator.device
    photos = cases.show([case.reference for case in drawn], device).frames
    gallery = cases.show([case.gallery for case in drawn], device, stride=EMBED_EVERY).frames
    identities = [generator.identity(generate.reference(photo, device)) for photo in photos[:, 0]]
    say(f"{people} identities")
    judges = ways(generator, identities)
    foretold: dict[str, list[Tensor]] = {}
    with ThreadPoolExecutor(1) as executor:  # while other processes embed
        reference, known = (executor.submit(vectors, embedding, x, device) for x in (photos, gallery))
        takes: list[Future] = []
        for first in range(0, people, batch):
            some = range(first, min(first + batch, people))
            requests = [
                Request(drawn[i].target.caption, identities[i], 1000 * (i // LOT) + i % LOT + APART * k)
                for i in some
                for k in range(TAKES)
            ]
            latents, predicted = foresee(generator, requests)
            frames = decode(generator, latents)[:, ::EMBED_EVERY]
            for name, scores in foretell(generator, predicted, frames, judges, some).items():
                foretold.setdefault(name, []).append(scores)
            takes.append(executor.submit(vectors, embedding, frames, device))
            say(f"{some.stop} of {people} people drawn")
        found = likeness.average(torch.cat([one.result() for one in takes])).unflatten(0, (people, TAKES))
        photo, others = reference.result()[:, 0], likeness.average(known.result())
    similarity = torch.einsum("nkd,nd->nk", found, photo)
    lots = zip(found.split(LOT), others.split(LOT), strict=True)
    ranks = torch.cat([torch.stack([likeness.rank(a[:, k], b) for k in range(TAKES)], 1) for a, b in lots])
    return Measured({name: torch.cat(parts) for name, parts in foretold.items()}, similarity, ranks == 0)


def foresee(generator: Generator, requests: Sequence[Request]) -> tuple[Tensor, dict[float, Tensor]]:
    """Latents of the finished takes, and those predicted at each of `SHARES`, all (B, T, 16, h, w)."""
    predicted: dict[float, Tensor] = {}

    def watch(step: int, latents: Tensor, clean: Tensor) -> None:
        predicted.update({share: clean for share in SHARES if step + 1 == round(share * STEPS)})

    latents = generator.latents(
        requests,
        nano.FRAMES,
        STEPS,
        GUIDANCE,
        "ddim",
        (nano.HEIGHT, nano.WIDTH),
        guide_identity=True,
        callback=watch,
    )
    return latents, predicted


Judge = Callable[[Tensor, int], Tensor]
"""Face tokens (N, Q, K) of frames, number of the person → similarity (N,)."""


@torch.no_grad()
def ways(generator: Generator, identities: Sequence[Identity]) -> dict[str, Judge]:
    """Ways to compare tokens, by name."""
    encoder = generator.model.encoder
    own = torch.stack([one.face_tokens.cpu() for one in identities])
    mean = own.mean(0)
    assert encoder.template is not None, "FantasyID-nano's mesh hierarchy has one"
    template = encoder.template[None].to(generator.device)

    def with_vertices(tokens: Tensor) -> Tensor:
        tokens = tokens.to(generator.device)
        return torch.cat([tokens, encoder.vertex_tokens(template.expand(len(tokens), -1, -1), tokens)], 1).cpu()

    whole = torch.cat([with_vertices(part) for part in own.split(50)])

    def flat(tokens: Tensor, person: int) -> Tensor:
        return F.cosine_similarity(tokens.flatten(1), own[person].flatten()[None], dim=1)

    def less_mean(tokens: Tensor, person: int) -> Tensor:
        return token_similarity(tokens - mean, own[person] - mean)

    return {
        STRANGER: lambda tokens, person: token_similarity(tokens, own[(person + 1) % len(own)]),
        WAY: lambda tokens, person: token_similarity(tokens, own[person]),
        "face tokens, as one vector": flat,
        "face tokens less the mean person's": less_mean,
        "face and vertex tokens": lambda tokens, person: token_similarity(with_vertices(tokens), whole[person]),
    }


def foretell(
    generator: Generator,
    predicted: dict[float, Tensor],
    finished: Tensor,
    judges: dict[str, Judge],
    people: Sequence[int],
) -> dict[str, Tensor]:
    """(n, K) scores of the takes of n people by every way of judging, share and decoding."""
    seen = {f"at {share:g} of the steps": decode(generator, predicted[share])[:, ::EMBED_EVERY] for share in SHARES}
    small = predicted[SMALL_SHARE]
    name = f"at {SMALL_SHARE:g} of the steps"
    seen[f"{name}, every third latent alone"] = decode_alone(generator, small[:, ::3])
    halved = F.interpolate(small.flatten(0, 1), scale_factor=0.5, mode="area").unflatten(0, small.shape[:2])
    seen[f"{name}, at half size"] = decode(generator, halved)[:, ::EMBED_EVERY]
    seen[FINISHED] = finished
    found: dict[str, Tensor] = {}
    for where, frames in seen.items():
        flat = frames.flatten(0, 1).float() / 255
        landmarks = locate_small(flat, FORETOLD_SCORE, generator.device)
        tokens, faces = tokens_of(generator, flat, landmarks)
        person = torch.tensor(people).repeat_interleave(TAKES * frames.shape[1])[faces]
        for name, judge in judges.items():
            scores = torch.full((len(flat),), torch.nan)
            for who in people:
                own = person == who
                if own.any():
                    scores[faces.nonzero()[:, 0][own]] = judge(tokens[own], who)
            found[f"{name}, {where}"] = scores.unflatten(0, (len(people), TAKES, -1)).nanmean(-1)
    return found


@torch.no_grad()
def tokens_of(generator: Generator, frames: Tensor, landmarks: Tensor, at_once: int = 64) -> tuple[Tensor, Tensor]:
    """Face tokens (n, Q, K) of those of N frames that have a face, and which these are, (N,) bool.

    Crops are those of `alignment.align`, many at a time.
    """
    faces = landmarks.isfinite().flatten(1).all(1)
    template, grey = torch.tensor(FFHQ_TEMPLATE), torch.tensor(BORDER_GREY, device=generator.device)
    tokens = []
    for some in faces.nonzero()[:, 0].split(at_once):
        to_crops = torch.stack([similarity(own, template) for own in landmarks[some]])
        crops = warp(frames[some].to(generator.device) - grey, to_crops.to(generator.device), CROP_SIZE) + grey
        tokens.append(generator.model.encoder.face_tokens(crops.clamp(0, 1)).float().cpu())
    return torch.cat(tokens) if tokens else torch.empty(0, 1, 1), faces


@torch.no_grad()
def decode(generator: Generator, latents: Tensor, at_once: int = 16) -> Tensor:
    """Latents (B, T, 16, h, w) → frames (B, 4 T − 3, H, W, 3) uint8 on the CPU, many at a time."""
    vae = generator.model.vae
    parts = []
    for part in latents.transpose(1, 2).split(at_once):
        pixels = vae.decode((part / vae.config.scaling_factor).to(generator.device, generator.dtype))
        parts.append((pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts).permute(0, 2, 3, 4, 1)


def decode_alone(generator: Generator, latents: Tensor) -> Tensor:
    """Latents (B, T, 16, h, w), each decoded as if it were a video's first → frames (B, T, H, W, 3) likewise."""
    return decode(generator, latents.flatten(0, 1)[:, None])[:, 0].unflatten(0, latents.shape[:2])


def chosen(measured: Measured, scores: Tensor) -> Tensor:
    """(N,) bool, whether the take with the best score is found; the first of those that nothing was seen of."""
    return measured.found.gather(1, _best(scores))[:, 0]


def _best(scores: Tensor) -> Tensor:
    return scores.nan_to_num(-2.0).argmax(1, keepdim=True)


def table(measured: Measured) -> dict[str, dict[str, float]]:
    """Way of choosing → re-identification, its standard error, mean similarity to the reference by dlib, and for what
    share of the people it takes dlib's best.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, scores in [*measured.foretold.items(), ("best by dlib", measured.similarity)]:
        hits = chosen(measured, scores).float()
        same = (_best(scores) == _best(measured.similarity)).float().mean()
        similar = measured.similarity.gather(1, _best(scores)).nanmean()
        rows[name] = _row(hits) | {"similarity": float(similar), "takes dlib's best": round(float(same), 3)}
    one = _row(measured.found.float().mean(1))
    one |= {"similarity": float(measured.similarity.nanmean()), "takes dlib's best": 1 / TAKES}
    any_of_them = _row(measured.found.any(1).float())
    return {"one take": one, **rows, "any of the takes": any_of_them}


def _row(hits: Tensor) -> dict[str, float]:
    error = float(hits.std() / len(hits) ** 0.5)
    return {"re-identification": round(float(hits.mean()), 4), "standard error": round(error, 4)}


def gain(measured: Measured, scores: Tensor, draws: int = 10_000) -> tuple[float, float, float]:
    """How much the choice gains over one take, with its 95 % interval over people (paired bootstrap)."""
    gains = chosen(measured, scores).float() - measured.found.float().mean(1)
    who = torch.randint(len(gains), (draws, len(gains)), generator=torch.Generator().manual_seed(0))
    low, high = gains[who].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(gains.mean()), low, high


def clock(generator: Generator, share: float, runs: int = 3) -> dict[str, float]:
    """Seconds of one take and of judging all, and how many times the first the best of all takes; from a warm start."""
    case = cases.draw(2)[0]
    photo = cases.show([case.reference], generator.device).frames[0, 0]
    identity = generator.identity(generate.reference(photo, generator.device))
    judge = ways(generator, [identity])[WAY]
    sampling, judging = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        latents, predicted = foresee(generator, [Request(case.target.caption, identity, 0)])
        latents.cpu()
        middle = time.perf_counter()
        takes = predicted[share][:, ::3].expand(TAKES, -1, -1, -1, -1)
        frames = decode_alone(generator, takes).flatten(0, 1).float() / 255
        tokens, _ = tokens_of(generator, frames, locate_small(frames, FORETOLD_SCORE, generator.device))
        judge(tokens, 0)
        sampling.append(middle - start)
        judging.append(time.perf_counter() - middle)
    one, all_judged = min(sampling[1:]), min(judging[1:])
    times = (TAKES - 1) * share + 1 + all_judged / one
    return {"one take, s": one, f"judging {TAKES} takes, s": all_judged, "times one take": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=300, help="of TEST; lots of 100, among whom one is to be found")
    parser.add_argument("--validation", type=int, default=200, help="people of VALIDATION, by whom the way is chosen")
    parser.add_argument("--batch", type=int, default=16, help="people at a time, with all their takes (16)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="of transformer and autoencoder (bf16 on a GPU, else fp32)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that share dlib (all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype or ("bf16" if options.device == "cuda" else "fp32")]
    generator = generate.load(nano.SHIPPED, options.device, dtype)
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:.0f} s: {text}", file=sys.stderr, flush=True)

    with shared_out("dlib", [], options.processes) as embedding:
        measured = {
            name: measure(generator, embedding, split, people, options.batch, say)
            for name, split, people in (
                ("VALIDATION", VALIDATION, options.validation),
                ("TEST", TEST, options.people),
            )
        }
    tables = {name: table(one) for name, one in measured.items()}
    no_choice = [STRANGER, FINISHED, *(f"at {share:g} of" for share in SHARES if share > LONGEST)]
    allowed = [way for way in measured["TEST"].foretold if not any(part in way for part in no_choice)]
    best = max(allowed, key=lambda way: tables["VALIDATION"][way]["similarity"])  # less left to chance
    gained = {way: gain(measured["TEST"], scores) for way, scores in measured["TEST"].foretold.items()}
    timed = clock(generator, SMALL_SHARE)
    say("done")
    print(f"Best of {TAKES} takes, {options.validation} people of VALIDATION and {options.people} of TEST\n")
    print("| chosen by | VALIDATION: similarity | found | TEST: found | gain, 95 % interval | dlib's best |")
    print("| --- | --- | --- | --- | --- | --- |")
    for way, row in tables["TEST"].items():
        if STRANGER in way:
            continue
        found = [tables[name][way]["re-identification"] for name in ("VALIDATION", "TEST")]
        low_high = "{:+.3f} ({:+.3f} to {:+.3f})".format(*gained[way]) if way in gained else ""
        mark = "**" if way == best else ""
        share = row.get("takes dlib's best", float("nan"))
        similar = tables["VALIDATION"][way].get("similarity", float("nan"))
        print(f"| {mark}{way}{mark} | {similar:.4f} | {found[0]:.3f} | {found[1]:.3f} | {low_high} | {share:.2f} |")
    same, other = (measured["TEST"].foretold[f"{way}, {FINISHED}"] for way in (WAY, STRANGER))
    levels = torch.tensor([0.05, 0.5, 0.95])
    quantiles = [" ".join(f"{x:.3f}" for x in some.flatten().nanquantile(levels).tolist()) for some in (same, other)]
    print(f"\nFinished takes, {WAY}: 5, 50, 95 % {quantiles[0]}; against the next person's {quantiles[1]}.")
    print(f"\nBold: most similar on VALIDATION within {LONGEST:g} of the steps. " + str(timed))
    if options.json:
        everything = {"tables": tables, "best on VALIDATION": best, "gain on TEST": gained, "time": timed}
        everything["scores"] = {
            name: {
                "foretold": {way: _listed(scores) for way, scores in one.foretold.items()},
                "similarity": _listed(one.similarity),
                "found": one.found.tolist(),
            }
            for name, one in measured.items()
        }
        options.json.write_text(json.dumps(everything) + "\n", "utf-8")


def _listed(values: Tensor) -> list[list[float | None]]:
    return [[None if x != x else round(x, 5) for x in row] for row in values.tolist()]  # NaN is no JSON


if __name__ == "__main__":
    main()
