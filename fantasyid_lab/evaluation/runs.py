"""Models, or ways of computing one, on the same cases: made, saved and measured against one truth."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.errors import FantasyIDError
from fantasyid_core.fusion.identity import Identity
from fantasyid_core.meters.attribute_regressor import AttributeRegressor
from fantasyid_core.meters.embedding import Embedding
from fantasyid_core.reconstruction.performance import Performance

from . import acting, cases, generate, measure, saved_frames
from .cases import Case
from .generate import Generator, Request
from .measure import Outputs, Row
from .modes import EXACT, Mode
from .saved_frames import Settings
from .truth import EMBED_EVERY, measure_truth

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Run:
    """What one model made of all cases in one way.

    Attributes:
        variant: what it is called in a table; several runs of a name stand side by side, as of two training seeds.
    """

    variant: str
    settings: Settings
    outputs: Outputs


def make(
    generator: Generator,
    drawn_cases: Sequence[Case],
    settings: Settings,
    batch: int,
    say: Say,
    modes: Sequence[Mode] = (EXACT,),
) -> list[Run]:
    """Every case as prompted, in every mode; in the first mode the first `settings.controls` of them at strength 0 and
    with the next one's reference too, and with `settings.acting` all of them performing.

    The first mode's latents are what the others' errors are measured from: ‖z − z₀‖ / ‖z₀‖, mean over the videos.
    """
    prompted, controls = _requests(generator, drawn_cases, settings, say)
    performing = _acting_requests(generator, drawn_cases, prompted, settings) if settings.acting else []
    runs: list[Run] = []
    exact: Tensor | None = None
    for mode in modes:
        start = time.perf_counter()

        def progress(done: int, of: int, start: float = start, mode: Mode = mode) -> None:
            say(f"{mode.name}: {done} of {of} videos, {time.perf_counter() - start:.0f} s")

        requests = prompted if runs else [*prompted, *controls, *performing]
        latents = generator.sample(requests, batch=batch, progress=progress, mode=mode, **settings.sampling)
        seconds = (time.perf_counter() - start) / len(requests)
        exact = latents[: len(prompted)] if exact is None else exact
        error = (latents[: len(prompted)] - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
        say(f"{mode.name}: decoding")  # minutes of a CPU
        count, acting = (0, 0) if runs else (len(controls) // 2, len(performing))
        videos, *control_videos, acted = generator.decode(latents).split([len(prompted), count, count, acting])
        outputs = Outputs(videos, *(x[:, ::EMBED_EVERY].contiguous() for x in control_videos), acted)
        costs = {"seconds": seconds, "error": float(error.mean())}
        mode_settings = replace(settings, mode=mode.name, controls=count, acting=bool(acting), **costs)
        runs.append(Run(mode.name, mode_settings, outputs))
    return runs


def _requests(
    generator: Generator, drawn_cases: Sequence[Case], settings: Settings, say: Say
) -> tuple[list[Request], list[Request]]:
    """Requests of all cases as prompted; of the controls at strength 0, then with the next one's reference."""
    say("Making identities from the reference photos")
    clips = [clip for case in drawn_cases for clip in cases.photos(case, settings.references)]
    photos = cases.show(clips, generator.device).frames[:, 0]
    identities = [_identity(generator, of_one) for of_one in photos.split(settings.references)]
    controls = range(settings.controls)
    prompts = [case.target.caption for case in drawn_cases]
    seeds = [1000 * settings.seed + i for i in range(len(drawn_cases))]
    prompted = [Request(p, who, s) for p, who, s in zip(prompts, identities, seeds, strict=True)]
    strength_0 = [Request(prompts[i], identities[i], seeds[i], strength=0.0) for i in controls]
    wrong = [Request(prompts[i], identities[(i + 1) % len(controls)], seeds[i]) for i in controls]
    return prompted, [*strength_0, *wrong]


def _acting_requests(
    generator: Generator, drawn_cases: Sequence[Case], prompted: Sequence[Request], settings: Settings
) -> list[Request]:
    clips = [clip for case in drawn_cases for clip in cases.photos(case, settings.references)]
    photos = cases.show(clips, generator.device).frames[:, 0].split(settings.references)
    requests = []
    for case, of_one, request in zip(acting.cast(drawn_cases), photos, prompted, strict=True):
        performance = acting.performance_of(case.performed, generator.model.face)
        requests.append(Request(case.prompt, _identity(generator, of_one, performance), request.seed))
    return requests


def _identity(generator: Generator, photos: Tensor, performance: Performance | None = None) -> Identity:
    face, *others = (generate.reference(photo, generator.device) for photo in photos)
    return generator.identity(face, others, performance)


def save(folder: Path, runs: Iterable[Run], first: int = 0) -> None:
    """Keep runs in `folder`, each in `VARIANT/NUMBER`, numbered from `first`."""
    for number, run in enumerate(runs, first):
        saved_frames.save(folder / run.variant / f"{number}", run.settings, run.outputs)


def load(folder: Path) -> list[Run]:
    """What `save` wrote, or what `saved_frames.save` did, which is one run.

    Raises:
        FantasyIDError: nothing is there, it is damaged, or the runs are not of the same cases.
    """
    if (folder / "settings.json").is_file():
        return [Run(EXACT.name, *saved_frames.load(folder))]
    found = sorted(folder.glob("*/*/settings.json"), key=lambda path: int(path.parent.name))
    runs = [Run(path.parent.parent.name, *saved_frames.load(path.parent)) for path in found]
    if not runs:
        raise FantasyIDError(f"{folder} holds no frames: settings.json is missing there. Make them with --save-frames.")
    if len({(run.settings.people, run.settings.seed, run.settings.frames) for run in runs}) > 1:
        raise FantasyIDError(f"The runs in {folder} are not of the same people and frames; make them again alike.")
    return runs


def measure_runs(
    runs: Sequence[Run],
    regressor: AttributeRegressor,
    embedding: Embedding,
    device: torch.device | str = "cpu",
    say: Say = lambda text: None,
) -> list[list[Row]]:
    """The table of every run; all are of the same cases, whose truth is rendered and read once."""
    settings = runs[0].settings
    drawn_cases = cases.draw(settings.people, settings.seed, settings.frames)
    truth = measure_truth(drawn_cases, regressor, embedding, device, say)
    if any(run.settings.acting for run in runs):
        say("Rendering and reading what the people perform")
        truth = replace(truth, acting=acting.read_truth(acting.cast(drawn_cases), regressor, device))
    tables = []
    for run in runs:
        say(f"Measuring {run.variant} ({run.settings.model})")
        tables.append(measure.measure(drawn_cases, run.outputs, truth, regressor, embedding, device, say))
    return tables
