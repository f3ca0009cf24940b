"""Photo → face."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core import selection
from ..fantasyid_core.detection import MAX_FACES
from ._base import CATEGORY, FantasyIDNode
from ._sockets import Face


class FantasyIDDetectFace(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDDetectFace",
            display_name="FantasyID Detect Face",
            category=CATEGORY,
            description=(
                "Finds the faces in a photo, chooses one and cuts it out upright, 512 × 512. Of a batch or video it "
                "takes the frame that shows the chosen face best and skips frames without one. Needs no download."
            ),
            inputs=[
                io.Image.Input("image", tooltip="The photo of the person: face visible, upright, at least 24 px."),
                io.Combo.Input(
                    "select",
                    options=list(selection.SELECTIONS),
                    default="largest",
                    tooltip="Which face to take where there are several: the largest, the one nearest to the centre, "
                    "the leftmost, or the one whose number in the preview is in 'index'.",
                ),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=MAX_FACES - 1,
                    tooltip="The face's number in the preview, 0 is the largest. Used where 'select' is 'index'.",
                ),
                io.Float.Input(
                    "min_score",
                    default=0.6,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="How certain the detector must be. Lower it for blurred, dark or covered faces; raise it "
                    "where things are taken for faces.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Only faces whose eyes, nose and mouth lie in this mask are considered. It is stretched "
                    "over the photo.",
                ),
            ],
            outputs=[
                Face.Output(display_name="face", tooltip="The chosen face with its photo, box, landmarks and crop."),
                io.Image.Output(display_name="crop", tooltip="The face upright, 512 × 512."),
                io.Image.Output(
                    display_name="preview", tooltip="The photo with all faces numbered, the chosen in green."
                ),
            ],
        )

    @classmethod
    def run(
        cls, image: torch.Tensor, select: str, index: int, min_score: float, mask: torch.Tensor | None = None
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        face, faces = selection.find_face(image, select, index, mask, min_score=min_score, device=device)
        return io.NodeOutput(face, face.crop[None], selection.numbered(faces, face)[None])


NODES = [FantasyIDDetectFace]
