"""The published transformer file, taken apart: the DiT, the identity encoder, and what no output needs."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import WeightsError
from .face_abstractor import live_names

ENCODER_PARTS = ("face_abstractor", "vertex_spiral_net", "vertex_reducer")
IDENTITY_PARTS = (*ENCODER_PARTS, "layer_attention")
CHECKPOINT = "model.diffusion_model."  # beneath which a ComfyUI checkpoint holds the transformer, beside other models
MARKS = ("v_pred", "ztsnr")  # tensors without values by which ComfyUI tells how a checkpoint is sampled
SCALED = (".scale_weight", ".weight_scale", "scaled_fp8")
QUANTISED = ".comfy_quant"  # the tensor that names the format of its layer, in ComfyUI's quantised formats
WRAPPERS = ("model.diffusion_model.", "diffusion_model.", "transformer.", "module.")


@dataclass(frozen=True)
class Published:
    """The published transformer's tensors by part, names without the part's prefix, and what its output never needs.

    Without identity weights (a plain CogVideoX) all parts but `dit` are empty; what ComfyUI saved of a MODEL has
    `layer_attention` as well, but not the encoder's parts.
    """

    dit: dict[str, Tensor]
    face_abstractor: dict[str, Tensor]
    vertex_spiral_net: dict[str, Tensor]
    vertex_reducer: dict[str, Tensor]
    layer_attention: dict[str, Tensor]
    dead: dict[str, Tensor]
    """Full name → tensor; mapped but never read, so never in memory."""

    @property
    def transformer(self) -> dict[str, Tensor]:
        """DiT and injection layers under the names that the transformer has them by."""
        return self.dit | {f"layer_attention.{name}": tensor for name, tensor in self.layer_attention.items()}

    @property
    def is_quantised(self) -> bool:
        """Whether layers of the transformer are in one of ComfyUI's quantised formats."""
        return any(name.endswith(QUANTISED) for name in self.transformer)

    @property
    def has_identity(self) -> bool:
        """Whether identities can be injected."""
        return bool(self.layer_attention)

    @property
    def has_encoder(self) -> bool:
        """Whether identities can be made."""
        return bool(self.face_abstractor)

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
        WeightsError: identity weights, but not all parts of them; or quantised in a format, or where, it cannot be.
    """
    scaled = next((name for name in tensors if name.endswith(SCALED)), None)
    if scaled is not None and not any(name.endswith(QUANTISED) for name in tensors):
        raise WeightsError(
            f"This transformer is stored in a quantised format with scales ({scaled}), which this pack does not read: "
            "take the file in bf16, fp16, plain fp8 or one of ComfyUI's formats (its layers have a tensor "
            f"'{QUANTISED[1:]}'). weight_dtype fp8_e4m3fn of Load Model saves as much memory."
        )
    tensors = _of_transformer(tensors)
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
    if 0 < len(empty) < len(IDENTITY_PARTS) and empty != list(ENCODER_PARTS):
        raise WeightsError(
            f"The transformer's identity weights are not complete: no tensor of {', '.join(empty)}. "
            "Copy or download it again."
        )
    if any(name.endswith(QUANTISED) for part in ENCODER_PARTS for name in parts[part]):
        raise WeightsError(
            "The identity encoder in this file is quantised, which it does not bear. Use a file in which only linear "
            "layers of transformer_blocks are."
        )
    dead = {}
    if not empty:
        abstractor = parts["face_abstractor"]
        live = set(live_names(list(abstractor)))
        dead = {f"face_abstractor.{name}": abstractor.pop(name) for name in list(abstractor) if name not in live}
    return Published(**parts, dead=dead)


def _of_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to the transformer, of a file that ComfyUI may have saved with its own marks and other models."""
    if any(name.startswith(CHECKPOINT) for name in tensors):
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(CHECKPOINT)}
    return {name: tensor for name, tensor in tensors.items() if name not in MARKS}


def _size(tensors: Mapping[str, Tensor]) -> str:
    return f"{len(tensors)} tensors ({sum(t.numel() for t in tensors.values()) / 1e6:.1f} M parameters)"
