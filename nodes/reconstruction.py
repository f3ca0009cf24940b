"""Face → mesh, and a mesh from a vertex file."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..fantasyid_core import reconstruction
from ..fantasyid_core.deca import load_regressor
from ..fantasyid_core.detection import DetectedFace
from ..fantasyid_core.errors import MeshError
from ..fantasyid_core.flame import load as load_flame
from ..fantasyid_core.render import shade
from . import _paths
from ._base import CATEGORY, FantasyIDNode
from ._sockets import Face, Mesh


class FantasyIDReconstruct(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDReconstruct",
            display_name="FantasyID Reconstruct 3D",
            category=CATEGORY,
            description=(
                "Estimates the 3-D shape of a face from its photo with DECA and FLAME. Both are licensed for "
                "non-commercial research and are not downloaded: put deca_model.tar and generic_model.pkl into "
                "models/fantasyid/<name>/face_model. With a vertex file, use FantasyID Load Mesh instead."
            ),
            inputs=[
                Face.Input("face", tooltip="From FantasyID Detect Face; the whole photo is used, not the crop alone."),
                io.Combo.Input(
                    "model_name",
                    options=[*_paths.model_folders(), *_paths.model_files()],
                    tooltip="The model whose face_model folder holds DECA and FLAME (or models/fantasyid/face_model).",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(reconstruction.MODES),
                    default=reconstruction.MODES[0],
                    tooltip="as released: shape with the photo's expression and head pose, what the published weights "
                    "know. shape only: the neutral, frontal face, as the paper describes it.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        return _paths.check(model_name)

    @classmethod
    def run(cls, face: DetectedFace, model_name: str, mode: str) -> io.NodeOutput:
        folders = _paths.beside(_paths.resolve(model_name), "face_model")
        deca_file, flame_file = reconstruction.find_files(*folders)
        device = face.image.device
        regressor, flame = load_regressor(deca_file).float().to(device), load_flame(flame_file).to(device)
        return _with_preview(reconstruction.reconstruct(face, regressor, flame, mode))


class FantasyIDLoadMesh(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadMesh",
            display_name="FantasyID Load Mesh",
            category=CATEGORY,
            description=(
                "Loads a face mesh from a .ply file, such as DECA or the released scripts write it. It must have the "
                "topology that the model was trained on: FLAME's 5023 vertices for the published one."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=mesh_files(),
                    tooltip="A .ply file in ComfyUI's input folder. Copy it there, then press R.",
                )
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        return _paths.check(file, mesh_path)

    @classmethod
    def fingerprint_inputs(cls, file: str) -> int:
        return mesh_path(file).stat().st_mtime_ns

    @classmethod
    def run(cls, file: str) -> io.NodeOutput:
        return _with_preview(reconstruction.from_file(mesh_path(file)))


def mesh_files() -> list[str]:
    """The .ply files in the host's input folder and below it."""
    base = Path(folder_paths.get_input_directory())
    return sorted(path.relative_to(base).as_posix() for path in base.glob("**/*.ply"))


def mesh_path(name: str) -> Path:
    """Path of a file that the widget names.

    Raises:
        MeshError: no such file, or it lies outside of the host's input folder.
    """
    base = Path(folder_paths.get_input_directory()).resolve()
    path = (base / name.replace("\0", "")).resolve()
    if not path.is_relative_to(base) or path.suffix.lower() != ".ply":
        raise MeshError(f"'{name}' is not a .ply file in {base}: put the mesh there and choose it again.")
    if not path.is_file():
        raise MeshError(f"The mesh '{name}' is not there: expected {path}.")
    return path


def _outputs() -> list[io.Output]:
    return [
        Mesh.Output(display_name="mesh", tooltip="The face's shape, for FantasyID Feature Fusion."),
        io.Image.Output(display_name="preview", tooltip="The mesh from the front; dots where it has no faces."),
    ]


def _with_preview(mesh: reconstruction.FaceMesh) -> io.NodeOutput:
    return io.NodeOutput(mesh, shade(mesh.vertices, mesh.faces)[None])


NODES = [FantasyIDReconstruct, FantasyIDLoadMesh]
