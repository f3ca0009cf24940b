"""Videos of unseen people → the table: every measure with its bar and whether it is met."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..people.caption import told
from . import adherence, cases, likeness, motion
from .adherence import Adherence
from .cases import Case
from .embedding import Embedding, embed
from .judge import Judge, JudgeReading, look

EMBED_EVERY = 6  # frames of a video that the embedding sees: every sixth, five of 25


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model made of N cases.

    Attributes:
        prompted: (N, T, H, W, 3) uint8, with the case's own reference.
        without: (M, T', H, W, 3), the first M cases at strength 0; every sixth frame, for the embedding alone.
        wrong: (M, T', H, W, 3), the first M cases with the reference of the next of them; likewise.
    """

    prompted: Tensor
    without: Tensor
    wrong: Tensor


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: what was measured.
        value: the outcome.
        truth: the same of true renders, or NaN where that has no meaning.
        bar: what was asked, in words; empty where nothing was.
        met: whether the bar was met; None without a bar.
    """

    measure: str
    value: float
    truth: float = math.nan
    bar: str = ""
    met: bool | None = None


def measure(
    drawn: Sequence[Case],
    outputs: Outputs,
    judge: Judge,
    embedding: Embedding,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The table of N cases. Renders the truth anew, finds and embeds the faces, reads the frames with the judge."""
    say("Rendering the true clips")
    truth = cases.show([case.asked for case in drawn]).frames
    say("Looking at the faces")
    who = _faces(drawn, outputs, truth, embedding)
    say("Reading the motion")
    shown = who.prompted.isfinite().all(-1).float().mean(1) >= 0.5
    return [*_who_rows(who, len(outputs.without)), *_what_rows(drawn, outputs.prompted, truth, judge, shown)]


@dataclass(frozen=True, eq=False)
class _Who:
    """Unit vectors: (N, D) reference, gallery and stranger; (N, T', D) truth and outputs; (M, T', D) the controls."""

    reference: Tensor
    gallery: Tensor
    stranger: Tensor
    truth: Tensor
    prompted: Tensor
    without: Tensor
    wrong: Tensor


def _faces(drawn: Sequence[Case], outputs: Outputs, truth: Tensor, embedding: Embedding) -> _Who:
    def vectors(videos: Tensor, every: int = 1) -> Tensor:
        """(N, T, H, W, 3) → (N, T', D), NaN without a face."""
        shown = videos[:, ::every]
        flat = embed(embedding, list(shown.flatten(0, 1))).vectors
        return flat.unflatten(0, shown.shape[:2])

    references = cases.show([case.reference for case in drawn]).frames
    gallery, stranger = (
        likeness.average(vectors(cases.show([getattr(case, name) for case in drawn], every=EMBED_EVERY).frames))
        for name in ("gallery", "stranger")
    )
    return _Who(
        vectors(references)[:, 0],
        gallery,
        stranger,
        *(vectors(x, EMBED_EVERY) for x in (truth, outputs.prompted)),
        *(vectors(x) for x in (outputs.without, outputs.wrong)),
    )


def _who_rows(who: _Who, controls: int) -> list[Row]:
    count = len(who.reference)
    truth, prompted, without, wrong = (likeness.average(x) for x in (who.truth, who.prompted, who.without, who.wrong))
    ours = likeness.reidentification(prompted, who.gallery)
    theirs = likeness.reidentification(truth, who.gallery)
    like = (prompted * who.reference).sum(1)
    like_truth, like_stranger = (truth * who.reference).sum(1), (who.stranger * who.reference).sum(1)
    share = likeness.share_of_the_way(like, like_stranger, like_truth)
    rows = [
        Row(f"re-identification, top-1 of {count}", ours, theirs, "≥ 0.8 × true renders", ours >= 0.8 * theirs),
        Row("similarity, share of the way from stranger to true render", share, 1.0, "≥ 0.75", share >= 0.75),
        Row("similarity to the reference, mean", float(like.nanmean()), float(like_truth.nanmean())),
        Row("similarity to the reference of a stranger's true render, mean", float(like_stranger.nanmean())),
        Row("similarity between neighbouring judged frames", _steadiness(who.prompted), _steadiness(who.truth)),
        Row("judged frames with a face", _found(who.prompted), _found(who.truth)),
    ]
    if controls < 2:
        return rows
    # Strength 0 knows the prompt, which tells age, sex and hair: chance is what the prompt alone gives away.
    gallery = who.gallery[:controls]
    off = likeness.reidentification(without, gallery)
    off_like = (without * who.reference[:controls]).sum(1)
    off_share = likeness.share_of_the_way(off_like, like_stranger[:controls], like_truth[:controls])
    most = chance_limit(controls)
    other = gallery.roll(-1, 0)  # of the person whose reference was given
    follows = likeness.reidentification(wrong, other)
    nearer = ((wrong * other).sum(1) > (wrong * gallery).sum(1)).float().mean()
    return [
        *rows,
        Row(f"strength 0: re-identification, top-1 of {controls}", off, math.nan, f"chance: ≤ {most:.2f}", off <= most),
        Row("strength 0: share of the way", off_share),
        Row(
            f"wrong reference: its person found, top-1 of {controls}",
            follows,
            likeness.reidentification(truth[:controls], gallery),
            "≥ 0.8 × true renders",
            follows >= 0.8 * likeness.reidentification(truth[:controls], gallery),
        ),
        Row("wrong reference: nearer to its person than to the prompt's", float(nearer)),
    ]


def _what_rows(drawn: Sequence[Case], videos: Tensor, truth: Tensor, judge: Judge, shown: Tensor) -> list[Row]:
    """`shown` (N,): whether a video shows a face at all; the motion of noise is none."""
    template = motion.head_template()
    ours, theirs = ([_read(judge, video) for video in x] for x in (videos, truth))
    moves, true_moves = ([motion.measure(r.landmarks, template) for r in x] for x in (ours, theirs))
    face, head = (
        motion.mean_ratio(
            [getattr(m, part) if seen else math.nan for m, seen in zip(moves, shown, strict=True)],
            [getattr(m, part) for m in true_moves],
        )
        for part in ("face", "head")
    )
    reference = torch.stack([torch.from_numpy(case.reference.pose[0]) for case in drawn])
    tie, true_tie = (motion.pose_tie(torch.stack([r.pose.mean(0).cpu() for r in x]), reference) for x in (ours, theirs))
    said, true_said = (_adherence(drawn, x) for x in (ours, theirs))
    return [
        Row("face motion, by that of true clips", face, 1.0, "≥ 0.85", face >= 0.85),
        Row("head motion, by that of true clips", head, 1.0),
        Row("copy-paste index: 0 free of the reference's pose, 1 copied", tie, true_tie),
        Row("turn direction as prompted", said.turn, true_said.turn, "≥ 0.90", said.turn >= 0.9),
        Row("no turn where none was asked for", said.stays, true_said.stays),
        Row(
            "expression as prompted (0.5 by guessing)",
            said.expression,
            true_said.expression,
            "≥ 0.80",
            said.expression >= 0.8,
        ),
        *(Row(f"  {name} shown", said.shown[name], true_said.shown[name]) for name in adherence.EXPRESSIONS),
        *(
            Row(f"  {name} not added", said.not_added[name], true_said.not_added[name])
            for name in adherence.EXPRESSIONS
        ),
        Row("shirt's colour as prompted", said.shirt, true_said.shirt),
        Row("background's colour as prompted", said.background, true_said.background),
    ]


def _read(judge: Judge, video: Tensor) -> JudgeReading:
    return look(judge, video.float() / 255 if video.dtype == torch.uint8 else video)


def _adherence(drawn: Sequence[Case], readings: Sequence[JudgeReading]) -> Adherence:
    labels = [case.asked.labels for case in drawn]
    words = [told(case.asked.caption, case.asked.labels) for case in drawn]
    return adherence.compare([adherence.read(reading) for reading in readings], labels, words)


def _steadiness(vectors: Tensor) -> float:
    return float(torch.tensor([likeness.inter_frame_similarity(video) for video in vectors]).nanmean())


def _found(vectors: Tensor) -> float:
    return float(vectors.isfinite().all(-1).float().mean())


def chance_limit(count: int, certainty: float = 0.95) -> float:
    """Share of `count` people that guessing finds at most, with this certainty, where each is found by 1 in `count`."""
    p, total = 1 / count, 0.0
    for hits in range(count + 1):
        total += math.comb(count, hits) * p**hits * (1 - p) ** (count - hits)
        if total >= certainty:
            return hits / count
    return 1.0


def as_text(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = ["| measure | value | true renders | bar | met |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        truth = "" if math.isnan(row.truth) else f"{row.truth:.3f}"
        met = "" if row.met is None else "yes" if row.met else "**no**"
        lines.append(f"| {row.measure} | {row.value:.3f} | {truth} | {row.bar} | {met} |")
    return "\n".join(lines)
