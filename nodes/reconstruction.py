"""Face → mesh, a mesh from a vertex file, and what can be done with a mesh."""

import comfy.model_management
import torch
from comfy_api.latest import Types, io
from comfy_execution.graph_utils import ExecutionBlocker

from ..fantasyid_core.detection.faces import DetectedFace
from ..fantasyid_core.errors import MeshError
from ..fantasyid_core.reconstruction import deca_input, face_mesh, render
from ..fantasyid_core.reconstruction.face_mesh import FaceMesh
from ..fantasyid_core.reconstruction.glb import write_glb
from ..fantasyid_core.reconstruction.mesh_files import write_obj, write_ply
from .host import notes, paths
from .host.base import FantasyIDNode, listed, saved_mesh
from .host.resident import deca_regressor, face_model, on_device
from .host.sockets import Face, Mesh

DECA, LANDMARK_FIT, DENSE_FIT = METHODS = ("DECA", "landmark fit", "dense fit")
FITS = {LANDMARK_FIT: face_mesh.from_landmarks, DENSE_FIT: face_mesh.from_dense_landmarks}
WRITERS = {"glb": write_glb, "obj": write_obj, "ply": write_ply}
MOST_MISFIT = 0.6  # of the eyes' distance; measured in docs/reconstruction.md
NEEDED = 1 << 29  # bytes: the activations of DECA's regressor


class FantasyIDReconstruct(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDReconstruct",
            display_name="FantasyID Reconstruct 3D",
            **listed("3 face shape", "3d face", "DECA", "FLAME", "face mesh", "head"),
            description=(
                "Estimates the 3-D shape of a face from its photo: with DECA and FLAME, or from the face's landmarks "
                "with a face model alone. DECA and FLAME are licensed for non-commercial research and are not "
                "downloaded: put deca_model.tar and generic_model.pkl into models/fantasyid/<name>/face_model. With a "
                "vertex file, use FantasyID Load Mesh instead."
            ),
            inputs=[
                Face.Input("face", tooltip="From FantasyID Detect Face; DECA looks at its photo, not at the crop."),
                io.Combo.Input(
                    "model_name",
                    options=paths.offered([*paths.model_folders(), *paths.model_files()]),
                    tooltip="The model whose face_model folder holds DECA and FLAME (or models/fantasyid/face_model).",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(face_mesh.MODES),
                    default=face_mesh.MODES[0],
                    tooltip="as released: shape with the photo's expression and head pose, what the published weights "
                    "know. shape only: the neutral, frontal face, as the paper describes it.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=DECA,
                    optional=True,
                    tooltip="DECA: a network looks at the photo; needs DECA's file. landmark fit: the face model is "
                    "fitted to eyes, nose and mouth corners; rough, but it needs the face model's file only. dense "
                    "fit: fitted to 478 landmarks; with FantasyID-nano's face model, which comes with the pack.",
                ),
                io.Combo.Input(
                    "look_at",
                    options=list(deca_input.FRAMINGS),
                    default=deca_input.WHOLE_PHOTO,
                    optional=True,
                    tooltip="What DECA sees. face crop: the crop that it was trained on, right for any photo. whole "
                    "photo: squeezed to a square, as released; the mesh fits only where the face fills a third of it.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Further photos or frames of the same person: all together give the shape, weighted by "
                    "how well each shows the face. Pictures without a face are skipped.",
                ),
            ],
            outputs=[
                *_outputs(),
                io.Image.Output(display_name="overlay", tooltip="The mesh laid over the photo, to see how it fits."),
                _host_mesh_output(),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None) -> bool:
        return paths.left_to_the_run(model_name)

    @classmethod
    def run(
        cls,
        face: DetectedFace,
        model_name: str,
        mode: str,
        method: str = DECA,
        look_at: str = deca_input.WHOLE_PHOTO,
        images: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if method not in METHODS:
            raise MeshError(f"There is no method '{method}'; choose one of: {', '.join(METHODS)}.")
        folders = paths.beside(paths.resolve(model_name), "face_model")
        device = comfy.model_management.get_torch_device()
        if method in FITS:
            [model] = on_device([(face_model, face_mesh.find_face_model(*folders))])
            mesh = FITS[method](face, model.flame, mode, _largest_faces(images, device))
        else:
            deca_file, flame_file = face_mesh.find_files(*folders)
            regressor, model = on_device([(deca_regressor, deca_file), (face_model, flame_file)], NEEDED)
            others = _largest_faces(images, device)
            mesh = face_mesh.reconstruct(face, regressor, model.flame, mode, look_at, others)
        assert mesh.in_photo is not None, "both ways leave where the photo shows the face"
        _say_how_it_fits(face_mesh.misfit(mesh, face, model.flame), look_at)
        overlay = render.overlay(face.image.to(device), mesh.in_photo, mesh.faces)
        return io.NodeOutput(mesh, _picture(mesh), _shown(overlay[None]), _host_mesh(mesh))


class FantasyIDLoadMesh(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadMesh",
            display_name="FantasyID Load Mesh",
            **listed("3 face shape", "3d face", "import ply", "vertices", "DECA"),
            description=(
                "Loads a face mesh from a .ply or .obj file, such as DECA or the released scripts write it. It must "
                "have the topology that the model was trained on: FLAME's 5023 vertices for the published one. "
                "FantasyID Feature Fusion sets right a mesh in millimetres or with other axes, and says so."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=paths.offered(paths.mesh_files()),
                    tooltip="A .ply or .obj file in ComfyUI's input folder, or in the output folder (marked [output]). "
                    "Copy it there, then press R.",
                )
            ],
            outputs=[*_outputs(), _host_mesh_output()],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool:
        return paths.left_to_the_run(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> float:
        return paths.fingerprint(paths.mesh_path, file)

    @classmethod
    def run(cls, file: str) -> io.NodeOutput:
        mesh = face_mesh.from_file(paths.mesh_path(file))
        return io.NodeOutput(mesh, _picture(mesh), _host_mesh(mesh))


class FantasyIDTurntable(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDTurntable",
            display_name="FantasyID Turntable",
            **listed("3 face shape", "3d face", "rotate", "preview mesh"),
            description="Turns a mesh once around its vertical axis: frames for Preview Image or Create Video.",
            inputs=[
                Mesh.Input("mesh", tooltip="From FantasyID Reconstruct 3D or FantasyID Load Mesh."),
                io.Int.Input("frames", default=24, min=1, max=240, tooltip="How many pictures one turn takes."),
                io.Int.Input("size", default=512, min=64, max=1024, step=8, tooltip="Side of the pictures, px."),
            ],
            outputs=[io.Image.Output(display_name="frames", tooltip="The mesh from all sides; ends where it began.")],
        )

    @classmethod
    def run(cls, mesh: FaceMesh, frames: int, size: int) -> io.NodeOutput:
        return io.NodeOutput(_shown(render.turntable(mesh.vertices, mesh.faces, frames, size)))


class FantasyIDSaveMesh(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSaveMesh",
            display_name="FantasyID Save Mesh",
            **listed("3 face shape", "3d face", "export glb", "obj", "ply"),
            description="Saves a mesh to the output folder. A face belongs to a person: ask before you share it.",
            inputs=[
                Mesh.Input("mesh", tooltip="From FantasyID Reconstruct 3D or FantasyID Load Mesh."),
                io.String.Input(
                    "filename_prefix",
                    default="fantasyid/mesh",
                    tooltip="Name of the file in the output folder; a counter and the format's ending are added.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(WRITERS),
                    tooltip="glb: for Preview 3D and other programs. obj (text) and ply (binary): what FantasyID Load "
                    "Mesh reads.",
                ),
            ],
            outputs=[io.String.Output(display_name="model_file", tooltip="The saved file, for the host's Preview 3D.")],
            is_output_node=True,
        )

    @classmethod
    def run(cls, mesh: FaceMesh, filename_prefix: str, format: str) -> io.NodeOutput:
        if format not in WRITERS:
            raise MeshError(f"Meshes are not saved as '{format}'; choose one of: {', '.join(WRITERS)}.")
        path = paths.save_path(filename_prefix, f".{format}")
        WRITERS[format](path, mesh.vertices, mesh.faces)
        return saved_mesh(paths.output_name(path))


def _say_how_it_fits(away: float, look_at: str) -> None:
    """Warn under the node of a mesh that lies `away` from the face, in distances of the eyes."""
    notes.show()
    if away > MOST_MISFIT:
        cure = (
            f"DECA knows pictures that a face fills: set 'look_at' to '{deca_input.FACE_CROP}'."
            if look_at == deca_input.WHOLE_PHOTO
            else f"Use a photo that looks at the viewer, or the method '{DENSE_FIT}' or '{LANDMARK_FIT}'."
        )
        notes.warn(f"The mesh is not on the face: off by {away:.1f} times the distance of the eyes. {cure}")


def _outputs() -> list[io.Output]:
    return [
        Mesh.Output(display_name="mesh", tooltip="The face's shape, for FantasyID Feature Fusion."),
        io.Image.Output(display_name="preview", tooltip="The mesh from the front; dots where it has no faces."),
    ]


def _host_mesh_output() -> io.Output:
    return io.Mesh.Output(display_name="host_mesh", tooltip="The same for ComfyUI's own 3D nodes, such as SaveGLB.")


def _host_mesh(mesh: FaceMesh) -> Types.MESH | ExecutionBlocker:
    """The host's MESH, or what stops the nodes behind it: they cannot do without triangles."""
    if mesh.faces is None:
        return ExecutionBlocker("This mesh has no triangles: ComfyUI's 3D nodes cannot use it.")
    return Types.MESH(mesh.vertices[None], mesh.faces[None])


def _largest_faces(images: torch.Tensor | None, device: torch.device) -> list[DetectedFace]:
    return [] if images is None else face_mesh.largest_faces(images, device)


def _picture(mesh: FaceMesh) -> torch.Tensor:
    return _shown(render.shade(mesh.vertices, mesh.faces)[None])


def _shown(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.to(comfy.model_management.intermediate_device())


NODES = [FantasyIDReconstruct, FantasyIDLoadMesh, FantasyIDTurntable, FantasyIDSaveMesh]
