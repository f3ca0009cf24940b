"""A whole run from the files on through the pack's own nodes: load, text, identity, sampling, decoding."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from . import model_folder
from .bench import Bench
from .measure import PHASE, Phase, Row, phase, synchronize

SMALLER_AND_SMALLER = (12, 8, 6, 5, 4, 3)  # GiB free
RELEASED_STEPS = 50
PROMPTS = (
    "A person with short hair stands at the window of a bright kitchen, turns to the camera and smiles warmly, then "
    "looks out at the garden, where the morning sun lights the trees. The camera moves closer slowly.",
    "",
)


def rows(bench: Bench, name: str, taken: int = 0) -> Iterator[Row]:
    """Every phase with its time and peak, then all of it; detection and reconstruction are not in it.

    Args:
        taken: bytes of the card that the benchmark itself occupies.
    """
    run = Run(bench)
    total = 0.0
    for part, do in run.phases():
        with phase(taken) as measurement:
            do(measurement)
        milliseconds, note = 1000 * measurement.seconds, ""
        if measurement.ends:
            milliseconds, note = _of_all_steps(measurement)
        total += milliseconds
        yield Row(f"{name}: {part}", milliseconds, measurement.peak, note=note, kind=PHASE)
    yield Row(f"{name}: all of it", total, 0.0, note=run.check(), kind=PHASE)


def on_a_card_with(gib: float) -> Callable[[Bench, str], Iterator[Row]]:
    """The same with all else of the card occupied, as one row: its slowest part is told in the note."""

    def limited(bench: Bench, name: str) -> Iterator[Row]:
        with bench.host.only_free(gib) as taken:
            measurements = list(rows(bench, name, taken))
        *parts, whole = measurements
        times = [
            f"{row.name.rpartition(': ')[2]} {row.milliseconds / 1000:.1f} s ({row.peak:.1f} GiB)" for row in parts
        ]
        note = "; ".join([*times, whole.note, *{row.note for row in parts if row.note}])
        yield Row(name, whole.milliseconds, max(row.peak for row in parts), note=note, kind=PHASE)

    return limited


class Run:
    """One video from the files of a random model."""

    def __init__(self, bench: Bench):
        self.work, self.steps = bench.work, bench.steps
        bench.host.forget()
        folder = model_folder.write(bench.folder, bench.work)
        import folder_paths

        folder_paths.add_model_folder_path("fantasyid", str(folder.parent))
        self.name = folder.name

    def phases(self) -> Iterator[tuple[str, Callable[[Phase], None]]]:
        """The parts of a run in order; each does its work when called."""
        yield "load", self._load
        yield "text, two prompts", self._text
        yield "identity from views and mesh", self._identity
        yield f"sampling, {RELEASED_STEPS} steps", self._sample
        yield "VAE decode", self._decode

    @torch.inference_mode()
    def _load(self, _: Phase) -> None:
        from pack.nodes.loading import FantasyIDLoadModel
        from pack.nodes.text import FantasyIDLoadTextEncoder

        self.model, self.vae, self.encoder = FantasyIDLoadModel.run(self.name, "default").args
        (self.clip,) = FantasyIDLoadTextEncoder.run(self.name).args

    @torch.inference_mode()
    def _text(self, _: Phase) -> None:
        from pack.nodes.host.text import encode_text

        self.positive, self.negative = (encode_text(self.clip, text) for text in PROMPTS)

    @torch.inference_mode()
    def _identity(self, _: Phase) -> None:
        from pack.fantasyid_core.reconstruction.face_mesh import FaceMesh
        from pack.fantasyid_core.views.collection import FaceViews

        generator = torch.Generator().manual_seed(3)
        crop = torch.rand(1, 512, 512, 3, generator=generator)
        vertices = 0.1 * torch.randn(self.work.vertices[0], 3, generator=generator)
        self.identity = self.encoder.fuse(FaceViews(crop, torch.ones(1)), FaceMesh(vertices), "first view")

    @torch.inference_mode()
    def _sample(self, found: Phase) -> None:
        import comfy.utils
        from pack.nodes.sampling import FantasyIDSampler

        frames, height, width = self.work.video

        def step_ended(*_, **__) -> None:
            synchronize()
            found.ends.append(time.perf_counter())

        comfy.utils.set_progress_bar_global_hook(step_ended)
        try:
            self.latents: Tensor = FantasyIDSampler.run(
                self.model,
                self.identity,
                self.vae,
                self.positive,
                self.negative,
                seed=42,
                steps=self.steps,
                guidance=6.0,
                scheduler="dpm",
                width=width,
                height=height,
                frames=frames,
            ).args[0]["samples"]
        finally:
            comfy.utils.set_progress_bar_global_hook(None)

    @torch.inference_mode()
    def _decode(self, _: Phase) -> None:
        self.frames: Tensor = self.vae.decode(self.latents)

    def check(self) -> str:
        """What came out, in words. Raises ValueError where it is no video of the right size."""
        size = tuple(self.frames.shape)
        if size != (1, *self.work.video, 3) or not self.frames.isfinite().all():
            raise ValueError(f"the video is {size}, expected {(1, *self.work.video, 3)} with finite values")
        return f"{size[1]} frames of {size[3]} × {size[2]}"


def _of_all_steps(found: Phase) -> tuple[float, str]:
    """Milliseconds of all the steps that the release does, and a note on how many were really done."""
    done = len(found.ends)
    if done == RELEASED_STEPS:
        return 1000 * found.seconds, "all steps done"
    step = statistics.median(b - a for a, b in pairwise(found.ends)) if done > 1 else found.seconds
    rest = (RELEASED_STEPS - done) * step
    return 1000 * (found.seconds + rest), f"{done} steps done, {step:.3f} s each; extrapolated"
