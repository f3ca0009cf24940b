"""FantasyID Faster: switches that trade exactness for time. All are off until the artist turns them on."""

from comfy_api.latest import io

from ..fantasyid_core.dit.step_cache import START, THRESHOLD, CacheSettings
from .host.base import FantasyIDNode, listed

STEP_CACHES = ("off", "first block")


class FantasyIDFaster(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDFaster",
            display_name="FantasyID Faster",
            **listed("1 model", "speed", "step cache", "teacache", "fp8", "optimize"),
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
                        "Multiplies with 8-bit numbers. Gain: large matmuls take 0.6 of their time, a seventh of a "
                        "step on an H100; for RTX 40/50, L4, L40, H100 and newer NVIDIA cards. Cost: small deviations "
                        "in every step; the seed gives a slightly different video. Leave it off for final renders and "
                        "on older cards, which cannot do it."
                    ),
                ),
                io.Combo.Input(
                    "step_cache",
                    options=list(STEP_CACHES),
                    default="off",
                    optional=True,
                    tooltip=(
                        "first block: computes the first block of every step and, where it hardly changed, takes the "
                        "other blocks' part from the last full steps. Gain: of 50 steps some 30 with ddim, 20 "
                        "with dpm, are almost free. Cost: the video strays from the exact one, with dpm further than "
                        "with ddim. Leave it off for final renders, below 20 steps, and beside EasyCache."
                    ),
                ),
                io.Float.Input(
                    "cache_threshold",
                    default=THRESHOLD,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "For step_cache: how much the first block's part may change until a step is computed again. "
                        "More skips more steps and strays further; 0 skips none. The log says how many were skipped."
                    ),
                ),
                io.Float.Input(
                    "cache_start",
                    default=START,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip=(
                        "For step_cache: part of the run that is computed in full at first. There pose, layout and "
                        "face are decided: less is faster and changes the video more."
                    ),
                ),
                io.Float.Input(
                    "cache_end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="For step_cache: where skipping ends. Less computes the last, finest steps in full.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The same MODEL, faster. TorchCompileModel after it gains next to nothing: leave it "
                    "out, above all where the model does not fit the card and ComfyUI streams the weights."
                )
            ],
        )

    @classmethod
    def run(
        cls,
        model,
        fp8_products: bool,
        step_cache: str = "off",
        cache_threshold: float = THRESHOLD,
        cache_start: float = START,
        cache_end: float = 1.0,
    ) -> io.NodeOutput:
        from .host.options import set_fp8_products, set_step_cache

        cache = CacheSettings(cache_threshold, cache_start, cache_end) if step_cache == "first block" else None
        return io.NodeOutput(set_step_cache(set_fp8_products(model, fp8_products), cache))


NODES = [FantasyIDFaster]
