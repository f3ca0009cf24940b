"""Checkpoints that survive being killed: written beside the old one, then put in its place."""

import json
import logging
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn

from fantasyid_core.errors import SaveError

from . import portable
from .ema import Ema
from .portable import EMA, PROGRESS

log = logging.getLogger(__name__)


class Checkpoint:
    """The state of one stage in a folder: trained weights, optimiser and random numbers, averages, progress.

    Frozen weights are left out, unless FSDP holds them (it saves what it shards).
    """

    def __init__(self, folder: Path, accelerator: Accelerator, module: nn.Module, ema: Ema):
        self.folder, self.accelerator, self.ema = folder, accelerator, ema
        self._trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self._trained |= {name for name, _ in module.named_buffers()}
        self._hooks = []
        if accelerator.distributed_type != DistributedType.FSDP:
            self._hooks.append(accelerator.register_save_state_pre_hook(self._save_trained))
            self._hooks.append(accelerator.register_load_state_pre_hook(self._load_trained))

    def close(self) -> None:
        """Take the hooks off the accelerator."""
        for hook in self._hooks:
            hook.remove()

    def save(self, progress: dict) -> None:
        """Write the state. Raises SaveError when the disk refuses it; the last good checkpoint then stays."""
        partial, old = (self.folder.with_name(self.folder.name + end) for end in (".part", ".old"))
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            if main:
                save_file({k: x.cpu().contiguous() for k, x in self.ema.state().items()}, partial / EMA)
                (partial / PROGRESS).write_text(json.dumps(progress | {"ema_updates": self.ema.updates}))
                shutil.rmtree(old, ignore_errors=True)
                if self.folder.exists():
                    self.folder.rename(old)
                partial.rename(self.folder)
                shutil.rmtree(old, ignore_errors=True)
        except (OSError, RuntimeError) as error:
            raise SaveError(
                f"The checkpoint {self.folder} could not be written: {error}. Free some disk space."
            ) from error
        self.accelerator.wait_for_everyone()

    def load(self) -> dict | None:
        """Put the saved state back, else a portable one (`portable`); its progress, or `None` where there is none."""
        old = self.folder.with_name(self.folder.name + ".old")
        if not self.folder.exists() and old.exists():  # killed between two renamings
            old.rename(self.folder)
        if not (self.folder / PROGRESS).is_file():
            return self._load_portable()
        progress = json.loads((self.folder / PROGRESS).read_text())
        self.accelerator.load_state(str(self.folder))
        self.ema.restore(load_file(self.folder / EMA, str(self.accelerator.device)), progress["ema_updates"])
        log.info("Goes on from step %d.", progress["step"])
        return progress

    def _load_portable(self) -> dict | None:
        found = portable.unpack(self.folder.parent.parent / "portable", self.folder.name)
        if found is None:
            return None
        progress, averages = found
        self.ema.restore(averages, progress["ema_updates"])
        self.ema.adopt()
        log.info("Goes on from the averaged weights of step %d, with new optimisers.", progress["step"])
        return progress

    def _save_trained(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        states = list(weights)
        weights.clear()  # accelerate then saves none itself
        if not self.accelerator.is_main_process:
            return
        for i, state in enumerate(states):
            trained = {_plain(n): x.detach().cpu().contiguous() for n, x in state.items() if _plain(n) in self._trained}
            torch.save(trained, Path(folder) / f"trained_{i}.pt")  # shared tensors allowed

    def _load_trained(self, models: list[nn.Module], folder: str) -> None:
        for i in range(len(models)):
            state = torch.load(Path(folder) / f"trained_{i}.pt", map_location="cpu", weights_only=True)
            module = self.accelerator.unwrap_model(models[i])
            module.load_state_dict(state, strict=False)
        models.clear()  # accelerate then loads none itself


def _plain(name: str) -> str:
    return name.removeprefix("module.")
