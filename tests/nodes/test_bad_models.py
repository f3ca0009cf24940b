"""Bad models: the real server names the node and the cure, and lives on."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check, complaint, good
from tools.graphs import changed

pytestmark = pytest.mark.usefixtures("lives_on")

HTML = "<!DOCTYPE html><html><body>Please log in.</body></html>"


@pytest.fixture
def variant(comfy: ComfyServer, photo: str) -> Iterator[Callable[..., Graph]]:
    """Makes an altered copy of the model's folder and a graph that uses it."""
    models = comfy.base / "models" / "fantasyid"

    def make(alter: Callable[[Path], None]) -> Graph:
        shutil.copytree(models / "FantasyID", models / "variant")
        alter(models / "variant")
        name = {"model_name": "variant"}
        return changed(good(photo), load=name, clip=name, mesh=name)

    yield make
    shutil.rmtree(models / "variant", ignore_errors=True)


PARTS = {
    "vae": ("FantasyIDLoadModel", "comes without a VAE", "vae_name"),
    "transformer": ("FantasyIDLoadModel", "no transformer/ folder", "acvlab/FantasyID"),
    "text_encoder": ("FantasyIDLoadTextEncoder", "is not there", "CLIPLoader"),
    "face_encoder": ("FantasyIDFuse", "image_tower.safetensors", "acvlab/FantasyID"),
    "face_model": ("FantasyIDReconstruct", "deca_model.tar", "generic_model.pkl", "load the face's vertices"),
}


@pytest.mark.parametrize("part", PARTS)
def test_missing_weights(comfy: ComfyServer, variant, part: str):
    name, *fragments = PARTS[part]
    check(comfy, variant(lambda model: shutil.rmtree(model / part)), name, "variant", *fragments)


FILES = {
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors": "FantasyIDLoadModel",
    "transformer/diffusion_pytorch_model.safetensors.index.json": "FantasyIDLoadModel",
    "transformer/config.json": "FantasyIDLoadModel",
    "vae/diffusion_pytorch_model.safetensors": "FantasyIDLoadModel",
    "vae/config.json": "FantasyIDLoadModel",
    "text_encoder/model-00001-of-00002.safetensors": "FantasyIDLoadTextEncoder",
    "text_encoder/config.json": "FantasyIDLoadTextEncoder",
    "face_encoder/image_tower.safetensors": "FantasyIDFuse",
    "face_model/deca_model.safetensors": "FantasyIDReconstruct",
    "face_model/generic_model.safetensors": "FantasyIDReconstruct",
    "face_model/topology.safetensors": "FantasyIDFuse",
}
DAMAGES = {
    "truncated": lambda data: data[: len(data) // 2],
    "web page": lambda data: HTML.encode(),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damaged_weights(comfy: ComfyServer, variant, file: str, damage: str):
    def alter(model: Path) -> None:
        (model / file).write_bytes(DAMAGES[damage]((model / file).read_bytes()))

    found = complaint(comfy, variant(alter))
    assert found.node == FILES[file]
    assert str(Path("variant") / file) in found.message
    assert any(cure in found.message.lower() for cure in ("again", "repeat it")), found.message


@pytest.mark.parametrize(
    "file", ["transformer/config.json", next(iter(FILES)), "vae/diffusion_pytorch_model.safetensors"]
)
def test_missing_file_of_a_model(comfy: ComfyServer, variant, file: str):
    found = complaint(comfy, variant(lambda model: (model / file).unlink()))
    assert found.node == FILES[file]
    assert Path(file).name in found.message
    assert "copy or download it" in found.message.lower()


CONFIGS = [
    ("transformer", {"num_layers": 5}, "do not fit 5 blocks"),
    ("transformer", {"num_layers": 3}, "24 left over"),
    ("transformer", {"num_attention_heads": 4}, "of another shape"),
    ("transformer", {"sample_width": 90}, "of another shape"),
    ("transformer", {"cross_attn_interval": 1}, "2 injection layers"),
    ("transformer", {"cross_attn_interval": 0}, "does not describe"),
    ("transformer", {"layer_attention_head_dim": 5}, "layer_attention_head_dim 5"),
    ("transformer", {"num_layers": "x"}, "does not describe"),
    ("transformer", {"patch_size": 0}, "does not describe"),
    ("transformer", {"patch_size_t": 2}, "CogVideoX 1.5"),
    ("vae", {"block_out_channels": [8, 8, 8]}, "does not describe"),
    ("vae", {"latent_channels": 4}, "of another shape"),
    ("vae", {"norm_num_groups": 3}, "does not describe"),
    ("text_encoder", {"d_model": 64}, "of another shape"),
    ("text_encoder", {"num_heads": "x"}, "does not describe"),
    ("text_encoder", {"model_type": "bert"}, "not a T5 encoder"),
]


@pytest.mark.parametrize(("part", "entries", "fragments"), CONFIGS, ids=lambda value: str(value)[:40])
def test_mismatched_configuration(comfy: ComfyServer, variant, part: str, entries: dict, fragments: str):
    def alter(model: Path) -> None:
        path = model / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    name = "FantasyIDLoadTextEncoder" if part == "text_encoder" else "FantasyIDLoadModel"
    check(comfy, variant(alter), name, fragments)
