"""Several photos or frames of one person, or one photo and its mesh → views."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from ..fantasyid_core.detection.faces import DetectedFace
from ..fantasyid_core.meters import embedding
from ..fantasyid_core.reconstruction.face_mesh import FaceMesh
from ..fantasyid_core.views import novel_views
from ..fantasyid_core.views.appearance import BUILT_IN
from ..fantasyid_core.views.augmentation import augment
from ..fantasyid_core.views.collection import LEAVE_OUT, PEOPLE, FaceViews, collect
from ..fantasyid_core.views.contact_sheet import contact_sheet
from .host import paths
from .host.base import FantasyIDNode, listed
from .host.sockets import Face, Mesh, Views

LOOKS = "looks"


class FantasyIDViews(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDViews",
            display_name="FantasyID Multi-View",
            **listed(
                "4 identity",
                "several photos",
                "reference photos",
                "video to identity",
                "consistent character",
                "person",
            ),
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
                    options=list(PEOPLE),
                    default=LEAVE_OUT,
                    optional=True,
                    tooltip="leave others out: only faces that certainly are the person in the reference. all pictures "
                    "show this person: the largest face of each; for separate photos that you know to be right.",
                ),
                io.Combo.Input(
                    "recognition",
                    options=[LOOKS, *embedding.EMBEDDINGS],
                    default=LOOKS,
                    optional=True,
                    tooltip="What tells people apart. looks: needs nothing; good within one video, but no face "
                    "recognition: across photos it takes strangers for one another. dlib or ArcFace: face recognition, "
                    "good across photos too; needs an optional package or your model file.",
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
        cls,
        face: DetectedFace,
        max_views: int,
        images: torch.Tensor | None = None,
        people: str = LEAVE_OUT,
        recognition: str = LOOKS,
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        recogniser = BUILT_IN
        if recognition != LOOKS and images is not None and people == LEAVE_OUT:
            recogniser = embedding.recogniser(embedding.load(recognition, paths.embedding_folders()))
        collected = collect(face, images, max_views, people=people, recogniser=recogniser, device=device)
        return io.NodeOutput(collected, contact_sheet(collected)[None], collected.report)


class FantasyIDNewViews(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDNewViews",
            display_name="FantasyID New Views",
            **listed("4 identity", "novel views", "rotate face", "one photo", "turn head", "consistent character"),
            description=(
                "Makes views from one photo: its pixels on the face's mesh, turned to other poses. What the photo does "
                "not show stays grey and is left out of the coverage mask; nothing is invented. Altered copies in "
                "other light can be added."
            ),
            inputs=[
                Face.Input("face", tooltip="The face that the mesh was made from. It is the first view."),
                Mesh.Input("mesh", tooltip="From FantasyID Reconstruct 3D with this face; not one loaded from a file."),
                io.Float.Input(
                    "yaw",
                    default=30.0,
                    min=0.0,
                    max=75.0,
                    step=5.0,
                    tooltip="How far to the left and to the right the head is turned, in degrees. Up to 30 looks well.",
                ),
                io.Float.Input(
                    "pitch", default=10.0, min=0.0, max=40.0, step=5.0, tooltip="How far up and down, in degrees."
                ),
                io.Int.Input(
                    "columns", default=3, min=1, max=9, tooltip="Poses from left to right; 1 turns up and down only."
                ),
                io.Int.Input(
                    "rows", default=1, min=1, max=9, tooltip="Poses from up to down; 1 turns left and right only."
                ),
                io.Float.Input(
                    "min_seen",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Leave out views of which the photo shows less than this share of the face.",
                ),
                io.Int.Input(
                    "altered",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="How many altered copies to add: other light, colour, sharpness and a slightly other "
                    "framing of the views, in turn.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="The same seed alters the copies in the same way.",
                ),
                Views.Input(
                    "views",
                    optional=True,
                    tooltip="Views from FantasyID Multi-View that the new ones are added to; the first view is theirs.",
                ),
            ],
            outputs=[
                Views.Output(display_name="views", tooltip="The views, for FantasyID Feature Fusion."),
                io.Image.Output(
                    display_name="contact_sheet", tooltip="All views, each with its number, score, origin and pose."
                ),
                io.Image.Output(display_name="images", tooltip="The views as a batch, 512 × 512."),
                io.Mask.Output(
                    display_name="coverage", tooltip="For each view, where it shows the person; black: unseen."
                ),
                io.String.Output(
                    display_name="report", tooltip="How much of the face the photo shows in the new views."
                ),
            ],
        )

    @classmethod
    def run(
        cls,
        face: DetectedFace,
        mesh: FaceMesh,
        yaw: float,
        pitch: float,
        columns: int,
        rows: int,
        min_seen: float,
        altered: int,
        seed: int,
        views: FaceViews | None = None,
    ) -> io.NodeOutput:
        poses = novel_views.grid(yaw, pitch, columns, rows)
        rendered = novel_views.new_views(ensure_dense_landmarks(face), mesh, poses, min_seen)
        rendered = augment(rendered if views is None else novel_views.append_rendered(views, rendered), altered, seed)
        return io.NodeOutput(
            rendered, contact_sheet(rendered)[None], rendered.crops, rendered.coverage, rendered.report
        )


NODES = [FantasyIDViews, FantasyIDNewViews]
