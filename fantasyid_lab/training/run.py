"""A run: one folder, one accelerator, the stages that are trained in it."""

import gc
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from fantasyid_core.errors import TrainingError

from .. import nano
from ..people.person import TRAIN, VALIDATION
from .attributes import AttributeStage
from .base import BaseStage
from .distil import DistilStage
from .face import FaceStage
from .identity import IdentityStage
from .loop import parameters, train
from .pool import Pool
from .settings import Settings
from .stage import Context, Stage
from .text import TextStage
from .vae import VaeStage

log = logging.getLogger(__name__)
STAGES: dict[str, type[Stage]] = {
    "face": FaceStage,
    "vae": VaeStage,
    "attributes": AttributeStage,
    "text": TextStage,
    "base": BaseStage,
    "identity": IdentityStage,
    "distil": DistilStage,
}


class Run:
    """Trains stages into `out`, where `FantasyID-nano/` is the model as far as it is trained.

    Args:
        tiny: a model of test size.
        resume: go on where checkpoints are.
        start_from: a model folder to begin with; by default an untrained nano.
    """

    def __init__(self, out: Path, *, tiny: bool = False, resume: bool = False, start_from: Path | None = None):
        self.out, self.resume = out, resume
        on_gpu = torch.cuda.is_available()
        precision = "bf16" if on_gpu and not tiny and torch.cuda.is_bf16_supported() else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        self.device = self.accelerator.device
        if not self.accelerator.is_main_process:
            logging.getLogger(__package__).setLevel(logging.WARNING)  # once is enough
        if on_gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.model_folder = out / "FantasyID-nano"
        self.start_from = start_from
        if start_from is None and not (resume and self.model_folder.is_dir()) and self.accelerator.is_main_process:
            log.info("A new model in %s.", self.model_folder)
            if not self.model_folder.is_dir():
                nano.write(nano.build(sizes=nano.TINY if tiny else nano.NANO), self.model_folder)
        self.accelerator.wait_for_everyone()
        self._pools: tuple[Pool, Pool] | None = None
        finished = out / "done.json"
        self._finished: list[str] = json.loads(finished.read_text()) if resume and finished.is_file() else []

    def is_done(self, stage: str) -> bool:
        """Whether a stage was trained to its end in this folder."""
        return stage in self._finished

    def stage(self, settings: Settings) -> Stage:
        """A stage with its model and its people, ready to be trained."""
        started = time.perf_counter()
        set_seed(settings.seed)
        torch.backends.cudnn.benchmark = settings.cudnn_benchmark
        bf16 = settings.precision == "bf16" and self.accelerator.mixed_precision == "bf16"
        clips = settings.trains_on_clips  # then the model may be the 5B
        source = self.start_from or self.model_folder
        if clips and self.start_from and (self.out / source.resolve().name).resolve() == source.resolve():
            raise TrainingError(f"The export would overwrite {source}, which training starts from: give another --out.")
        model = nano.read(source, torch.bfloat16 if clips and bf16 else torch.float32).to(self.device)
        pool, validation = (None, None) if clips else self._rendered(settings)
        context = Context(
            settings=settings,
            model=model,
            pool=pool,
            validation=validation,
            out=self.out,
            device=self.device,
            bf16=bf16,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            started=started,
            name=source.resolve().name,
        )
        return STAGES[settings.stage](context)

    def train(self, settings: Settings) -> dict[str, float]:
        """Train one stage; its export is in the model's folder afterwards."""
        stage = self.stage(settings)
        log.info("Stage %s: %.2f million parameters.", settings.stage, parameters(stage.objective) / 1e6)
        numbers = train(stage, self.accelerator, self.resume)
        self._finished.append(settings.stage)
        if self.accelerator.is_main_process:
            (self.out / "done.json").write_text(json.dumps(self._finished))
        del stage
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return numbers

    def _rendered(self, settings: Settings) -> tuple[Pool, Pool]:
        """The pools, kept from stage to stage where these want the same: people rendered for one serve the next."""
        sizes, seed = settings.pool, settings.seed + 17 * self.accelerator.process_index
        if self._pools is None or not (self._pools[0].seed == seed and self._pools[0].settings.same_people(sizes)):
            self._pools = None  # before the next ones take memory
            with_video = sizes.people if sizes.with_video else 0
            few = replace(sizes, capacity=sizes.validation, with_video=with_video, variety=0.0)
            self._pools = (
                Pool(sizes, TRAIN, seed, self.device),
                Pool(few, VALIDATION, 0, self.device),
            )
            self._pools[1].prefill(sizes.validation)
        return self._pools
