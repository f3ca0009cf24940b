"""Videos drawn again and presets, in the real server."""

from safetensors.torch import load

from tools.comfy_host import ComfyServer, Graph
from tools.complaints import check
from tools.graphs import SIZE, changed, latents_of, node, released


def run(comfy: ComfyServer, graph: Graph):
    """The latents of the node `sample`."""
    done = comfy.run(latents_of(graph))
    assert done.status == "success", done.error
    return load(comfy.download(done.outputs["save"]["latents"][0]))["latent_tensor"]


def again(photo: str, **inputs: object) -> Graph:
    """A still picture drawn again."""
    graph = released(photo, steps=4, frames=1, scheduler="ddim")
    still = node("EmptyImage", batch_size=1, color=0x4080C0, **SIZE)
    graph |= {"still": still, "encode": node("VAEEncode", pixels=["still", 0], vae=["load", 1])}
    return changed(graph, sample={"latents": ["encode", 0]} | inputs)


def test_less_denoise_stays_nearer_to_the_latents_and_0_leaves_them(comfy: ComfyServer, photo: str):
    start = run(comfy, again(photo, denoise=0.0))
    little, much = ((run(comfy, again(photo, denoise=x)) - start).abs().mean() for x in (0.25, 0.75))
    assert 0 < little < much
    alone = run(comfy, released(photo, steps=4, frames=1, scheduler="ddim"))
    assert (run(comfy, again(photo)) == alone).all(), "at 1 nothing of them is left"


def test_a_long_video_is_drawn_again_in_windows(comfy: ComfyServer, photo: str):
    graph = changed(again(photo, frames=9, steps=2), still={"batch_size": 9})
    windows = {"window_frames": 5, "overlap": 0, "first_frame": "as trained"}
    graph["long"] = node("FantasyIDLongVideo", model=["load", 0], **windows)
    start, half, whole = (
        run(comfy, changed(graph, sample={"model": ["long", 0], "denoise": x})) for x in (0.0, 0.5, 1.0)
    )
    assert start.shape[2] == 3
    assert 0 < (half - start).abs().mean() < (whole - start).abs().mean()


def test_latents_that_do_not_fit_are_named(comfy: ComfyServer, photo: str):
    def complain(graph: Graph, *said: str) -> None:
        check(comfy, latents_of(graph), "FantasyIDSampler", *said)

    half = again(photo, denoise=0.5)
    complain(changed(half, still={"width": 96, "height": 64}), "96 × 64 pixels and 1 frame, but the video is 192 × 128")
    complain(changed(half, sample={"frames": 5}), "and 1 frame, but", "and 5 frames")
    half["times"] = node("LatentMultiply", samples=["encode", 0], multiplier=float("nan"))
    complain(changed(half, sample={"latents": ["times", 0]}), "no numbers (NaN)")
    complain(changed(released(photo), sample={"denoise": 0.5}), "connect 'latents'")


def test_a_preset_is_what_it_says_under_the_node(comfy: ComfyServer, photo: str):
    graph = released(photo, steps=2, frames=1)
    by_hand = run(comfy, changed(graph, sample={"guidance": 6.0, "guide_identity": True}))
    preset = {"preset": "insist on the person", "guidance": 2.0}
    assert (run(comfy, changed(graph, sample=preset)) == by_hand).all()
    assert comfy.notes["sample"] == (
        "insist on the person: guidance 6; strength 1, the whole run, guide_identity on. Not used: guidance 2.0, "
        "guide_identity False; to use them set 'preset' to 'as set here'."
    )
    settings = {"strength": 2.0, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    graph["apply"] = node("FantasyIDApply", model=["load", 0], identity=["id", 0], **settings, preset="free motion")
    run(comfy, changed(graph, sample={"model": ["apply", 0]}))
    assert comfy.notes["apply"].startswith("free motion: strength 1, 0.15 to 1 of the run, guide_identity on. Not used")
