"""FantasyID Faster: switches that trade exactness for time. All are off until the artist turns them on."""

from comfy_api.latest import io

from ..fantasyid_core.optional import require
from ._base import CATEGORY, FantasyIDNode


class FantasyIDFaster(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDFaster",
            display_name="FantasyID Faster",
            category=CATEGORY,
            description=(
                "Switches that make sampling faster and less exact; with all of them off the video is the exact one. "
                "Before or after Apply FantasyID and LoRAs, for every sampler. The weights are shared, not copied."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From FantasyID Load Model, Apply FantasyID or a LoRA loader."),
                io.Boolean.Input(
                    "fp8_products",
                    default=False,
                    tooltip=(
                        "Multiplies with 8-bit numbers. Gain: about a sixth of a step, on RTX 40/50, L4, L40, H100 and "
                        "newer NVIDIA cards. Cost: small deviations in every step; the seed gives a slightly different "
                        "video. Leave it off for final renders and on older cards, which cannot do it."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same MODEL, faster.")],
        )

    @classmethod
    def run(cls, model, fp8_products: bool) -> io.NodeOutput:
        require("diffusers", "The video transformer", "'diffusers>=0.35'")
        from ._native_model import set_fp8_products

        return io.NodeOutput(set_fp8_products(model, fp8_products))


NODES = [FantasyIDFaster]
