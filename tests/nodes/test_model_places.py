"""Where models may lie: a folder of `extra_model_paths.yaml`, and single files with shared encoder folders."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from fantasyid_core.io.weights import read, read_config
from tools.comfy_host import ComfyServer
from tools.graphs import Graph, changed, latents_of, released


@pytest.fixture(scope="module")
def elsewhere(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server whose models are on another drive: the folder `published`, and its parts as single files."""
    base, drive = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("drive")
    shutil.copytree(standin, drive / "fantasyid" / "published")
    for part in ("face_encoder", "face_model"):
        shutil.copytree(standin / part, drive / "fantasyid" / part)
    (drive / "vae").mkdir()
    for part, file in (("transformer", "fantasyid/one.safetensors"), ("vae", "vae/cogvideox.safetensors")):
        config = {"config": json.dumps(read_config(standin / part))}
        save_file(read(standin / part), drive / file, metadata=config)
    paths = {"drive": {"base_path": str(drive), "fantasyid": "fantasyid", "vae": "vae"}}
    (base / "paths.yaml").write_text(json.dumps(paths))  # JSON is YAML
    with ComfyServer(base, ["--extra-model-paths-config", str(base / "paths.yaml")]) as server:
        yield server


def sampled(comfy: ComfyServer, graph: Graph) -> torch.Tensor:
    run = comfy.run(latents_of(graph))
    assert run.status == "success", run.error
    return load(comfy.download(run.outputs["save"]["latents"][0]))["latent_tensor"]


def named(graph: Graph, model: str, vae: str | None = None) -> Graph:
    other = {"model_name": model} | ({"vae_name": vae} if vae else {})
    return changed(graph, load=other, mesh={"model_name": model}, clip={"model_name": "published"})


def test_a_single_file_equals_the_folder_it_came_from(elsewhere: ComfyServer, portrait: Path):
    graph = released(elsewhere.upload_image(portrait))
    folder = sampled(elsewhere, named(graph, "published"))
    single = sampled(elsewhere, named(graph, "one.safetensors", "cogvideox.safetensors"))
    torch.testing.assert_close(single, folder, atol=1e-3, rtol=1e-3)  # mapped tensors lie elsewhere: other rounding


def test_a_single_file_without_a_vae_says_which_to_choose(elsewhere: ComfyServer, portrait: Path):
    graph = named(released(elsewhere.upload_image(portrait)), "one.safetensors")
    run = elsewhere.run(latents_of(graph))
    assert run.error.message.startswith("FantasyID Load Model: Choose CogVideoX's VAE as vae_name")
    assert "'one.safetensors' comes without a VAE" in run.error.message
