"""The video's size and its image condition, for the host's own samplers."""

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import node_helpers
import torch
from comfy_api.latest import io

from ..fantasyid_core.errors import SamplingError
from ..fantasyid_core.sampling.presets import AS_SET
from ..fantasyid_core.video.latents import FRAMES, HEIGHT, LATENT_CHANNELS, WIDTH, latent_size, squeeze_to_frame
from .host import notes
from .host.base import FantasyIDNode, listed
from .host.sockets import Identity

MAX_SIDE = 2048
BY_MODEL = "default for this model"
SETTINGS = (AS_SET, BY_MODEL)


def picture_inputs() -> list[io.Input]:
    """Width and height that the model knows, the same in every node that asks for them."""
    return [
        io.Int.Input(
            "width",
            default=WIDTH,
            min=16,
            max=MAX_SIDE,
            step=16,
            tooltip="Pixels. The published model knows 720 only; FantasyID-nano 160.",
        ),
        io.Int.Input(
            "height",
            default=HEIGHT,
            min=16,
            max=MAX_SIDE,
            step=16,
            tooltip="Pixels. The published model knows 480 only; FantasyID-nano 160.",
        ),
    ]


def size_inputs() -> list[io.Input]:
    """Width, height and frames of the video."""
    return [
        *picture_inputs(),
        io.Int.Input(
            "frames",
            default=FRAMES,
            min=1,
            max=1025,
            step=4,
            tooltip=(
                "A multiple of 4 plus 1; 49 are 6 s at 8 frames a second. FantasyID-nano knows 25. "
                "More need FantasyID Long Video."
            ),
        ),
    ]


def settings_input(what: str) -> io.Combo.Input:
    """The widget of every node whose numbers hang on the model: which numbers count, those of the node or the model's.

    Args:
        what: which of the node's widgets it stands for.
    """
    return io.Combo.Input(
        "settings",
        options=list(SETTINGS),
        default=AS_SET,
        optional=True,
        tooltip=f"as set here: what the widgets say. default for this model: {what} of the model in their place, shown "
        "under the node. FantasyID-nano: 160 × 160, 25 frames, 20 steps, guidance 4, ddim, guide_identity on. The "
        "published model: 720 × 480, 49 frames, 50 steps, guidance 6, dpm, off.",
    )


def by_model(settings: str) -> bool:
    """Whether the model's own numbers count. Raises SamplingError for a choice that there is not."""
    if settings not in SETTINGS:
        raise SamplingError(f"There are no settings '{settings}'; choose one of: {', '.join(SETTINGS)}.")
    return settings == BY_MODEL


def unused(widgets: Mapping[str, Any], used: Mapping[str, Any], by: str = "settings") -> str:
    """A sentence on the widgets whose values are not those that the widget `by` puts in their place; empty without."""
    names = [f"{name} {value}" for name, value in widgets.items() if value != used[name]]
    return f" Not used: {', '.join(names)}; to use them set '{by}' to '{AS_SET}'." if names else ""


def own_size(model, frames: int) -> tuple[int, int, int]:
    """Width, height and frames that a MODEL was made for; with FantasyID Long Video the length stays `frames`.

    Raises:
        SamplingError: no MODEL is connected (None).
    """
    from .host.options import defaults_of, is_windowed

    if model is None:
        raise SamplingError(f"'{BY_MODEL}' needs the model: connect 'model', or choose '{AS_SET}'.")
    own = defaults_of(model)
    return own.width, own.height, frames if is_windowed(model) else own.frames


def latents_to_redraw(latents: Mapping[str, Any], zeros: torch.Tensor) -> torch.Tensor:
    """Samples (1, 16, T, h, w) of a `LATENT` that is drawn again as the video of `zeros`.

    Raises:
        SamplingError: they are of another size, or some are no numbers.
    """
    samples = latents["samples"]
    if samples.shape != zeros.shape:
        wanted = _in_pixels(zeros.shape)
        raise SamplingError(
            f"The latents to draw again are {_in_pixels(samples.shape)}, but the video is {wanted}. Set width, height "
            "and frames to those of the latents, or encode one video of that size with VAE Encode."
        )
    if not bool(samples.isfinite().all()):
        raise SamplingError(
            "The latents to draw again have values that are no numbers (NaN). Check the node that they come from, and "
            "encode the video again."
        )
    return samples.to(zeros)


def _in_pixels(shape: torch.Size) -> str:
    """The video of latents (B, 16, T, h, w) in words, or what they are in its place."""
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        return f"of shape {tuple(shape)}, as no video of this model's VAE has"
    videos, _, frames, height, width = shape
    length = "1 frame" if frames == 1 else f"{4 * frames - 3} frames"
    size = f"{8 * width} × {8 * height} pixels and {length}"
    return size if videos == 1 else f"{videos} videos of {size}"


def empty_latent(frames: int, height: int, width: int) -> dict[str, torch.Tensor]:
    """A `LATENT` of zeros for a video of this size. Raises SamplingError where there is none."""
    size = (1, LATENT_CHANNELS, *latent_size(frames, height, width))
    return {"samples": torch.zeros(size, device=comfy.model_management.intermediate_device())}


class FantasyIDImageCondition(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDImageCondition",
            display_name="FantasyID Image Condition",
            **listed("5 video", "image to video", "i2v", "empty latent", "first frame"),
            description=(
                "For KSampler and SamplerCustomAdvanced: the empty latent of a video, and the reference face as its "
                "first latent frame, as the release does. Without an identity the model gets no first frame."
            ),
            inputs=[
                io.Conditioning.Input("positive", tooltip="The encoded prompt."),
                io.Conditioning.Input("negative", tooltip="What to avoid; an empty prompt as released."),
                io.Vae.Input("vae", tooltip="The VAE of FantasyID Load Model."),
                *size_inputs(),
                Identity.Input("identity", optional=True, tooltip="Its reference crop becomes the first latent frame."),
                settings_input("width, height and frames"),
                io.Model.Input(
                    "model", optional=True, tooltip="The MODEL that will be sampled: 'settings' asks it for its size."
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the image condition."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt with the image condition."
                ),
                io.Latent.Output(tooltip="Empty latents of the video, for latent_image."),
            ],
        )

    @classmethod
    def run(
        cls,
        positive,
        negative,
        vae,
        width: int,
        height: int,
        frames: int,
        identity=None,
        settings: str = AS_SET,
        model=None,
    ) -> io.NodeOutput:
        from .host.options import check_size, transformer_of
        from .host.vae import check_vae

        check_vae(vae)
        if by_model(settings):
            widgets = {"width": width, "height": height, "frames": frames}
            width, height, frames = own_size(model, frames)
            ignored = unused(widgets, {"width": width, "height": height, "frames": frames})
            notes.show(f"{width} × {height} pixels, {frames} frames.{ignored}")
        latent = empty_latent(frames, height, width)
        if model is not None:
            check_size(model.model_options, latent["samples"], transformer_of(model))
        if identity is not None:
            values = {"concat_latent_image": vae.encode(squeeze_to_frame(identity.image, height, width))}
            positive = node_helpers.conditioning_set_values(positive, values)
            negative = node_helpers.conditioning_set_values(negative, values)
        return io.NodeOutput(positive, negative, latent)


NODES = [FantasyIDImageCondition]
