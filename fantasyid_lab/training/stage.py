"""What a stage is: an objective to minimise, batches for it, and what it leaves behind."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..nano import Nano
from .pool import Pool
from .settings import Settings

AnyBatch = TypeVar("AnyBatch", bound="Batch")


@dataclass(frozen=True, eq=False)
class Batch:
    """Tensors of several samples, along their first axis; a stage's own class names them. What is not there is None."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that are there by name, without those of batches in this one."""
        return {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}

    def map(self: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
        """The batch with every tensor changed, those of batches in it as well."""
        inner = {name: x.map(change) for name, x in vars(self).items() if isinstance(x, Batch)}
        return replace(self, **inner, **{name: change(x) for name, x in self.tensors.items()})

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        """The batch on a device."""
        return self.map(lambda x: x.to(device))


@dataclass(frozen=True, eq=False)
class Context:
    """What a stage works with.

    Attributes:
        settings: of the stage; model: all its parts, on `device`.
        pool, validation: people to train on, and people who are never trained on; `None` where the stage reads clips
            of its own.
        out: the run's folder; `out / name` is the model.
        bf16: whether to compute in bfloat16.
        rank, world: which of how many processes this is; started: when the stage's time began to run.
    """

    settings: Settings
    model: Nano
    pool: Pool | None
    validation: Pool | None
    out: Path
    device: torch.device
    bf16: bool
    rank: int = 0
    world: int = 1
    started: float = field(default_factory=time.perf_counter)
    name: str = "FantasyID-nano"

    def generator(self, step: int) -> torch.Generator:
        """Randomness of one step: of its number alone, so that a resumed run goes on as if never stopped."""
        seed = (self.settings.seed * 1_000_003 + step) * 64 + self.rank
        return torch.Generator(self.device).manual_seed(seed)

    def autocast(self) -> torch.autocast:
        """For what is computed outside of the objective."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def embed_text(self, ids: Tensor) -> Tensor:
        """Ids (B, L) → the text encoder's embeddings (B, L, D) float32, without gradients."""
        with self.autocast():
            return self.model.text(input_ids=ids).last_hidden_state.float()

    @property
    def model_folder(self) -> Path:
        """Where the model is written to."""
        return self.out / self.name


class Stage(ABC):
    """One stage of the recipe.

    Attributes:
        objective: its `forward(batch)` gives losses by name, `loss` among them is minimised. What of its parameters
            wants gradients is trained.
    """

    objective: nn.Module

    def __init__(self, context: Context):
        self.context = context
        self.settings = context.settings

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator) -> Batch:
        """What the objective takes at a step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Numbers on people who are never trained on. Called with the averaged weights, without gradients."""

    def sample_grid(self) -> Tensor | None:
        """A picture (H, W, 3) 0…1 that shows what was learned; called like `validate`."""
        return None

    @abstractmethod
    def export(self) -> None:
        """Write what was trained into the model's folder; called with the averaged weights."""

    def muon_parameters(self) -> list[nn.Parameter]:
        """What Muon may step: the matrices among these, which lie between two layers of the network."""
        return []

    def lr_mults(self) -> dict[nn.Module, float]:
        """Factors on the learning rate, of modules that need another one; later ones count."""
        return {}

    def compile(self) -> list[nn.Module]:
        """Modules that gain from being compiled, each on its own."""
        return []


def parameters_of(*modules: nn.Module) -> list[nn.Parameter]:
    """The parameters of several modules."""
    return [parameter for module in modules for parameter in module.parameters()]


def trainable(module: nn.Module) -> nn.Module:
    """The module in training mode with gradients on."""
    return module.train().requires_grad_(True)


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """The modules in evaluation mode, then as they were."""
    before = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
