"""Several photos or frames of one person → views."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core import views
from ..fantasyid_core.detection import DetectedFace
from ._base import CATEGORY, FantasyIDNode
from ._sockets import Face, Views


class FantasyIDViews(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDViews",
            display_name="FantasyID Multi-View",
            category=CATEGORY,
            description=(
                "Collects views of one person: the detected face, and the best faces of further photos or of a video's "
                "frames. All of them must show that person alone or largest. Frames without a face are skipped."
            ),
            inputs=[
                Face.Input("face", tooltip="The reference face. It is always the first view."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Further photos or video frames of the same person. Without them there is one view only.",
                ),
                io.Int.Input(
                    "max_views",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How many views to keep, the reference included. Near-duplicates are dropped, the faces "
                    "that the detector is most certain of are kept.",
                ),
            ],
            outputs=[
                Views.Output(display_name="views", tooltip="The views, best first after the reference."),
                io.Image.Output(display_name="contact_sheet", tooltip="All views, each with its number and score."),
            ],
        )

    @classmethod
    def run(cls, face: DetectedFace, max_views: int, images: torch.Tensor | None = None) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        collected = views.collect(face, images, max_views, device=device)
        return io.NodeOutput(collected, views.contact_sheet(collected)[None])


NODES = [FantasyIDViews]
