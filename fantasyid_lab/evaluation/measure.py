"""Videos of unseen people → the table: every measure with its bar and whether it is met."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fantasyid_core.meters import likeness, motion
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor, read_attributes
from fantasyid_core.meters.embedding import Embedding

from ..people.caption import stated_labels
from . import adherence
from .adherence import Adherence, Shown
from .cases import Case
from .truth import EMBED_EVERY, Truth, vectors


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
        key: what code finds the measure by.
        measure: what was measured, in words.
        value: the outcome.
        truth: the same of true renders, or NaN where that has no meaning.
        bar: what was asked, in words; empty where nothing was.
        met: whether the bar was met; None without a bar.
    """

    key: str
    measure: str
    value: float
    truth: float = math.nan
    bar: str = ""
    met: bool | None = None


def measure(
    drawn: Sequence[Case],
    outputs: Outputs,
    truth: Truth,
    regressor: AttributeRegressor,
    embedding: Embedding,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The table of N cases: finds and embeds the faces of outputs, reads their frames, compares with the truth."""
    say("Looking at the faces of the videos and at what they do")
    with ThreadPoolExecutor(1) as beside:  # while other processes embed
        reads = beside.submit(lambda: [read_attributes(regressor, video.float() / 255) for video in outputs.prompted])
        faces = (outputs.prompted[:, ::EMBED_EVERY], outputs.without, outputs.wrong)
        who = Faces(*(vectors(embedding, x, device) for x in faces))
        readings = reads.result()
    shown = who.prompted.isfinite().all(-1).float().mean(1) >= 0.5
    said = [adherence.read(reading, regressor.thresholds) for reading in readings]
    true_said = [adherence.read(reading, regressor.thresholds) for reading in truth.readings]
    return [
        *_who_rows(who, truth),
        *_motion_rows(drawn, readings, truth.readings, shown),
        *_prompt_rows(*(_adherence(drawn, x) for x in (said, true_said))),
    ]


@dataclass(frozen=True, eq=False)
class Faces:
    """Unit vectors of the outputs: (N, T', D) prompted; (M, T', D) without and wrong; NaN where a frame has no face."""

    prompted: Tensor
    without: Tensor
    wrong: Tensor


def _who_rows(who: Faces, known: Truth) -> list[Row]:
    count, controls = len(known.reference), len(who.without)
    truth, prompted, without, wrong = (
        likeness.average(x) for x in (known.target, who.prompted, who.without, who.wrong)
    )
    ours = likeness.reidentification(prompted, known.gallery)
    theirs = likeness.reidentification(truth, known.gallery)
    like = (prompted * known.reference).sum(1)
    like_truth, like_stranger = (truth * known.reference).sum(1), (known.stranger * known.reference).sum(1)
    share = likeness.normalised_similarity(like, like_stranger, like_truth)
    rows = [
        Row(
            "reidentification",
            f"re-identification, top-1 of {count}",
            ours,
            theirs,
            "≥ 0.8 × true renders",
            ours >= 0.8 * theirs,
        ),
        Row(
            "identity_similarity",
            "normalised identity similarity (0 stranger, 1 true render)",
            share,
            1.0,
            "≥ 0.75",
            share >= 0.75,
        ),
        Row(
            "reference_similarity",
            "similarity to the reference, mean",
            float(like.nanmean()),
            float(like_truth.nanmean()),
        ),
        Row(
            "stranger_similarity",
            "similarity to the reference of a stranger's true render, mean",
            float(like_stranger.nanmean()),
        ),
        Row(
            "inter_frame_similarity",
            "similarity between neighbouring judged frames",
            _steadiness(who.prompted),
            _steadiness(known.target),
        ),
        Row("frames_with_face", "judged frames with a face", _found(who.prompted), _found(known.target)),
    ]
    if controls < 2:
        return rows
    # Strength 0 knows the prompt, which tells age, sex and hair: chance is what the prompt alone gives away.
    gallery = known.gallery[:controls]
    off = likeness.reidentification(without, gallery)
    off_like = (without * known.reference[:controls]).sum(1)
    off_share = likeness.normalised_similarity(off_like, like_stranger[:controls], like_truth[:controls])
    most = chance_limit(controls)
    other = gallery.roll(-1, 0)  # of the person whose reference was given
    follows = likeness.reidentification(wrong, other)
    nearer = ((wrong * other).sum(1) > (wrong * gallery).sum(1)).float().mean()
    return [
        *rows,
        Row(
            "strength_0_reidentification",
            f"strength 0: re-identification, top-1 of {controls}",
            off,
            math.nan,
            f"chance: ≤ {most:.2f}",
            off <= most,
        ),
        Row("strength_0_identity_similarity", "strength 0: normalised identity similarity", off_share),
        Row(
            "wrong_reference_reidentification",
            f"wrong reference: its person found, top-1 of {controls}",
            follows,
            likeness.reidentification(truth[:controls], gallery),
            "≥ 0.8 × true renders",
            follows >= 0.8 * likeness.reidentification(truth[:controls], gallery),
        ),
        Row("wrong_reference_nearer", "wrong reference: nearer to its person than to the prompt's", float(nearer)),
    ]


def _motion_rows(
    drawn: Sequence[Case], ours: Sequence[AttributeReading], theirs: Sequence[AttributeReading], shown: Tensor
) -> list[Row]:
    """`shown` (N,): whether a video shows a face at all; the motion of noise is none."""
    template = motion.head_template()
    moves, true_moves = ([motion.measure(r.landmarks, template, r.expression) for r in x] for x in (ours, theirs))
    face, lasting, head = (
        motion.mean_ratio(
            [getattr(m, part) if seen else math.nan for m, seen in zip(moves, shown, strict=True)],
            [getattr(m, part) for m in true_moves],
        )
        for part in ("face", "lasting", "head")
    )
    reference = torch.stack([torch.from_numpy(case.reference.pose[0]) for case in drawn])
    poses, true_poses = (torch.stack([r.pose.mean(0).cpu() for r in x]) for x in (ours, theirs))
    copied, true_copied = (motion.copy_paste_index(x, reference) for x in (poses, true_poses))
    return [
        Row("face_motion", "face motion, by that of true clips", face, 1.0, "≥ 0.85", face >= 0.85),
        Row("lasting_motion", "  of it, motion that lasts to the next frame", lasting, 1.0),
        Row("head_motion", "head motion, by that of true clips", head, 1.0),
        Row("copy_paste", "copy-paste index: 0 free of the reference's pose, 1 copied", copied, true_copied),
    ]


def _prompt_rows(said: Adherence, true_said: Adherence) -> list[Row]:
    return [
        Row("turn", "turn direction as prompted", said.turn, true_said.turn, "≥ 0.90", said.turn >= 0.9),
        Row("no_turn", "no turn where none was asked for", said.stays, true_said.stays),
        Row(
            "expression",
            "expression as prompted (0.5 by guessing)",
            said.expression,
            true_said.expression,
            "≥ 0.80",
            said.expression >= 0.8,
        ),
        *(
            Row(f"{name}_shown", f"  {name} shown", said.shown[name], true_said.shown[name])
            for name in adherence.EXPRESSIONS
        ),
        *(
            Row(f"{name}_not_added", f"  {name} not added", said.not_added[name], true_said.not_added[name])
            for name in adherence.EXPRESSIONS
        ),
        Row("shirt", "shirt's colour as prompted", said.shirt, true_said.shirt),
        Row("background", "background's colour as prompted", said.background, true_said.background),
    ]


def _adherence(drawn: Sequence[Case], shown: Sequence[Shown]) -> Adherence:
    labels = [case.target.labels for case in drawn]
    stated = [stated_labels(case.target.caption, case.target.labels) for case in drawn]
    return adherence.compare(shown, labels, stated)


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
