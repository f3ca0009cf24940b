"""Whole graphs in the real server, from photo to video, on stand-in weights in the published layout."""

import io
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save_file

from tools.comfy_host import ComfyServer, Graph, Run
from tools.graphs import (
    changed,
    conditioned,
    custom,
    frames_of,
    identity,
    latents_of,
    node,
    prompts,
    released,
    stock,
    video_of,
    with_nano,
)


def succeeded(run: Run) -> Run:
    assert run.status == "success", run.error
    return run


def sampled(comfy: ComfyServer, graph: Graph) -> torch.Tensor:
    """The latents that a graph's node `sample` makes."""
    run = succeeded(comfy.run(latents_of(graph)))
    latents = load(comfy.download(run.outputs["save"]["latents"][0]))["latent_tensor"]
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()
    return latents


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), 0).item()


def same_noise(photo: str, scheduler: str = "ddim", **settings) -> Graph:
    """The FantasyID Sampler with the noise that the host draws from a seed, and Image Condition's first frame."""
    graph = conditioned(photo, settings["frames"]) | released(photo, scheduler, **settings)
    noise = node("RandomNoise", noise_seed=graph["sample"]["inputs"]["seed"])
    inputs = {"noise": ["noise", 0], "positive": ["cond", 0], "negative": ["cond", 1]}
    return changed(graph | {"noise": noise}, sample=inputs)


def test_a_photo_becomes_a_video_with_progress_and_previews(comfy: ComfyServer, photo: str):
    av = pytest.importorskip("av")
    run = succeeded(comfy.run(video_of(released(photo, steps=4, frames=25))))
    (file,) = run.files
    assert file["filename"].endswith(".mp4")
    with av.open(io.BytesIO(comfy.download(file))) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (192, 128, 8.0)
        assert sum(1 for _ in video.decode(stream)) == 25
    assert {e.value for e in run.events if e.kind == "progress" and e.node == "sample"} >= {1, 2, 3, 4}
    previews = [e.image for e in run.events if e.kind == "preview" and e.node == "sample"]
    assert previews
    assert Image.open(io.BytesIO(previews[0])).size == (512, 341)  # the host enlarges 24 × 16 latents


@pytest.mark.alone
def test_a_repeated_run_computes_nothing_again(comfy: ComfyServer, photo: str):
    graph = frames_of(released(photo))
    succeeded(comfy.run(graph))
    start = time.monotonic()
    again = succeeded(comfy.run(graph))
    assert time.monotonic() - start < 1
    assert [event for event in again.events if event.kind == "executing"] == []
    other_seed = succeeded(comfy.run(changed(graph, sample={"seed": 2})))
    assert [e.node for e in other_seed.events if e.kind == "executing"] == ["sample", "decode", "save"]


@pytest.mark.parametrize("steps", [4, 20, 50])
def test_stock_and_released_samplers_agree(comfy: ComfyServer, photo: str, steps: int):
    """Where `simple` falls on the release's timesteps: the same schedule, steps and noise, so the same latents."""
    by_ksampler = sampled(comfy, stock(photo, steps=steps, frames=9))
    by_release = sampled(comfy, same_noise(photo, steps=steps, frames=9))
    assert cosine(by_ksampler, by_release) >= 0.99999
    another_seed = sampled(comfy, same_noise(photo, steps=steps, frames=9, seed=2))
    assert cosine(by_ksampler, another_seed) < 0.9  # so agreement means something


@pytest.mark.parametrize("steps", [6, 30])
def test_with_fantasyid_sigmas_any_number_of_steps_agrees(comfy: ComfyServer, photo: str, steps: int):
    by_release = sampled(comfy, same_noise(photo, steps=steps, frames=9))
    # what is left is diffusers' own: its DDIM step goes to t - 1000 // steps, which is not quite the next timestep
    assert cosine(sampled(comfy, custom(photo, steps=steps, frames=9)), by_release) >= 0.9998
    assert cosine(sampled(comfy, stock(photo, steps=steps, frames=9)), by_release) >= 0.999


def test_the_released_sampler_keeps_the_first_frame_of_image_condition(comfy: ComfyServer, photo: str):
    """Without one it draws it from the VAE's distribution, as released."""
    own = sampled(comfy, released(photo, frames=5))
    graph = conditioned(photo) | released(photo, frames=5)
    given = changed(graph, sample={"positive": ["cond", 0], "negative": ["cond", 1]})
    assert difference(sampled(comfy, given), own) > 0.01


def test_apply_at_its_defaults_is_what_the_released_sampler_does_itself(comfy: ComfyServer, photo: str):
    plain = released(photo)
    applied = changed(conditioned(photo) | plain, sample={"model": ["apply", 0]})
    assert torch.equal(sampled(comfy, applied), sampled(comfy, plain))
    off = changed(applied, apply={"strength": 0.0})
    assert difference(sampled(comfy, off), sampled(comfy, plain)) > 0.01


def test_fp8_weights_sample_and_stay_near(comfy: ComfyServer, photo: str):
    full = stock(photo)
    fp8 = changed(full, load={"weight_dtype": "fp8_e4m3fn"})
    assert 1e-6 < difference(sampled(comfy, fp8), sampled(comfy, full)) < 0.2


def test_a_stock_lora_changes_the_video(comfy: ComfyServer, photo: str, standin: Path):
    layer = "transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator)
    folder = comfy.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    names = f"transformer.{layer}.lora_A.weight", f"transformer.{layer}.lora_B.weight"  # as PEFT writes them
    save_file(dict(zip(names, (down, up), strict=True)), folder / "peft.safetensors")
    plain = stock(photo)
    lora = node("LoraLoaderModelOnly", model=["load", 0], lora_name="peft.safetensors", strength_model=1.0)
    with_lora = changed(plain | {"lora": lora}, apply={"model": ["lora", 0]})
    assert difference(sampled(comfy, with_lora), sampled(comfy, plain)) > 0.001
    none = changed(with_lora, lora={"strength_model": 0.0})
    assert torch.equal(sampled(comfy, none), sampled(comfy, plain))


def test_a_saved_identity_gives_the_same_latents(comfy: ComfyServer, photo: str):
    graph = released(photo)
    save = node("FantasyIDSaveIdentity", identity=["id", 0], filename_prefix="identities/me")
    run = succeeded(comfy.run(identity(photo) | {"keep": save}))
    (name,) = run.outputs["keep"]["text"]
    loaded = changed(graph, sample={"identity": ["saved", 0]}) | {"saved": node("FantasyIDLoadIdentity", file=name)}
    assert torch.equal(sampled(comfy, loaded), sampled(comfy, graph))


def test_two_identities_both_act(comfy: ComfyServer, photo: str):
    one = stock(photo)
    small = {"strength": 0.5, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    second = node("FantasyIDApply", model=["apply", 0], identity=["id", 0], **small)
    both = changed(one | {"second": second}, sample={"model": ["second", 0]}, apply={"strength": 0.5})
    alone = changed(one, apply={"strength": 0.5})
    once = sampled(comfy, one)
    assert difference(sampled(comfy, both), once) < 1e-5  # twice half of the same person is that person
    assert difference(sampled(comfy, alone), once) > 1e-4


def test_further_photos_of_a_person_change_the_mean_of_views(comfy: ComfyServer, photo: str, portrait: Path, tmp_path):
    flipped = tmp_path / "flipped.png"
    Image.open(portrait).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped)
    more = {
        "other": node("LoadImage", image=comfy.upload_image(flipped)),
        "frames": node("ImageBatch", image1=["photo", 0], image2=["other", 0]),
    }
    graph = changed(released(photo) | more, views={"images": ["frames", 0]})
    sheet = node("PreviewImage", images=["views", 1])
    run = succeeded(comfy.run(graph | {"sheet": sheet}))
    shown = Image.open(io.BytesIO(comfy.download(run.outputs["sheet"]["images"][0])))
    assert shown.size == (512, 256)  # two views: the frame that repeats the reference was dropped
    mean = changed(graph, id={"combine": "mean of views"})
    first = sampled(comfy, graph)
    assert torch.equal(first, sampled(comfy, released(photo)))
    assert difference(sampled(comfy, mean), first) > 1e-4


def test_a_linked_model_name_works(comfy: ComfyServer, photo: str):
    """The host knows a linked value only when the graph runs."""
    graph = changed(released(photo), load={"model_name": ["name", 0]}) | {"name": node("ProbeName")}
    succeeded(comfy.run(frames_of(graph)))


@pytest.mark.parametrize("text", ["", "((weights)) [and] \\brackets", "word " * 1000, "😀 人"])
def test_any_prompt_works(comfy: ComfyServer, photo: str, text: str):
    assert sampled(comfy, changed(released(photo), pos={"text": text})).shape == (1, 16, 2, 16, 24)


def test_fantasyid_nano_runs_at_its_own_size_in_both_samplers(comfy: ComfyServer, photo: str):
    by_release = sampled(comfy, with_nano(same_noise(photo, steps=4, frames=9)))
    assert by_release.shape == (1, 16, 3, 20, 20)
    graph = stock(photo, steps=4, frames=9)
    words = {name: node("CLIPTextEncode", **graph[name]["inputs"]) for name in ("pos", "neg")}
    by_ksampler = sampled(comfy, with_nano(graph | words))
    assert cosine(by_ksampler, by_release) >= 0.9999


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
def test_fantasyid_nano_in_every_precision(comfy: ComfyServer, photo: str, dtype: str):
    graph = with_nano(stock(photo))
    near = sampled(comfy, changed(graph, load={"weight_dtype": dtype}))
    assert difference(near, sampled(comfy, graph)) < 0.2


def test_prompts_of_the_stock_encoder_work(comfy: ComfyServer, photo: str):
    words = prompts() | {"pos": node("CLIPTextEncode", clip=["clip", 0], text="A man laughs.")}
    succeeded(comfy.run(frames_of(released(photo) | words)))


def test_the_nodes_make_of_fantasyid_nano_what_the_evaluation_measures(
    comfy: ComfyServer, portrait: Path, tmp_path: Path
):
    """The same pixels, prompt and seed: the table in the documents holds for the nodes too."""
    from fantasyid_core import images
    from fantasyid_core.detection import selection
    from fantasyid_lab import nano
    from fantasyid_lab.evaluation.generate import Request, load

    lossless = tmp_path / "evaluated.png"  # versions of ComfyUI decode a jpeg differently
    Image.open(portrait).save(lossless)
    graph = with_nano(released(comfy.upload_image(lossless), "ddim", steps=4, frames=9))
    by_nodes = sampled(comfy, changed(graph, mesh={"mode": "shape only"}, load={"weight_dtype": "fp32"}))
    generator = load(nano.SHIPPED)
    face = selection.find_face(images.load_photo(portrait)).face
    request = Request(graph["pos"]["inputs"]["text"], generator.identity(face), seed=1)
    made = generator.latents([request], 9, 4, 6.0, "ddim", (nano.HEIGHT, nano.WIDTH))
    assert cosine(by_nodes, made.transpose(1, 2) / generator.model.vae.config.scaling_factor) >= 0.9999
