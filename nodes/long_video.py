"""FantasyID Long Video: more frames than the model was trained on, in overlapping windows."""

from importlib.util import find_spec

from comfy_api.latest import io

from ..fantasyid_core.errors import SamplingError
from ..fantasyid_core.sampling.windows import windows
from .host.base import FantasyIDNode, listed

FIRST_FRAME = {"as trained": None, "in every window": True, "in the first window only": False}


class FantasyIDLongVideo(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLongVideo",
            display_name="FantasyID Long Video",
            **listed("5 video", "longer video", "context windows", "more frames", "talking head"),
            description=(
                "For more frames than the model was trained on: every step is predicted in overlapping windows of that "
                "length, blended where they overlap, with the same identity in each. Time grows with the length, "
                "memory hardly. Ask for the frames in the sampler or in Image Condition, as always. Before or after "
                "Apply FantasyID, for every sampler. A video of one window is the same as without this node."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From FantasyID Load Model, Apply FantasyID or a LoRA loader."),
                io.Int.Input(
                    "window_frames",
                    default=0,
                    min=0,
                    max=1025,
                    tooltip=(
                        "Frames of one window. 0: as many as the model was trained on (49; FantasyID-nano 25), which "
                        "is best. Fewer need less memory; a multiple of 4 plus 1."
                    ),
                ),
                io.Int.Input(
                    "overlap",
                    default=12,
                    min=0,
                    max=1024,
                    step=4,
                    tooltip=(
                        "Frames that neighbouring windows share, at least. More give smoother transitions and cost "
                        "time: with 12 of 49, about a third more a frame than a short video; with 24, twice as much."
                    ),
                ),
                io.Combo.Input(
                    "first_frame",
                    options=list(FIRST_FRAME),
                    default="as trained",
                    tooltip=(
                        "Whether every window sees the video's first frame too. 'as trained': yes for the published "
                        "model, whose first frame is the reference face; no for FantasyID-nano, which was trained "
                        "without one. If later windows turn back to the first picture, try 'in the first window only'."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same MODEL, for long videos.")],
        )

    @classmethod
    def run(cls, model, window_frames: int, overlap: int, first_frame: str) -> io.NodeOutput:
        if find_spec("comfy.context_windows") is None:
            raise SamplingError("This ComfyUI has no context windows, which long videos need: update ComfyUI.")
        from .host.options import transformer_of
        from .host.windows import set_windows

        transformer = transformer_of(model)
        anchored = FIRST_FRAME[first_frame]
        if anchored is None:
            anchored = transformer.config.first_frame_condition
        frames = window_frames or transformer.config.sample_frames
        return io.NodeOutput(set_windows(model, windows(frames, overlap, anchored)))


NODES = [FantasyIDLongVideo]
