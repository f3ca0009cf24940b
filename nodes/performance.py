"""A video → what its face does; that on a person's mesh → a mesh that moves; both as files."""

import comfy.model_management
import torch
from comfy_api.latest import io

from ..fantasyid_core.detection import face_track
from ..fantasyid_core.detection.face_track import FaceTrack
from ..fantasyid_core.detection.faces import DetectedFace
from ..fantasyid_core.errors import ImageError
from ..fantasyid_core.reconstruction import face_mesh
from ..fantasyid_core.reconstruction.animation import Animation as MovingMesh
from ..fantasyid_core.reconstruction.animation import shade
from ..fantasyid_core.reconstruction.dense_fit import known_points
from ..fantasyid_core.reconstruction.face_mesh import FaceMesh
from ..fantasyid_core.reconstruction.flame import Flame
from ..fantasyid_core.reconstruction.glb import write_animated_glb
from ..fantasyid_core.reconstruction.mesh_space import into_space
from ..fantasyid_core.reconstruction.performance import (
    AFTERWARDS,
    HOLD,
    MAX_FRAMES,
    capture,
    load_performance,
    perform,
    save_performance,
)
from ..fantasyid_core.reconstruction.performance import Performance as Captured
from ..fantasyid_core.views.appearance import describe
from .host import notes, paths
from .host.base import FantasyIDNode, counting, listed, saved_mesh
from .host.resident import face_model, on_device
from .host.sockets import Animation, Face, Mesh, Performance

HostLandmarks = io.Custom("FACE_LANDMARKS")  # of ComfyUI's MediaPipeFaceLandmarker, 0.23 and later
SHOWN = 64  # frames of the preview at most
CONSENT = "A performance is a person's: use it with that person's consent."


class FantasyIDCapture(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDCapture",
            display_name="FantasyID Capture",
            **listed(
                "3 face shape", "motion capture", "facial animation", "performance", "driving video", "blendshapes"
            ),
            description=(
                "Captures what a face does in a video: expression, jaw and head pose of every frame, apart from whose "
                "face it is. One person is followed, also past others; needs no download with FantasyID-nano's face "
                "model."
            ),
            inputs=[
                io.Image.Input(
                    "images", tooltip="The video's frames. Frames without the face are filled from those around."
                ),
                io.Combo.Input(
                    "model_name",
                    options=paths.offered([*paths.model_folders(), *paths.model_files()]),
                    tooltip="The model whose face model's expressions are used. FantasyID Perform needs the same.",
                ),
                io.Float.Input(
                    "fps",
                    default=25.0,
                    min=1.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Frames per second of the video. What moves is steadied by it, and .glb files play by it.",
                ),
                Face.Input(
                    "face",
                    optional=True,
                    tooltip="Whom to follow, from FantasyID Detect Face. Without it, the largest face of the first "
                    "frame with one.",
                ),
                HostLandmarks.Input(
                    "face_landmarks",
                    optional=True,
                    tooltip="From ComfyUI's Detect Face Landmarks (MediaPipe), of the same frames: taken instead of "
                    "the pack's own; 'face' does not count then.",
                ),
            ],
            outputs=[
                Performance.Output(display_name="performance", tooltip="For FantasyID Perform or Save Performance."),
                io.Image.Output(
                    display_name="preview", tooltip=f"Up to {SHOWN} frames from all over the video with the points."
                ),
                io.String.Output(display_name="report", tooltip="In how many frames the face is, and where it is not."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool:
        return paths.left_to_the_run(model_name)

    @classmethod
    def run(
        cls,
        images: torch.Tensor,
        model_name: str,
        fps: float,
        face: DetectedFace | None = None,
        face_landmarks: dict | None = None,
    ) -> io.NodeOutput:
        model = _face_model(model_name)
        known_points(model)  # before minutes of looking at frames
        count = counting(2 * len(images))
        if face_landmarks is None:
            device = comfy.model_management.get_torch_device()
            track = face_track.follow(images, fps, face, describe=describe, device=device, progress=count)
        else:
            track = _track_of(face_landmarks, len(images), fps)
        captured = capture(model, track, lambda frames: count(len(images) + frames))
        notes.show(track.report)
        return io.NodeOutput(captured, _drawn(images, track), track.report)


class FantasyIDPerform(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDPerform",
            display_name="FantasyID Perform",
            **listed("3 face shape", "facial animation", "retarget", "animate face", "blendshapes", "talking head"),
            description=(
                "Lets a person's mesh do what another's face did in a video. Expression and head motion have strengths "
                f"of their own. {CONSENT}"
            ),
            inputs=[
                Mesh.Input("mesh", tooltip="Who performs, from FantasyID Reconstruct 3D or FantasyID Load Mesh."),
                Performance.Input("performance", tooltip="From FantasyID Capture or FantasyID Load Performance."),
                io.Combo.Input(
                    "model_name",
                    options=paths.offered([*paths.model_folders(), *paths.model_files()]),
                    tooltip="The model that mesh and performance were made with.",
                ),
                io.Float.Input(
                    "expression_strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0: the face rests. 1: as captured. Above: exaggerated.",
                ),
                io.Float.Input(
                    "head_strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0: the head stays frontal. 1: it turns as captured.",
                ),
                io.Int.Input(
                    "first_frame",
                    default=0,
                    min=-MAX_FRAMES,
                    max=MAX_FRAMES,
                    tooltip="Where the part of the performance begins; negative numbers count from its end.",
                ),
                io.Int.Input(
                    "last_frame",
                    default=-1,
                    min=-MAX_FRAMES,
                    max=MAX_FRAMES,
                    tooltip="Where the part ends, this frame included; -1 is the end.",
                ),
                io.Int.Input(
                    "length",
                    default=0,
                    min=0,
                    max=MAX_FRAMES,
                    tooltip="How many frames to make; 0: as many as the part has.",
                ),
                io.Combo.Input(
                    "afterwards",
                    options=list(AFTERWARDS),
                    default=HOLD,
                    tooltip="Where 'length' is longer than the part. hold: the last frame stays. loop: from the first "
                    "again. ping-pong: back and forth.",
                ),
                io.Int.Input(
                    "size", default=512, min=64, max=1024, step=8, tooltip="Side of the preview's pictures, px."
                ),
            ],
            outputs=[
                Animation.Output(display_name="animation", tooltip="The moving mesh, for Save Animation or Fusion."),
                io.Image.Output(display_name="frames", tooltip="The mesh in every frame, from the front."),
                io.Float.Output(display_name="fps", tooltip="Frames per second, for Create Video."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool:
        return paths.left_to_the_run(model_name)

    @classmethod
    def run(
        cls,
        mesh: FaceMesh,
        performance: Captured,
        model_name: str,
        expression_strength: float,
        head_strength: float,
        first_frame: int,
        last_frame: int,
        length: int,
        afterwards: str,
        size: int,
    ) -> io.NodeOutput:
        model = _face_model(model_name)
        mesh, warning = into_space(mesh, model.template.cpu())
        if warning:
            notes.warn(warning)
        moving = perform(
            model,
            mesh,
            performance,
            expression_strength=expression_strength,
            head_strength=head_strength,
            first=first_frame,
            last=last_frame,
            length=length,
            afterwards=afterwards,
        )
        return io.NodeOutput(moving, shade(moving, size), moving.fps)


class FantasyIDSaveAnimation(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSaveAnimation",
            display_name="FantasyID Save Animation",
            **listed("3 face shape", "export glb", "morph targets", "blendshapes", "Blender", "facial animation"),
            description=(
                "Saves a moving mesh as .glb to the output folder: the neutral face, a morph target for every "
                "expression that is used, and the frames as keys. A face belongs to a person: ask before you share it."
            ),
            inputs=[
                Animation.Input("animation", tooltip="From FantasyID Perform."),
                io.String.Input(
                    "filename_prefix",
                    default="fantasyid/animation",
                    tooltip="Name of the file in the output folder; a counter and .glb are added.",
                ),
            ],
            outputs=[io.String.Output(display_name="model_file", tooltip="The saved file, for the host's Preview 3D.")],
            is_output_node=True,
        )

    @classmethod
    def run(cls, animation: MovingMesh, filename_prefix: str) -> io.NodeOutput:
        path = paths.save_path(filename_prefix, ".glb")
        write_animated_glb(path, animation)
        return saved_mesh(paths.output_name(path))


class FantasyIDSavePerformance(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSavePerformance",
            display_name="FantasyID Save Performance",
            **listed("3 face shape", "save motion capture", "facial animation"),
            description=f"Saves a performance, some kilobytes a second, to the output folder. {CONSENT}",
            inputs=[
                Performance.Input("performance", tooltip="From FantasyID Capture."),
                io.String.Input(
                    "filename_prefix",
                    default="fantasyid/performance",
                    tooltip="Name of the file in the output folder; a counter and .safetensors are added.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The saved file's name, as FantasyID Load Performance takes it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def run(cls, performance: Captured, filename_prefix: str) -> io.NodeOutput:
        path = paths.save_path(filename_prefix, ".safetensors")
        save_performance(performance, path)
        name = paths.output_name(path) + paths.OUTPUT_MARK
        return io.NodeOutput(name, ui={"text": [name]})


class FantasyIDLoadPerformance(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadPerformance",
            display_name="FantasyID Load Performance",
            **listed("3 face shape", "load motion capture", "facial animation"),
            description=f"Loads a saved performance from the input or output folder. {CONSENT}",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=paths.offered(paths.identity_files()),
                    tooltip="A performance file in the input folder, or in the output folder (marked [output]).",
                )
            ],
            outputs=[Performance.Output(display_name="performance", tooltip="For FantasyID Perform.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool:
        return paths.left_to_the_run(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> float:
        return paths.fingerprint(paths.performance_path, file)

    @classmethod
    def run(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_performance(paths.performance_path(file)))


def _face_model(model_name: str) -> Flame:
    [model] = on_device(
        [(face_model, face_mesh.find_face_model(*paths.beside(paths.resolve(model_name), "face_model")))]
    )
    return model.flame


def _track_of(landmarks: dict, frames: int, fps: float) -> FaceTrack:
    faces = landmarks["frames"]
    if len(faces) != frames:
        raise ImageError(
            f"There are landmarks of {len(faces)} frames, but {frames} images: give both nodes the same frames."
        )
    found = [
        [
            face_track.with_depths(torch.from_numpy(face["landmarks_xy"]), torch.from_numpy(face["landmarks_3d"]))
            for face in frame
        ]
        for frame in faces
    ]
    return face_track.from_landmarks(found, fps)


def _drawn(images: torch.Tensor, track: FaceTrack) -> torch.Tensor:
    chosen = torch.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().long().tolist()
    return torch.stack([face_track.drawn(images[i], track.points[i]) for i in chosen])


NODES = [
    FantasyIDCapture,
    FantasyIDPerform,
    FantasyIDSaveAnimation,
    FantasyIDSavePerformance,
    FantasyIDLoadPerformance,
]
