"""Load models: the published folder, or single files, as the host's MODEL and VAE, and the identity encoder."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..fantasyid_core.errors import WeightsMissingError
from ..fantasyid_core.io.weights import read_config
from .host import paths
from .host.base import FantasyIDNode, listed
from .host.sockets import Encoder

FROM_FOLDER, NOTHING_MORE = "from the model's folder", "the model itself"
WEIGHT_DTYPES = ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn"]


class FantasyIDLoadModel(FantasyIDNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FantasyIDLoadModel",
            display_name="FantasyID Load Model",
            **listed("1 model", "face id", "consistent character", "person video", "checkpoint", "CogVideoX"),
            description=(
                "Loads a FantasyID model: the video transformer as a native MODEL, its VAE, and the identity encoder. "
                "FantasyID-nano comes with the pack: a small demonstration, trained on synthetic people, not a "
                "likeness engine. Others lie in models/fantasyid/<name>/ in the layout of the published download, or "
                "as single .safetensors files in models/fantasyid/. Use only faces of people who agreed to it."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=paths.offered([*paths.model_folders(), *paths.model_files()]),
                    tooltip="A folder in the published layout, or a single transformer file, in models/fantasyid; "
                    "or FantasyID-nano, which comes with the pack.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=WEIGHT_DTYPES,
                    default="default",
                    tooltip=(
                        "How the transformer's weights are stored. default: as the file has them, if the card can. "
                        "fp8_e4m3fn: half the memory for a small loss of quality; it computes in bf16."
                    ),
                ),
                io.Combo.Input(
                    "vae_name",
                    options=[FROM_FOLDER, *folder_paths.get_filename_list("vae")],
                    default=FROM_FOLDER,
                    tooltip="CogVideoX's VAE: the folder's own, or a file in models/vae.",
                    optional=True,
                ),
                io.Combo.Input(
                    "parts_from",
                    options=[NOTHING_MORE, *paths.model_folders()],
                    default=NOTHING_MORE,
                    tooltip="For a file that ComfyUI saved (Save Model, Save Checkpoint), which holds the transformer "
                    "without its identity encoder: the folder that it was made from gives what it lacks.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The video transformer, for Apply FantasyID, LoRA nodes and samplers."),
                io.Vae.Output(tooltip="CogVideoX's VAE."),
                Encoder.Output(display_name="encoder", tooltip="The identity encoder, for FantasyID Feature Fusion."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None, vae_name: str | None = None) -> bool:
        return paths.left_to_the_run(model_name, vae_name)

    @classmethod
    def run(
        cls, model_name: str, weight_dtype: str, vae_name: str = FROM_FOLDER, parts_from: str = NOTHING_MORE
    ) -> io.NodeOutput:
        from .host.encoder import NativeEncoder
        from .host.model import load_model, read_model
        from .host.vae import load_vae

        path = paths.resolve(model_name)
        others = [] if parts_from == NOTHING_MORE else [paths.resolve(parts_from)]
        weights = _transformer(path)
        config, published = read_model(weights, *map(_transformer, others))
        vae = load_vae(_vae_path([path, *others], vae_name))
        model = load_model(config, published, weight_dtype, vae.first_stage_model.config.published(), source=weights)
        if others and not published.has_encoder:
            [path] = others
            weights = _transformer(path)
            config = read_config(weights)
        encoder = NativeEncoder(config, weights, paths.beside(path, "face_encoder"), paths.beside(path, "face_model"))
        return io.NodeOutput(model, vae, encoder)


def _transformer(model: Path) -> Path:
    """The folder of a model's transformer, or the file that is one."""
    weights = paths.transformer_folder(model) if model.is_dir() else model
    if weights is None:
        raise WeightsMissingError(f"{paths.DOWNLOAD}: {model} has no transformer/ folder. {paths.BY_HAND}")
    return weights


def _vae_path(models: list[Path], name: str) -> Path:
    if name != FROM_FOLDER:
        path = folder_paths.get_full_path("vae", name)
        if path is None:
            raise WeightsMissingError(
                f"Choose '{FROM_FOLDER}' as vae_name, or copy the VAE '{name}' into models/vae: it is not there."
            )
        return Path(path)
    from .host.vae import holds_vae

    for model in models:
        if model.is_dir() and (model / "vae").is_dir():
            return model / "vae"
        if model.is_file() and holds_vae(model):
            return model
    raise WeightsMissingError(
        "Choose CogVideoX's VAE as vae_name (a file in models/vae), the folder that the model was made from as "
        f"parts_from, or the published folder: '{models[0].name}' comes without a VAE. Expected {models[0] / 'vae'}."
    )


NODES = [FantasyIDLoadModel]
