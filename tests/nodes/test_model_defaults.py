"""Sizes, steps and guidance that follow the model, and what the page says under a node before the wait."""

import json
from collections.abc import Callable, Iterator

import pytest
from safetensors.torch import load

from fantasyid_core.sampling.defaults import AS_RELEASED, SamplingDefaults, defaults_of
from tools.comfy_host import ComfyServer, Graph
from tools.environment import ROOT
from tools.graphs import SIZE, changed, latents_of, node, released, stock

NANO = ROOT / "models" / "FantasyID-nano" / "transformer" / "config.json"
OWN = {"steps": 3, "guidance": 2.0, "scheduler": "ddim", "guide_identity": True}


def test_fantasyid_nano_names_its_own():
    wanted = SamplingDefaults(160, 160, 25, steps=20, guidance=4.0, scheduler="ddim", guide_identity=True)
    assert defaults_of(json.loads(NANO.read_text("utf-8"))) == wanted


def test_a_model_without_any_is_sampled_as_released():
    assert defaults_of({}) == AS_RELEASED == SamplingDefaults(720, 480, 49, 50, 6.0, "dpm", False)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"guidance": 0.5}, {"scheduler": "x"}, {"step": 3}, {"steps": "x"}])
def test_defaults_that_cannot_be(wrong: dict):
    with pytest.raises((ValueError, TypeError)):
        defaults_of({"sampling_defaults": wrong})


@pytest.fixture(scope="module")
def small(comfy: ComfyServer) -> Iterator[ComfyServer]:
    """The server's stand-in model with defaults of its own."""
    config = comfy.base / "models" / "fantasyid" / "FantasyID" / "transformer" / "config.json"
    before = config.read_text("utf-8")
    config.write_text(json.dumps(json.loads(before) | {"sampling_defaults": OWN}))
    yield comfy
    config.write_text(before)


def latents(comfy: ComfyServer, graph: Graph):
    run = comfy.run(latents_of(graph))
    assert run.status == "success", run.error
    return load(comfy.download(run.outputs["save"]["latents"][0]))["latent_tensor"]


def model(comfy: ComfyServer) -> SamplingDefaults:
    file = comfy.base / "models" / "fantasyid" / "FantasyID" / "transformer" / "config.json"
    return defaults_of(json.loads(file.read_text("utf-8")))


def test_the_sampler_takes_the_model_s_own(small: ComfyServer, photo: str):
    graph, own = changed(released(photo), load={"weight_dtype": "bf16"}), model(small)
    sizes = {"width": own.width, "height": own.height, "frames": own.frames}
    by_hand = latents(small, changed(graph, sample=sizes | OWN))
    assert "sample" not in small.notes
    followed = latents(small, changed(graph, sample={"settings": "default for this model", "steps": 7, **SIZE}))
    assert (followed == by_hand).all()
    said, _, unused = small.notes["sample"].partition(" Not used: ")
    assert said.endswith("frames, 3 steps of ddim, guidance 2.")
    assert unused.startswith("frames 5, steps 7, guidance 6.0, scheduler dpm, guide_identity False;")


def test_image_condition_and_sigmas_take_the_model_s_own(small: ComfyServer, photo: str):
    own, chosen = model(small), {"settings": "default for this model"}
    graph = changed(stock(photo, steps=1), cond=chosen | {"model": ["load", 0]})
    assert latents(small, graph).shape[2:] == ((own.frames - 1) // 4 + 1, own.height // 8, own.width // 8)
    run = small.run(latents_of(changed(stock(photo, steps=1), cond=chosen)))
    assert "connect 'model'" in run.error.message
    sigmas = node("FantasyIDSigmas", model=["load", 0], steps=9, **chosen)
    shown = small.run({"load": graph["load"], "sigmas": sigmas, "show": node("PreviewAny", source=["sigmas", 0])})
    assert shown.outputs["show"]["text"][0].count(",") == 3  # 3 steps, and the end


def test_another_size_is_said_under_the_node_and_gone_in_the_next_run(comfy: ComfyServer, photo: str):
    """FantasyID-nano takes any size: what it costs is said before the wait."""
    name = {"model_name": "FantasyID-nano"}
    graph = changed(released(photo, steps=1, frames=1), load=name, clip=name, mesh=name)
    latents(comfy, changed(graph, sample={"width": 320, "height": 320, "frames": 25, "seed": 7}))
    assert comfy.notes["sample"].startswith("Cancel if")  # the node's few lines begin with what to do
    assert "knows 160 × 160 pixels" in comfy.notes["sample"]
    assert "at least 4 times as long" in comfy.notes["sample"]
    assert "default for this model" in comfy.notes["sample"]
    latents(comfy, changed(graph, sample={"width": 160, "height": 160, "seed": 7}))
    assert "sample" not in comfy.notes


@pytest.mark.parametrize("make", [released, stock], ids=["FantasyID Sampler", "KSampler"])
def test_a_size_far_above_the_model_s_is_refused_before_the_wait(comfy: ComfyServer, photo: str, make: Callable):
    """FantasyID-nano in the place of the published model, with the widgets left as they were."""
    name = {"model_name": "FantasyID-nano"}
    graph = changed(make(photo, steps=1), load=name, clip=name, mesh=name)
    sized = "cond" if "cond" in graph else "sample"
    run = comfy.run(latents_of(changed(graph, **{sized: {"width": 720, "height": 480, "frames": 49}})))
    assert "720 × 480 pixels and 49 frames are 25 times what this model knows" in run.error.message
    assert "'default for this model'" in run.error.message


def test_a_prompt_that_is_cut_off_is_said_under_its_node(comfy: ComfyServer, photo: str):
    name = {"model_name": "FantasyID-nano"}
    graph = changed(released(photo, steps=1, frames=1), load=name, clip=name, mesh=name, pos={"text": "a " * 150})
    latents(comfy, changed(graph, sample={"width": 160, "height": 160}))
    assert "300 tokens, and only the first 225" in comfy.notes["pos"]
    assert "neg" not in comfy.notes
