"""Apply FantasyID: a MODEL that carries an identity, for any sampler of the host."""

from comfy_api.latest import io

from ..fantasyid_core.dit.injection import Injection, parse_curve
from .host.base import FantasyIDNode, listed
from .host.sockets import Identity


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
                "FantasyID Sampler. Applying twice adds both identities; the weights are shared, not copied."
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
    ) -> io.NodeOutput:
        from .host.options import add_injection, transformer_of

        curve = parse_curve(layer_weights, len(transformer_of(model).layer_attention))
        return io.NodeOutput(
            add_injection(
                model, Injection(identity.tokens, strength, start_percent, end_percent, curve, guide_identity)
            )
        )


NODES = [FantasyIDApply]
