"""API graphs of the pack's nodes for the tests: parts to merge with `|`, on a small model and a small video.

Nodes go by what they do: load, photo, face, mesh, views, id, clip, pos, neg, apply, cond, noise, sample, decode, save.
"""

from typing import Any

from .comfy_client import Graph

MODEL, SIZE = "FantasyID", {"width": 192, "height": 128}  # the stand-in in the published model's place
# 0.3.75 has a codec of its own, 0.33 one within the format; each ignores the other's.
SAVE_VIDEO = {"format": "mp4", "codec": "h264", "format.codec": "h264"}
NANO, NANO_SIZE = "FantasyID-nano", {"width": 160, "height": 160}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; a link to another is [its name, output]."""
    return {"class_type": class_type, "inputs": inputs}


def changed(graph: Graph, **inputs: dict[str, Any]) -> Graph:
    """`graph` with other inputs: node name → the inputs that differ."""
    changes = {name: {**graph[name], "inputs": graph[name]["inputs"] | new} for name, new in inputs.items()}
    return graph | changes


def identity(photo: str) -> Graph:
    """From an uploaded photo to the node `id`."""
    return {
        "load": node("FantasyIDLoadModel", model_name=MODEL, weight_dtype="fp32"),
        "photo": node("LoadImage", image=photo),
        "face": node("FantasyIDDetectFace", image=["photo", 0], select="largest", index=0, min_score=0.6),
        "mesh": node("FantasyIDReconstruct", face=["face", 0], model_name=MODEL, mode="as released"),
        "views": node("FantasyIDViews", face=["face", 0], max_views=4),
        "id": node("FantasyIDFuse", encoder=["load", 2], views=["views", 0], mesh=["mesh", 0], combine="first view"),
    }


def prompts(text: str = "A woman smiles.") -> Graph:
    """The nodes `pos` and `neg`."""
    return {
        "clip": node("FantasyIDLoadTextEncoder", model_name=MODEL),
        "pos": node("FantasyIDTextEncode", clip=["clip", 0], text=text),
        "neg": node("FantasyIDTextEncode", clip=["clip", 0], text=""),
    }


def released(photo: str, scheduler: str = "dpm", steps: int = 2, frames: int = 5, seed: int = 1) -> Graph:
    """From photo and prompt to the node `sample`, by the FantasyID Sampler."""
    sampler = node(
        "FantasyIDSampler",
        **{"model": ["load", 0], "identity": ["id", 0], "vae": ["load", 1]},
        **{"positive": ["pos", 0], "negative": ["neg", 0]},
        **{"seed": seed, "steps": steps, "guidance": 6.0, "scheduler": scheduler, "frames": frames, **SIZE},
    )
    return identity(photo) | prompts() | {"sample": sampler}


def conditioned(photo: str, frames: int = 5) -> Graph:
    """From photo and prompt to the nodes `apply` and `cond`, for the host's own samplers."""
    applied = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "layer_weights": ""}
    prompt = {"positive": ["pos", 0], "negative": ["neg", 0]}
    return (
        identity(photo)
        | prompts()
        | {
            "apply": node("FantasyIDApply", model=["load", 0], identity=["id", 0], **applied),
            "cond": node(
                "FantasyIDImageCondition", **prompt, vae=["load", 1], identity=["id", 0], frames=frames, **SIZE
            ),
        }
    )


def stock(photo: str, steps: int = 2, frames: int = 5, seed: int = 1) -> Graph:
    """From photo and prompt to the node `sample`, by the host's KSampler."""
    settings = {"seed": seed, "steps": steps, "cfg": 6.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    inputs = {"model": ["apply", 0], "positive": ["cond", 0], "negative": ["cond", 1], "latent_image": ["cond", 2]}
    return conditioned(photo, frames) | {"sample": node("KSampler", **inputs, **settings)}


def custom(photo: str, steps: int = 2, frames: int = 5, seed: int = 1) -> Graph:
    """From photo and prompt to the node `sample`, by the host's SamplerCustomAdvanced on FantasyID Sigmas."""
    return conditioned(photo, frames) | {
        "noise": node("RandomNoise", noise_seed=seed),
        "guider": node("CFGGuider", model=["apply", 0], positive=["cond", 0], negative=["cond", 1], cfg=6.0),
        "sampler": node("KSamplerSelect", sampler_name="ddim"),
        "sigmas": node("FantasyIDSigmas", model=["load", 0], steps=steps),
        "sample": node(
            "SamplerCustomAdvanced",
            **{"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0]},
            **{"sigmas": ["sigmas", 0], "latent_image": ["cond", 2]},
        ),
    }


def with_nano(graph: Graph) -> Graph:
    """`graph` on FantasyID-nano, at its size, in place of the stand-in."""
    sized = {name: NANO_SIZE for name in graph if "width" in graph[name]["inputs"]}
    model = {"model_name": NANO}
    return changed(graph, load=model | {"weight_dtype": "default"}, mesh=model, clip=model, **sized)


def latents_of(graph: Graph) -> Graph:
    """`graph`, saving the latents of its node `sample`."""
    return graph | {"save": node("SaveLatent", samples=["sample", 0], filename_prefix="latents/test")}


def frames_of(graph: Graph) -> Graph:
    """`graph`, showing the frames of its node `sample`."""
    return graph | {
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 1]),
        "save": node("PreviewImage", images=["decode", 0]),
    }


def video_of(graph: Graph, prefix: str = "video/test") -> Graph:
    """`graph`, saving its node `sample` as a video."""
    return frames_of(graph) | {
        "video": node("CreateVideo", images=["decode", 0], fps=8),
        "save": node("SaveVideo", video=["video", 0], filename_prefix=prefix, **SAVE_VIDEO),
    }
