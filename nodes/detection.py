"""Photo → face."""

from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..fantasyid_core.detection import insightface, selection, yunet
from ..fantasyid_core.detection.by_hand import face_in_box, face_in_mask
from ..fantasyid_core.detection.detections import Detector
from ..fantasyid_core.detection.faces import MAX_FACES
from ..fantasyid_core.errors import FaceNotFoundError, WeightsMissingError
from ..fantasyid_core.views.suitability import assess
from .host import notes, paths
from .host.base import FantasyIDNode, listed
from .host.sockets import Face

YUNET, INSIGHTFACE = "YuNet", "InsightFace "
PACKAGES = ("buffalo_l", "antelopev2")  # always offered, so that saved workflows load and say what is missing


class FantasyIDDetectFace(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDDetectFace",
            display_name="FantasyID Detect Face",
            **listed("2 photo", "face id", "find face", "face crop", "portrait", "person", "identity"),
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
                    "the leftmost, the rightmost, or the one whose number in the preview is in 'index'.",
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
                io.Combo.Input(
                    "detector",
                    options=detectors(),
                    default=YUNET,
                    optional=True,
                    tooltip="YuNet comes with the pack. InsightFace needs its package and, in "
                    "models/insightface/models/<name>, its models, which are for non-commercial research.",
                ),
            ],
            outputs=[
                Face.Output(
                    display_name="face", tooltip="The chosen face with its photo, box, landmarks (5 and 478) and crop."
                ),
                io.Image.Output(display_name="crop", tooltip="The face upright, 512 × 512."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The photo with all faces numbered; the chosen in green, with its 478 landmarks' contours.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The verdict, score and pose of the chosen face, and which frames were skipped.",
                ),
                io.String.Output(
                    display_name="verdict",
                    tooltip="good, usable or will not work as a reference, and why; also under the node and in the "
                    "preview.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, detector: str | None = None) -> bool:
        return paths.left_to_the_run(detector)

    @classmethod
    def run(
        cls,
        image: torch.Tensor,
        select: str,
        index: int,
        min_score: float,
        mask: torch.Tensor | None = None,
        detector: str = YUNET,
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        result = selection.find_face(
            image, select, index, mask, min_score=min_score, detector=load_detector(detector), device=device
        )
        verdict = assess(result.face)
        notes.show(str(verdict))
        preview = selection.numbered(result.faces, result.face, verdict.word)
        report = f"{verdict}\n{result.report}"
        return io.NodeOutput(result.face, result.face.crop[None], preview[None], report, str(verdict))


class FantasyIDDrawnFace(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDDrawnFace",
            display_name="FantasyID Face by Hand",
            **listed("2 photo", "face by mask", "face box", "anime face"),
            description=(
                "Takes the face where you say it is: in a painted mask, or in a box. For drawings, anime and masks, or "
                "wherever no detector finds the face. It should look at the viewer and stand upright."
            ),
            inputs=[
                io.Image.Input("image", tooltip="One picture with a face; of a batch the first is taken."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Painted over the face from brows to chin and ear to ear. It is stretched over the "
                    "picture. Without it, the box below counts.",
                ),
                *(
                    io.Int.Input(name, default=0, min=0, max=16_384, optional=True, tooltip=f"{what} of the box, px.")
                    for name, what in (
                        ("x", "Left edge"), ("y", "Upper edge"), ("width", "Width"), ("height", "Height"),
                    )
                ),
            ],
            outputs=[
                Face.Output(display_name="face", tooltip="The face with its picture, box, landmarks and crop."),
                io.Image.Output(display_name="crop", tooltip="The face, 512 × 512."),
                io.Image.Output(display_name="preview", tooltip="The picture with the box and the assumed landmarks."),
            ],
        )  # fmt: skip

    @classmethod
    def run(
        cls,
        image: torch.Tensor,
        mask: torch.Tensor | None = None,
        x: int = 0,
        y: int = 0,
        width: int = 0,
        height: int = 0,
    ) -> io.NodeOutput:
        if mask is not None:
            face = face_in_mask(image[0], mask[:1])
        elif width and height:
            face = face_in_box(image[0], (x, y, x + width, y + height))
        else:
            raise FaceNotFoundError("Connect a mask that is painted over the face, or give the box a width and height.")
        return io.NodeOutput(face, face.crop[None], selection.numbered([face], face)[None])


def detectors() -> list[str]:
    """What the widget offers: YuNet, and InsightFace's packages that are usual or there."""
    there = [name for name in insightface.packages(*insight_roots()) if name not in PACKAGES]
    return [YUNET, *(INSIGHTFACE + name for name in (*PACKAGES, *there))]


def load_detector(detector: str) -> Detector:
    """The detector that the widget names, loaded.

    Raises:
        WeightsMissingError, WeightsError, PackageMissingError: InsightFace or its models are missing or broken, or
            there is no such detector.
    """
    if detector == YUNET:
        return yunet.detect
    if not detector.startswith(INSIGHTFACE):
        raise WeightsMissingError(f"There is no detector '{detector}'; choose one of: {', '.join(detectors())}.")
    return insightface.load(insightface.find_detector(detector.removeprefix(INSIGHTFACE), *insight_roots()))


def insight_roots() -> list[Path]:
    """The host's folders for InsightFace: `models/insightface` and what extra_model_paths.yaml maps to it."""
    mapped = folder_paths.folder_names_and_paths.get("insightface", ([], set()))[0]
    return list(dict.fromkeys(Path(root) for root in (*mapped, Path(folder_paths.models_dir) / "insightface")))


NODES = [FantasyIDDetectFace, FantasyIDDrawnFace]
