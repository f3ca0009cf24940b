"""Apply FantasyID: a MODEL that carries an identity, for any sampler of the host."""

import math

import torch
from comfy_api.latest import io

from ..fantasyid_core.dit.injection import Injection, parse_curve
from ..fantasyid_core.dit.region import ADD, OVERLAPS, Region
from ..fantasyid_core.sampling.presets import AS_SET, CHOICES, describe, preset_of
from .host import notes
from .host.base import FantasyIDNode, advanced, listed
from .host.sockets import Identity
from .video import unused


def guide_identity_input() -> io.Boolean.Input:
    """The widget of every node that says what guidance leads to."""
    return io.Boolean.Input(
        "guide_identity",
        default=False,
        optional=True,
        tooltip=(
            "On: the negative prompt's branch goes without the identity, so that guidance leads to the person as it "
            "leads to the prompt: best with FantasyID-nano. Off: both have it, as the published model was released."
        ),
    )


def seconds_input(name: str, tooltip: str, default: float = 0.0, most: float = 3600.0) -> io.Float.Input:
    """A widget of seconds of the video."""
    return io.Float.Input(name, default=default, min=0.0, max=most, step=0.05, optional=True, tooltip=tooltip)


def fade_input(tooltip: str) -> io.Float.Input:
    """The widget of how long identities take to begin and to end."""
    return seconds_input("fade_seconds", tooltip, 0.25, 60.0)


def preset_input(what: str) -> io.Combo.Input:
    """The widget that sets others for one purpose.

    Args:
        what: which of the node's widgets it sets.
    """
    return io.Combo.Input(
        "preset",
        options=list(CHOICES),
        default=AS_SET,
        optional=True,
        tooltip=f"For one purpose sets {what}; under the node it says what it set. as set here: what the widgets say.",
    )


class FantasyIDApply(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDApply",
            display_name="Apply FantasyID",
            **listed(
                "4 identity",
                "identity",
                "face id",
                "face swap",
                "ip-adapter",
                "ipadapter",
                "pulid",
                "instantid",
                "consistent character",
                "person",
                "likeness",
            ),
            description=(
                "Makes a MODEL follow an identity. The result works with KSampler, SamplerCustomAdvanced and the "
                "FantasyID Sampler. Applied twice, it holds both identities: in parts of the picture by masks, at "
                "times by seconds, or together. The weights are shared, not copied."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of FantasyID Load Model, with or without LoRAs."),
                Identity.Input("identity", tooltip="From FantasyID Feature Fusion or Load Identity."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="1 as trained; less gives the prompt more room, more insists on the face, 0 is off.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling run the identity sets in. A late start frees pose and layout.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where in the sampling run the identity ends.",
                ),
                io.String.Input(
                    "layer_weights",
                    default="",
                    tooltip=(
                        "Curve over the depth of the model, such as '0.5, 1, 1': numbers are spread evenly over its "
                        "layers and joined by straight lines. Empty: 1 everywhere, as trained."
                    ),
                ),
                guide_identity_input(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where in the picture the identity acts, white in full, black not at all: one mask for the "
                    "whole video, or one per frame. It is stretched to the video's size.",
                ),
                advanced(
                    seconds_input(
                        "from_second",
                        "When in the video the identity begins to act. start_percent is about sampling steps.",
                    )
                ),
                advanced(seconds_input("to_second", "When in the video it ends; 0: at the video's end.")),
                advanced(
                    fade_input("How long it takes to begin and to end, half of it before that moment and half after.")
                ),
                advanced(
                    io.Combo.Input(
                        "overlap",
                        options=list(OVERLAPS),
                        default=ADD,
                        optional=True,
                        tooltip="Where an Apply FantasyID before this one acts too: add: both in full. share: each a "
                        "part. last wins: this one displaces those before.",
                    )
                ),
                preset_input("strength, start_percent, end_percent and guide_identity"),
            ],
            outputs=[io.Model.Output(tooltip="The same MODEL, following the identity.")],
        )

    @classmethod
    def run(
        cls,
        model,
        identity,
        strength: float,
        start_percent: float,
        end_percent: float,
        layer_weights: str,
        guide_identity: bool = False,
        mask: torch.Tensor | None = None,
        from_second: float = 0.0,
        to_second: float = 0.0,
        fade_seconds: float = 0.25,
        overlap: str = ADD,
        preset: str = AS_SET,
    ) -> io.NodeOutput:
        from .host.options import add_injection, transformer_of

        if own := preset_of(preset):
            widgets = {"strength": strength, "start_percent": start_percent, "end_percent": end_percent}
            widgets["guide_identity"] = guide_identity
            strength, start_percent, end_percent = own.strength, own.start, own.end
            guide_identity = own.guide_identity
            used = dict(zip(widgets, (strength, start_percent, end_percent, guide_identity), strict=True))
            notes.show(f"{preset}: {describe(own)}.{unused(widgets, used, 'preset')}")

        curve = parse_curve(layer_weights, len(transformer_of(model).layer_attention))
        region = Region(
            None if mask is None else mask.reshape(-1, *mask.shape[-2:]),
            from_second,
            to_second or math.inf,
            fade_seconds,
            overlap,
        )
        injection = Injection(
            identity.tokens,
            strength,
            start_percent,
            end_percent,
            curve,
            guide_identity,
            region,
            identity.frame_tokens,
        )
        return io.NodeOutput(add_injection(model, injection))


NODES = [FantasyIDApply]
