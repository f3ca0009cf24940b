"""Bad sizes, sockets and widget values: the real server names the node and the cure, and lives on."""

from pathlib import Path

import pytest

from tools.comfy_host import ComfyServer
from tools.complaints import check, check_choice, good
from tools.graphs import changed, conditioned, custom, frames_of, latents_of, node, stock

pytestmark = pytest.mark.usefixtures("lives_on")


SIZES = [
    ({"width": 256}, "192 × 128 pixels and at most 25 frames", "set width, height and frames"),
    ({"width": 720, "height": 480, "frames": 49}, "192 × 128 pixels and at most 25 frames"),
    ({"width": 100}, "multiples of 16"),
    ({"frames": 4}, "a multiple of 4 plus 1", "such as 1 or 5"),
    ({"frames": 29}, "at most 25 frames", "29 frames were asked for"),
    ({"frames": 0}, "frames"),
    ({"frames": -3}, "frames"),
    ({"frames": 10**9}, "frames"),
    ({"width": 0}, "width"),
    ({"height": 10**6}, "height"),
]


@pytest.mark.parametrize(("size", "fragments"), [(size, fragments) for size, *fragments in SIZES], ids=str)
def test_wrong_size(comfy: ComfyServer, photo: str, size: dict, fragments: list):
    check(comfy, changed(good(photo), sample=size), "FantasyIDSampler", *fragments)


@pytest.mark.parametrize(
    ("size", "name", "fragments"),
    [
        ({"width": 100}, "FantasyIDImageCondition", "multiples of 16"),
        ({"frames": 0}, "FantasyIDImageCondition", "frames"),
        ({"frames": 4}, "FantasyIDImageCondition", "a multiple of 4 plus 1"),
        ({"width": 256}, "KSampler", "set width, height and frames to what it knows"),
    ],
    ids=str,
)
def test_wrong_size_for_a_stock_sampler(comfy: ComfyServer, photo: str, size: dict, name: str, fragments: str):
    check(comfy, changed(frames_of(stock(photo, frames=1)), cond=size), name, fragments)


def test_first_frame_of_another_size(comfy: ComfyServer, photo: str, standin: Path):
    graph = changed(conditioned(photo) | good(photo), sample={"positive": ["cond", 0], "negative": ["cond", 1]})
    fragments = "96 × 64 pixels", "192 × 128", "the same width and height"
    check(comfy, changed(graph, cond={"width": 96, "height": 64}), "FantasyIDSampler", *fragments)


def test_prompts_that_are_joined_are_too_long(comfy: ComfyServer, photo: str):
    joined = node("ConditioningConcat", conditioning_to=["pos", 0], conditioning_from=["neg", 0])
    graph = changed(good(photo) | {"joined": joined}, sample={"positive": ["joined", 0]})
    check(comfy, graph, "FantasyIDSampler", "452 tokens", "takes 226", "FantasyID Text Encode")


FOREIGN = [
    ("pos", "clip", "ProbeClip", "FantasyIDTextEncode", ("SD1ClipModel", "CLIPLoader set to type")),
    ("pos", "clip", "ProbeMaskedT5", "FantasyIDTextEncode", ("MochiTEModel_", "CLIPLoader set to type")),
    (
        "sample",
        "model",
        "ProbeModel",
        "FantasyIDSampler",
        ("(SD15)", "MODEL of 'FantasyID Load Model'"),
    ),
    ("sample", "vae", "ProbeVae", "FantasyIDSampler", ("not CogVideoX's", "VAE output of 'FantasyID Load Model'")),
    (
        "apply",
        "model",
        "ProbeModel",
        "FantasyIDApply",
        ("(SD15)", "MODEL of 'FantasyID Load Model'"),
    ),
    ("cond", "vae", "ProbeVae", "FantasyIDImageCondition", ("not CogVideoX's", "'FantasyID Load Model'")),
    (
        "sigmas",
        "model",
        "ProbeModel",
        "FantasyIDSigmas",
        ("(SD15)", "MODEL of 'FantasyID Load Model'"),
    ),
]


@pytest.mark.parametrize(("where", "socket", "probe", "name", "fragments"), FOREIGN, ids=str)
def test_socket_of_another_model(
    comfy: ComfyServer, photo: str, where: str, socket: str, probe: str, name: str, fragments: tuple
):
    graph = custom(photo, frames=1) if where in ("apply", "cond", "sigmas") else good(photo)
    graph = changed(latents_of(graph), **{where: {socket: ["probe", 0]}}) | {"probe": node(probe)}
    check(comfy, graph, name, *fragments)


VALUES = [
    ("sample", {"steps": 0}, "steps"),
    ("sample", {"steps": 1001}, "steps"),
    ("sample", {"steps": "many"}, "steps"),
    ("sample", {"guidance": 1e9}, "guidance"),
    ("sample", {"guidance": float("nan")}, "must be a finite number"),
    ("sample", {"seed": -1}, "seed"),
    ("sample", {"seed": 2**64}, "seed"),
    ("apply", {"strength": float("inf")}, "strength"),
    ("apply", {"strength": float("nan")}, "strength must be a finite number"),
    ("apply", {"start_percent": 2.0}, "start_percent"),
    ("apply", {"start_percent": 0.7, "end_percent": 0.3}, "so it would never act"),
    ("apply", {"start_percent": float("nan")}, "so it would never act"),
    ("apply", {"layer_weights": "much, little"}, "numbers separated by commas"),
    ("apply", {"layer_weights": "1, nan"}, "finite"),
    ("face", {"min_score": -1.0}, "min_score"),
    ("face", {"min_score": float("nan")}, "lower min_score"),
    ("face", {"index": -1}, "index"),
    ("face", {"select": "prettiest"}, "largest"),
    ("views", {"max_views": 0}, "max_views"),
    ("load", {"vae_name": "../../secret.safetensors"}, "into models/vae: it is not there"),
    ("load", {"vae_name": "/etc/passwd"}, "into models/vae: it is not there"),
    *(
        (where, {"model_name": name}, "is not a model's name")
        for where in ("load", "clip", "mesh")
        for name in ("../FantasyID", "/etc", "FantasyID/../FantasyID", "")
    ),
    ("load", {"model_name": "absent"}, "acvlab/FantasyID"),
]


@pytest.mark.parametrize(("where", "inputs", "fragments"), VALUES, ids=str)
def test_absurd_value(comfy: ComfyServer, photo: str, where: str, inputs: dict, fragments: str):
    graph = latents_of(stock(photo, frames=1)) if where == "apply" else good(photo)
    check(comfy, changed(graph, **{where: inputs}), graph[where]["class_type"], fragments)


DTYPES = ("default", "bf16", "fp16", "fp32", "fp8_e4m3fn")
COMBINE = ("first view", "mean of views", "best view", "concatenate tokens", "weighted by pose")
CHOICES = [
    ("sample", {"scheduler": "magic"}, ("dpm", "ddim")),
    ("id", {"combine": "all"}, COMBINE),
    ("mesh", {"mode": "best"}, ("as released", "shape only")),
    ("load", {"weight_dtype": "int3"}, DTYPES),
]


@pytest.mark.parametrize(("where", "inputs", "choices"), CHOICES, ids=str)
def test_choice_that_there_is_not(comfy: ComfyServer, photo: str, where: str, inputs: dict, choices: tuple[str, ...]):
    graph = good(photo)
    check_choice(comfy, changed(graph, **{where: inputs}), graph[where]["class_type"], choices)


@pytest.mark.parametrize("value", [{"steps": 1}, {"guidance": 1.0}, {"seed": 2**64 - 1}, {"steps": 2.5}], ids=str)
def test_value_at_the_edge_works(comfy: ComfyServer, photo: str, value: dict):
    assert comfy.run(changed(good(photo), sample=value)).status == "success"
