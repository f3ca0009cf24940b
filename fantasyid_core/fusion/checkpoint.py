"""The published transformer file, taken apart: the DiT, the identity encoder, and what no output needs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import WeightsError
from .face_abstractor import live_names

IDENTITY_PARTS = ("face_abstractor", "vertex_spiral_net", "vertex_reducer", "layer_attention")
WRAPPERS = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.")


@dataclass(frozen=True)
class Published:
    """The published transformer's tensors by part, names without the part's prefix, and what its output never needs.

    Without identity weights (a plain CogVideoX) all parts but `dit` are empty.
    """

    dit: dict[str, Tensor]
    face_abstractor: dict[str, Tensor]
    vertex_spiral_net: dict[str, Tensor]
    vertex_reducer: dict[str, Tensor]
    layer_attention: dict[str, Tensor]
    dead: dict[str, Tensor]
    """Full name → tensor; mapped but never read, so never in memory."""

    @property
    def has_identity(self) -> bool:
        return bool(self.layer_attention)

    @property
    def report(self) -> str:
        """How many tensors and parameters each part has, in one line."""
        parts = ("dit", *IDENTITY_PARTS)
        live = "; ".join(f"{part} {_size(getattr(self, part))}" for part in parts if getattr(self, part))
        dead = f"; left unloaded, as no output needs them: {_size(self.dead)}" if self.dead else ""
        return f"loaded {live}{dead}"


def split_published(tensors: Mapping[str, Tensor]) -> Published:
    """Take the published transformer's state dict apart; only names are looked at, no tensor is read.

    Dead in the release (checked by scrambling them: same output) are nine of the abstractor's ten layers, four of its
    five mappings, its latents and its branch for a recognition model.

    Raises:
        WeightsError: identity weights, but not all parts of them.
    """
    wrapper = next((w for w in WRAPPERS if tensors and all(name.startswith(w) for name in tensors)), "")
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in ("dit", *IDENTITY_PARTS)}
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(wrapper)
        head, _, rest = name.partition(".")
        if head in IDENTITY_PARTS:
            parts[head][rest] = tensor
        else:
            parts["dit"][name] = tensor
    empty = [part for part in IDENTITY_PARTS if not parts[part]]
    if 0 < len(empty) < len(IDENTITY_PARTS):
        raise WeightsError(
            f"The transformer's identity weights are not complete: no tensor of {', '.join(empty)}. "
            "Copy or download it again."
        )
    dead = {}
    if not empty:
        abstractor = parts["face_abstractor"]
        live = set(live_names(list(abstractor)))
        dead = {f"face_abstractor.{name}": abstractor.pop(name) for name in list(abstractor) if name not in live}
    return Published(**parts, dead=dead)


def _size(tensors: Mapping[str, Tensor]) -> str:
    return f"{len(tensors)} tensors ({sum(t.numel() for t in tensors.values()) / 1e6:.1f} M parameters)"
