"""Videos of unseen people → the table: every measure with its bar and whether it is met."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fantasyid_core.meters import likeness, motion
from fantasyid_core.meters.attribute_regressor import AttributeReading, AttributeRegressor, read_attributes
from fantasyid_core.meters.embedding import Embedding

from ..people.caption import stated_labels
from . import acting, adherence, sharpness
from .adherence import Adherence, VideoAttributes
from .cases import Case
from .truth import EMBED_EVERY, Truth, vectors

NORMALISED = "normalised identity similarity"
ACTING_BARS = {"yaw": 0.95, "pitch": 0.9, "jaw": 0.85, "smile": 0.8}


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model made of N cases.

    Attributes:
        prompted: (N, T, H, W, 3) uint8, with the case's own reference.
        without: (M, T', H, W, 3), the first M cases at strength 0; every sixth frame, for the embedding alone.
        wrong: (M, T', H, W, 3), the first M cases with the reference of the next of them; likewise.
        acting: (N, T, H, W, 3), every person performing, see `acting`; or none, (0, …).
    """

    prompted: Tensor
    without: Tensor
    wrong: Tensor
    acting: Tensor = field(default_factory=lambda: torch.zeros(0, 1, 1, 1, 3, dtype=torch.uint8))


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
    drawn_cases: Sequence[Case],
    outputs: Outputs,
    truth: Truth,
    regressor: AttributeRegressor,
    embedding: Embedding,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """The table of N cases: finds and embeds the faces of outputs, reads their frames, compares with the truth."""
    say("Embedding the faces of the videos and reading their attributes")
    with ThreadPoolExecutor(1) as executor:  # while other processes embed
        reads = executor.submit(lambda: [read_attributes(regressor, video.float() / 255) for video in outputs.prompted])
        videos = (outputs.prompted[:, ::EMBED_EVERY], outputs.without, outputs.wrong)
        faces = Faces(*(vectors(embedding, x, device) for x in videos))
        readings = reads.result()
    has_face = faces.prompted.isfinite().all(-1).float().mean(1) >= 0.5
    prompted = [adherence.read(reading, regressor.thresholds) for reading in readings]
    truths = [adherence.read(reading, regressor.thresholds) for reading in truth.readings]
    return [
        *_identity_rows(faces, truth),
        *_motion_rows(drawn_cases, readings, truth.readings, has_face),
        _sharpness_row(sharpness.of_readings(outputs.prompted, readings), truth.turning_sharpness, has_face),
        *_prompt_rows(*(_adherence(drawn_cases, x) for x in (prompted, truths))),
        *_acting_rows(drawn_cases, outputs, faces, truth, regressor, embedding, device),
    ]


@dataclass(frozen=True, eq=False)
class Faces:
    """Unit vectors of the outputs: (N, T', D) prompted; (M, T', D) without and wrong; NaN where a frame has no face."""

    prompted: Tensor
    without: Tensor
    wrong: Tensor


def _identity_rows(faces: Faces, truth: Truth) -> list[Row]:
    prompted, true_renders = likeness.average(faces.prompted), likeness.average(truth.target)
    top1, true_top1 = (likeness.reidentification(x, truth.gallery) for x in (prompted, true_renders))
    similarity, true_similarity, stranger_similarity = (
        (x * truth.reference).sum(1) for x in (prompted, true_renders, truth.stranger)
    )
    normalised = likeness.normalised_similarity(similarity, stranger_similarity, true_similarity)
    rows = [
        _top1("reidentification", f"re-identification, top-1 of {len(truth.reference)}", top1, true_top1),
        _at_least(0.75, "identity_similarity", f"{NORMALISED} (0 stranger, 1 true render)", normalised, 1.0),
        _means("reference_similarity", "similarity to the reference, mean", similarity, true_similarity),
        _means(
            "stranger_similarity",
            "similarity to the reference of a stranger's true render, mean",
            stranger_similarity,
        ),
        _means(
            "inter_frame_similarity",
            "similarity between neighbouring measured frames",
            *(_inter_frame_similarities(x) for x in (faces.prompted, truth.target)),
        ),
        _means(
            "frames_with_face",
            "measured frames with a face",
            *(x.isfinite().all(-1).float() for x in (faces.prompted, truth.target)),
        ),
    ]
    controls = len(faces.without)
    if controls < 2:
        return rows
    empty = torch.empty(0)
    first = Truth(
        *(getattr(truth, name)[:controls] for name in ("reference", "gallery", "stranger", "target")), [], empty
    )
    return [*rows, *_control_rows(faces, first, stranger_similarity[:controls], true_similarity[:controls])]


def _control_rows(faces: Faces, truth: Truth, stranger_similarity: Tensor, true_similarity: Tensor) -> list[Row]:
    """Rows of the M cases at strength 0 and with a wrong reference; `truth` and the similarities (M,) are theirs."""
    count, gallery = len(faces.without), truth.gallery
    without, wrong, true_renders = (likeness.average(x) for x in (faces.without, faces.wrong, truth.target))
    # Strength 0 knows the prompt, which tells age, sex and hair: chance is what the prompt alone gives away.
    top1, chance = likeness.reidentification(without, gallery), chance_limit(count)
    similarity = (without * truth.reference).sum(1)
    wrong_gallery = gallery.roll(-1, 0)  # of the person whose reference was given
    wrong_top1, true_top1 = (likeness.reidentification(*x) for x in ((wrong, wrong_gallery), (true_renders, gallery)))
    nearer = ((wrong * wrong_gallery).sum(1) > (wrong * gallery).sum(1)).float().mean()
    return [
        Row(
            "strength_0_reidentification",
            f"strength 0: re-identification, top-1 of {count}",
            top1,
            math.nan,
            f"chance: ≤ {chance:.2f}",
            top1 <= chance,
        ),
        Row(
            "strength_0_identity_similarity",
            f"strength 0: {NORMALISED}",
            likeness.normalised_similarity(similarity, stranger_similarity, true_similarity),
        ),
        _top1(
            "wrong_reference_reidentification",
            f"wrong reference: its person found, top-1 of {count}",
            wrong_top1,
            true_top1,
        ),
        Row("wrong_reference_nearer", "wrong reference: nearer to its person than to the prompt's", float(nearer)),
    ]


def _motion_rows(
    drawn_cases: Sequence[Case],
    readings: Sequence[AttributeReading],
    truth: Sequence[AttributeReading],
    has_face: Tensor,
) -> list[Row]:
    """`has_face` (N,): whether a video shows a face at all; the motion of noise is none."""
    template = motion.head_template()
    motions, true_motions = (
        [motion.measure(r.landmarks, template, r.expression) for r in x] for x in (readings, truth)
    )
    face, lasting, head = (
        motion.mean_ratio(
            [getattr(m, part) if counts else math.nan for m, counts in zip(motions, has_face, strict=True)],
            [getattr(m, part) for m in true_motions],
        )
        for part in ("face", "lasting", "head")
    )
    reference = torch.stack([torch.from_numpy(case.reference.pose[0]) for case in drawn_cases])
    poses, true_poses = (torch.stack([r.pose.mean(0).cpu() for r in x]) for x in (readings, truth))
    copied, true_copied = (motion.copy_paste_index(x, reference) for x in (poses, true_poses))
    return [
        _at_least(0.85, "face_motion", "face motion, by that of true clips", face, 1.0),
        Row("lasting_motion", "  of it, motion that lasts to the next frame", lasting, 1.0),
        Row("head_motion", "head motion, by that of true clips", head, 1.0),
        Row("copy_paste", "copy-paste index: 0 free of the reference's pose, 1 copied", copied, true_copied),
    ]


def _sharpness_row(ours: Tensor, true: Tensor, has_face: Tensor) -> Row:
    """Of videos (N,) that show a face: noise is sharp, too."""
    value = sharpness.ratio(torch.where(has_face.cpu(), ours, math.nan), true)
    return _at_least(0.8, "turning_sharpness", "sharpness of the face in turning frames, by true ones", value, 1.0)


def _prompt_rows(measured: Adherence, truth: Adherence) -> list[Row]:
    return [
        _at_least(0.9, "turn", "turn direction as prompted", measured.turn, truth.turn),
        Row("no_turn", "no turn where none was asked for", measured.stays, truth.stays),
        _at_least(0.8, "expression", "expression as prompted (0.5 by guessing)", measured.expression, truth.expression),
        *(
            Row(f"{name}_shown", f"  {name} shown", measured.shown[name], truth.shown[name])
            for name in adherence.EXPRESSIONS
        ),
        *(
            Row(f"{name}_not_added", f"  {name} not added", measured.not_added[name], truth.not_added[name])
            for name in adherence.EXPRESSIONS
        ),
        Row("shirt", "shirt's colour as prompted", measured.shirt, truth.shirt),
        Row("background", "background's colour as prompted", measured.background, truth.background),
    ]


def _adherence(drawn_cases: Sequence[Case], shown: Sequence[VideoAttributes]) -> Adherence:
    labels = [case.target.labels for case in drawn_cases]
    stated = [stated_labels(case.target.caption, case.target.labels) for case in drawn_cases]
    return adherence.compare(shown, labels, stated)


def _acting_rows(
    drawn_cases: Sequence[Case],
    outputs: Outputs,
    faces: Faces,
    truth: Truth,
    regressor: AttributeRegressor,
    embedding: Embedding,
    device: torch.device | str,
) -> list[Row]:
    if not len(outputs.acting):
        return []
    acting_cases = acting.cast(drawn_cases)
    readings = [read_attributes(regressor, video.float() / 255) for video in outputs.acting]
    found, true = (acting.correlations(acting_cases, x) for x in (readings, truth.acting))
    rows = []
    for name in acting.CURVES:
        key, measure = f"acting_{name}", f"acting: {name} against the performance, correlation over frames"
        bar = ACTING_BARS.get(name)
        row = Row(key, measure, found[name], true[name])
        rows.append(row if bar is None else _at_least(bar, key, measure, found[name], true[name]))
    acted = likeness.average(vectors(embedding, outputs.acting[:, ::EMBED_EVERY], device))
    top1, before = (likeness.reidentification(x, truth.gallery) for x in (acted, likeness.average(faces.prompted)))
    measure = f"acting: re-identification, top-1 of {len(acted)}"
    return [
        *rows,
        Row("acting_reidentification", measure, top1, math.nan, f"≥ {before:.2f}, as without", top1 >= before),
    ]


def _inter_frame_similarities(vectors: Tensor) -> Tensor:
    return torch.tensor([likeness.inter_frame_similarity(video) for video in vectors])


def _at_least(bar: float, key: str, measure: str, value: float, truth: float) -> Row:
    return Row(key, measure, value, truth, f"≥ {bar:.2f}", value >= bar)


def _top1(key: str, measure: str, value: float, truth: float) -> Row:
    return Row(key, measure, value, truth, "≥ 0.8 × true renders", value >= 0.8 * truth)


def _means(key: str, measure: str, values: Tensor, truths: Tensor | None = None) -> Row:
    return Row(key, measure, float(values.nanmean()), math.nan if truths is None else float(truths.nanmean()))


def chance_limit(count: int, certainty: float = 0.95) -> float:
    """Share of `count` people that guessing finds at most, with this certainty, where each is found by 1 in `count`."""
    p, total = 1 / count, 0.0
    for hits in range(count + 1):
        total += math.comb(count, hits) * p**hits * (1 - p) ** (count - hits)
        if total >= certainty:
            return hits / count
    return 1.0
