"""Several photos or frames of one person → views."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core import views
from ..fantasyid_core.contact_sheet import contact_sheet
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
                "Collects views of one person: the detected face and, from further photos or a video's frames, sharp "
                "faces of the same person in other poses and expressions. Other people and near-duplicates are left "
                "out, frames without a face skipped."
            ),
            inputs=[
                Face.Input("face", tooltip="The reference face. It is always the first view."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Further photos or video frames of the person; others may be in them too. Without them "
                    "there is one view only.",
                ),
                io.Int.Input(
                    "max_views",
                    default=8,
                    min=1,
                    max=64,
                    tooltip="How many views to keep, the reference included: sharp ones whose poses and expressions "
                    "differ most. Near-duplicates are dropped, so there may be fewer.",
                ),
                io.Combo.Input(
                    "people",
                    options=list(views.PEOPLE),
                    default=views.LEAVE_OUT,
                    optional=True,
                    tooltip="leave others out: only faces that certainly are the person in the reference. all pictures "
                    "show this person: the largest face of each; for separate photos that you know to be right.",
                ),
            ],
            outputs=[
                Views.Output(display_name="views", tooltip="The reference, then the views in the order of use."),
                io.Image.Output(
                    display_name="contact_sheet", tooltip="All views, each with its number, score, origin and pose."
                ),
                io.String.Output(display_name="report", tooltip="What was taken and what was left out, and why."),
            ],
        )

    @classmethod
    def run(
        cls, face: DetectedFace, max_views: int, images: torch.Tensor | None = None, people: str = views.LEAVE_OUT
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        collected = views.collect(face, images, max_views, people=people, device=device)
        return io.NodeOutput(collected, contact_sheet(collected)[None], collected.report)


NODES = [FantasyIDViews]
