"""Feature fusion: views and mesh → identity; identities as files."""

from comfy_api.latest import io

from ..fantasyid_core.dit.acting import per_latent_frame
from ..fantasyid_core.dit.config import FPS
from ..fantasyid_core.fusion.identity import COMBINE, load_identity, save_identity
from ..fantasyid_core.reconstruction.animation import Animation as MovingMesh
from ..fantasyid_core.reconstruction.mesh_space import into_space
from .host import notes, paths
from .host.base import FantasyIDNode, listed
from .host.sockets import Animation, Encoder, Identity, Mesh, Views

CONSENT = "An identity file describes a person's face: keep and share it only with that person's consent."


class FantasyIDFuse(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDFuse",
            display_name="FantasyID Feature Fusion",
            **listed("4 identity", "identity", "person", "face embedding", "consistent character", "likeness"),
            description=(
                "Fuses what the face looks like (views) with its 3-D shape (mesh) into the identity that the video "
                "model follows. Computed once; it stays on the GPU."
            ),
            inputs=[
                Encoder.Input("encoder", tooltip="From FantasyID Load Model."),
                Views.Input("views", tooltip="One or several views of the face, from FantasyID Multi-View."),
                Mesh.Input("mesh", tooltip="The face's shape, from FantasyID Reconstruct 3D or FantasyID Load Mesh."),
                io.Combo.Input(
                    "combine",
                    options=list(COMBINE),
                    default=COMBINE[0],
                    tooltip="Which views make the identity. first view: the reference alone, as released. mean of "
                    "views: the average. best view: the one with the highest score. concatenate tokens: all side by "
                    "side, the video picks what suits it; slower. weighted by pose: an average in which frontal "
                    "views with a high score count more. With one view all are the same.",
                ),
                Animation.Input(
                    "animation",
                    optional=True,
                    tooltip="What the face shall do, from FantasyID Perform on the same mesh. An experiment: models "
                    "that were not trained with it may ignore it, and nobody has measured it.",
                ),
            ],
            outputs=[
                Identity.Output(
                    display_name="identity", tooltip="Who is in the video; for Apply FantasyID and the sampler."
                )
            ],
        )

    @classmethod
    def run(cls, encoder, views, mesh, combine: str, animation: MovingMesh | None = None) -> io.NodeOutput:
        mesh, warning = into_space(mesh, encoder.template)
        if warning:
            notes.warn(warning)
        acting = None
        if animation is not None:
            acting = per_latent_frame(animation)
            seconds = len(animation.weights) / animation.fps
            untrained = "" if encoder.has_learned_acting else " This model was not trained with it: an experiment."
            notes.show(f"The face acts for {seconds:.1f} s of a video of {FPS} frames a second.{untrained}")
        return io.NodeOutput(encoder.fuse(views, mesh, combine, acting))


class FantasyIDSaveIdentity(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDSaveIdentity",
            display_name="FantasyID Save Identity",
            **listed("4 identity", "save person", "save character", "face embedding", "consistent character"),
            description=f"Saves an identity (its tokens and the reference crop) to the output folder. {CONSENT}",
            inputs=[
                Identity.Input("identity", tooltip="From FantasyID Feature Fusion."),
                io.String.Input(
                    "filename_prefix",
                    default="fantasyid/identity",
                    tooltip="Name of the file in the output folder; a counter and .safetensors are added.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="file", tooltip="The saved file's name, as FantasyID Load Identity takes it."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def run(cls, identity, filename_prefix: str) -> io.NodeOutput:
        path = paths.save_path(filename_prefix, ".safetensors")
        save_identity(identity, path)
        name = paths.output_name(path) + paths.OUTPUT_MARK
        return io.NodeOutput(name, ui={"text": [name]})


class FantasyIDLoadIdentity(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadIdentity",
            display_name="FantasyID Load Identity",
            **listed("4 identity", "load person", "load character", "face embedding", "consistent character"),
            description=f"Loads a saved identity from the input or output folder. {CONSENT}",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=paths.offered(paths.identity_files()),
                    tooltip="An identity file in the input folder, or in the output folder (marked [output]).",
                )
            ],
            outputs=[Identity.Output(display_name="identity", tooltip="For Apply FantasyID and the sampler.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool:
        return paths.left_to_the_run(file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> float:
        return paths.fingerprint(paths.identity_path, file)

    @classmethod
    def run(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_identity(paths.identity_path(file)))


NODES = [FantasyIDFuse, FantasyIDSaveIdentity, FantasyIDLoadIdentity]
