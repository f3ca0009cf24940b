"""A face cut out of any model's video, to be drawn again with an identity, and put back."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core.detection import face_track
from ..fantasyid_core.detection.faces import DetectedFace
from ..fantasyid_core.video.face_clip import AROUND, cut_out, paste
from ..fantasyid_core.video.face_clip import FaceClip as CutOut
from ..fantasyid_core.video.latents import FRAMES, latent_size
from ..fantasyid_core.views.appearance import describe
from .host import notes
from .host.base import FantasyIDNode, counting, listed
from .host.sockets import Face, FaceClip
from .video import AS_SET, BY_MODEL, by_model, own_size, picture_inputs, settings_input

LEAST_SEEN = 0.8  # share of the frames with the face below which the artist is warned
CONSENT = "Change only videos of people who agreed to it."


class FantasyIDFaceTrack(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDFaceTrack",
            display_name="FantasyID Face Track",
            **listed(
                "5 video", "face detailer", "repair face", "crop face", "face swap", "small faces", "restore face"
            ),
            description=(
                "Follows one person's face through a video of any model and cuts it out as a steady clip of the "
                "model's size. Draw the clip again (VAE Encode, KSampler at a denoise below 1, Apply FantasyID), then "
                f"put it back with FantasyID Paste Face. {CONSENT}"
            ),
            inputs=[
                io.Image.Input("images", tooltip="The video's frames."),
                io.Float.Input(
                    "fps",
                    default=8.0,
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the video: how steadily the face is followed hangs on it.",
                ),
                *picture_inputs(),
                io.Float.Input(
                    "around",
                    default=AROUND,
                    min=1.2,
                    max=6.0,
                    step=0.1,
                    tooltip="Shorter side of the clip in sizes of the face: more shows hair and shoulders, which the "
                    "model knows from its training; less gives the face more pixels.",
                ),
                Face.Input(
                    "face",
                    optional=True,
                    tooltip="Whom to follow, from FantasyID Detect Face on a photo or a frame. Without it, the largest "
                    "face of the first frame with one. Other people are left alone.",
                ),
                settings_input("width and height"),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The MODEL that will draw the clip: 'settings' asks it for its size.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="clip", tooltip="For VAE Encode. Its last frame is repeated to a multiple of 4 plus 1."
                ),
                FaceClip.Output(display_name="face_clip", tooltip="Where it belongs, for FantasyID Paste Face."),
                io.Mask.Output(display_name="mask", tooltip="The face in the clip, soft; black where it is not seen."),
                io.String.Output(display_name="report", tooltip="In which frames the face is."),
            ],
        )

    @classmethod
    def run(
        cls,
        images: torch.Tensor,
        fps: float,
        width: int,
        height: int,
        around: float,
        face: DetectedFace | None = None,
        settings: str = AS_SET,
        model=None,
    ) -> io.NodeOutput:
        other = ""
        if by_model(settings):
            width, height, _ = own_size(model, FRAMES)
        elif model is None or own_size(model, FRAMES)[:2] != (width, height):
            other = f" For the model's own size connect 'model' and set 'settings' to '{BY_MODEL}'."
        latent_size(1, height, width)  # says what is wrong with the size before minutes of looking at frames
        count = counting(2 * len(images))
        device = comfy.model_management.get_torch_device()
        track = face_track.follow(images, fps, face, describe=describe, device=device, progress=count)
        clip = cut_out(images, track, height, width, around=around, progress=lambda done: count(len(images) + done))
        notes.show(track.report, f"A clip of {width} × {height} pixels and {len(clip.frames)} frames.{other}")
        if track.present.float().mean() < LEAST_SEEN:
            notes.warn(
                "Cancel if that is too few: the other frames stay as they are. Connect 'face' with a photo in which "
                "the person looks as in the video, or repair scene by scene."
            )
        return io.NodeOutput(clip.frames, clip, clip.mask, track.report)


class FantasyIDPasteFace(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDPasteFace",
            display_name="FantasyID Paste Face",
            **listed("5 video", "face detailer", "repair face", "uncrop", "composite", "face swap"),
            description=(
                "Puts a clip of FantasyID Face Track back into its video after it was drawn again: with a soft edge "
                "and the video's colours. Everything outside of the face stays as it is, bit by bit."
            ),
            inputs=[
                io.Image.Input("images", tooltip="The frames that went into FantasyID Face Track."),
                io.Image.Input("clip", tooltip="The clip after it was drawn again, from VAE Decode; of any size."),
                FaceClip.Input("face_clip", tooltip="From FantasyID Face Track."),
                io.Float.Input(
                    "match_colours",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the clip's colour is moved to that of the video along the face's edge.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The video with the new face."),
                io.Mask.Output(display_name="mask", tooltip="Where the video has changed, and how much."),
            ],
        )

    @classmethod
    def run(cls, images: torch.Tensor, clip: torch.Tensor, face_clip: CutOut, match_colours: float) -> io.NodeOutput:
        count = counting(len(images))
        return io.NodeOutput(*paste(images, face_clip, clip, match_colours=match_colours, progress=count))


NODES = [FantasyIDFaceTrack, FantasyIDPasteFace]
