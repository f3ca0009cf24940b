"""LoRA (Hu et al. 2021) on the video transformer: trained beside frozen weights, in the layout that programs load."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fantasyid_core.errors import WeightsError
from fantasyid_core.io import weights
from fantasyid_core.io.layout import save_tensors

PREFIX = "transformer."  # as diffusers and PEFT write it
LAYERS = (
    *(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2"),
    *("to_q", "to_kv", "to_out"),  # of the injection layers
)


class LoRA(nn.Module):
    """Low-rank matrices that are added to what linear layers of a transformer compute, while it is on.

    They begin with nothing added. The transformer's own modules and parameters stay what they are.

    Args:
        rank: of the matrices.
    """

    def __init__(self, transformer: nn.Module, rank: int, seed: int = 0):
        super().__init__()
        layers = {name: layer for name, layer in transformer.named_modules() if _is_adapted(name, layer)}
        self.names, self.is_on = tuple(layers), True
        generator = torch.Generator().manual_seed(seed)
        device = next(transformer.parameters()).device
        shapes = [layer.weight.shape for layer in layers.values()]
        down = (torch.randn(rank, columns, generator=generator) / columns**0.5 for _, columns in shapes)
        self.down = nn.ParameterList(nn.Parameter(x.to(device)) for x in down)
        self.up = nn.ParameterList(nn.Parameter(torch.zeros(rows, rank, device=device)) for rows, _ in shapes)
        for i, layer in enumerate(layers.values()):
            layer.register_forward_hook(partial(self._add, i))

    def _add(self, i: int, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if not self.is_on:
            return output
        [x] = inputs
        return output + F.linear(F.linear(x, self.down[i].to(x.dtype)), self.up[i].to(x.dtype))

    @contextmanager
    def off(self) -> Iterator[None]:
        """In this context the transformer computes as it does alone."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write a `.safetensors` file that diffusers, PEFT and ComfyUI load. Raises SaveError."""
        tensors = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            for part, matrix in (("A", down), ("B", up)):
                tensors[f"{PREFIX}{name}.lora_{part}.weight"] = matrix.detach().half().cpu().contiguous()
        save_tensors(tensors, path, {"format": "pt", **about})


def _is_adapted(name: str, layer: nn.Module) -> bool:
    inner = name.split(".", 2)[-1]
    return isinstance(layer, nn.Linear) and inner in LAYERS


@torch.no_grad()
def merge(transformer: nn.Module, path: Path) -> None:
    """Add a LoRA of that layout to the transformer's weights.

    Raises:
        WeightsMissingError, WeightsError: there is no such file, or it is of another transformer.
    """
    tensors = weights.read(path)
    names = sorted({name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in tensors})
    for name in names:
        try:
            down, up = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
            weight = transformer.get_submodule(name).weight
            weight += (up @ down).to(weight)
        except (KeyError, AttributeError, RuntimeError) as error:
            raise WeightsError(
                f"{path.name} is no LoRA of this transformer: '{name}' does not fit ({error}). Choose one that stage "
                "distil trained on this model."
            ) from error
