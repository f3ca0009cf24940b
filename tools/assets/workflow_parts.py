"""Parts of the shipped workflows: nodes, groups, and the runs of nodes that several of them share."""

from dataclasses import dataclass, field
from typing import Any

NANO, PUBLISHED = "FantasyID-nano", "FantasyID"
BY_MODEL = {"settings": "default for this model"}  # so that who picks another model gets its size and steps
NANO_SAMPLER = {
    **BY_MODEL,
    **{"seed": 42, "steps": 20, "guidance": 4, "scheduler": "ddim"},
    **{"width": 160, "height": 160, "frames": 25, "guide_identity": True},
}
PUBLISHED_SIZE = {"width": 720, "height": 480, "frames": 49}
PUBLISHED_SAMPLER = {**BY_MODEL, "seed": 42, "steps": 50, "guidance": 6, "scheduler": "dpm", **PUBLISHED_SIZE}
BYPASSED = 4

Source = tuple[str, str]  # a node's key and the name of one of its outputs


@dataclass
class Node:
    """One node: what it is, its widgets that are not at their defaults, and where its inputs come from."""

    type: str
    title: str | None = None
    widgets: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Source] = field(default_factory=dict)
    size: tuple[int, int] = (280, 0)  # px, at least
    mode: int = 0


@dataclass
class Group:
    """Nodes of one stage: keys in columns."""

    title: str
    columns: list[list[str]]
    color: str = "#3f789e"


WHO: Source = ("photo", "who")  # the example person in words
IDENTITY_COLOR, VIDEO_COLOR = "#8a8", "#b58b2a"  # not purple, as bypassed nodes are
PHOTO_GROUP = Group("Photo", [["photo"]], IDENTITY_COLOR)
MODEL_GROUP = Group("Model", [["clip", "load"]])  # what Load Model has to say finds room below
PROMPT_GROUP = Group("Prompt", [["pos", "neg"]])
DOWNLOAD_GROUP = Group("The model, if it is not there", [["download"]])
IDENTITY_GROUP = Group(
    "Identity from the photo", [["face", "mesh", "views"], ["faces", "overlay", "sheet", "id"]], IDENTITY_COLOR
)
OUTPUT = ["decode", "frames", "save"]
VIDEO_GROUP = Group("Video", [["sample"], OUTPUT], VIDEO_COLOR)
STOCK_GROUP = Group("Video", [["apply", "cond", "sample"], OUTPUT], VIDEO_COLOR)


def preview(title: str, source: Source) -> Node:
    """Shows a picture and saves nothing, so that what a run has made is the video."""
    return Node("PreviewImage", title, inputs={"images": source}, size=(280, 240))


def models(model: str) -> dict[str, Node]:
    """The loaders `load` and `clip`, and for the published model the download beside them, bypassed."""
    nodes = {
        "load": Node("FantasyIDLoadModel", widgets={"model_name": model}),
        "clip": Node("FantasyIDLoadTextEncoder", widgets={"model_name": model}),
    }
    if model == PUBLISHED:
        nodes["download"] = Node("FantasyIDDownload", "Download the model (enable to use)", mode=BYPASSED)
    return nodes


def prompt(text: str, title: str = "Prompt", height: int = 130, who: Source | None = None) -> Node:
    """A prompt of the model's own text encoder; `who` tells whom the text goes on about."""
    inputs = {"clip": ("clip", "CLIP")} | ({"who": who} if who else {})
    return Node("FantasyIDTextEncode", title, {"text": text}, inputs, (280, height))


def negative() -> Node:
    """The prompt of what is not to be, empty as released."""
    return prompt("", "Negative prompt", 126)


def prompts(text: str, who: Source | None = None) -> dict[str, Node]:
    """The nodes `pos` and `neg`."""
    return {"pos": prompt(text, who=who), "neg": negative()}


def photo(person: str, title: str = "Choose a photo") -> Node:
    """Where the artist begins."""
    return Node("FantasyIDExamplePhoto", title, {"person": person})


def fuse(**widgets: Any) -> Node:
    """FantasyID Feature Fusion."""
    inputs = {"encoder": ("load", "encoder"), "views": ("views", "views"), "mesh": ("mesh", "mesh")}
    return Node("FantasyIDFuse", None, widgets, inputs)


def identity(model: str, person: str) -> dict[str, Node]:
    """From the photo to the node `id`, with a preview of each stage."""
    mode = "as released" if model == PUBLISHED else "shape only"
    reconstruct = {"model_name": model, "mode": mode, "look_at": "face crop"}
    return {
        "photo": photo(person),
        "face": Node("FantasyIDDetectFace", inputs={"image": ("photo", "photo")}),
        "faces": preview("Faces found", ("face", "preview")),
        "mesh": Node("FantasyIDReconstruct", None, reconstruct, {"face": ("face", "face")}),
        "overlay": preview("3D face over the photo", ("mesh", "overlay")),
        "views": Node("FantasyIDViews", inputs={"face": ("face", "face")}),
        "sheet": preview("Views of the person", ("views", "contact_sheet")),
        "id": fuse(),
    }


def conditioning(pos: Source = ("pos", "CONDITIONING"), neg: Source = ("neg", "CONDITIONING")) -> dict[str, Source]:
    """The inputs `positive` and `negative`."""
    return {"positive": pos, "negative": neg}


CONDITIONED = conditioning(("cond", "positive"), ("cond", "negative"))


def sampler(settings: dict[str, Any], model: Source = ("load", "MODEL"), pos: str = "pos") -> Node:
    """FantasyID Sampler."""
    inputs = {"model": model, "identity": ("id", "identity"), "vae": ("load", "VAE")}
    whole = {"denoise": 1} | settings  # the page may keep the value of another node's widget of this name
    return Node("FantasyIDSampler", None, whole, inputs | conditioning((pos, "CONDITIONING")))


def ksampler(steps: int, cfg: float, prompts: dict[str, Source], latent: Source, **more: Any) -> Node:
    """ComfyUI's KSampler on the node `apply`; `more` of its widgets."""
    widgets = {"seed": 42, "steps": steps, "cfg": cfg, "sampler_name": "ddim", "scheduler": "simple", **more}
    return Node("KSampler", None, widgets, {"model": ("apply", "MODEL"), **prompts, "latent_image": latent})


def apply(**widgets: Any) -> Node:
    """Apply FantasyID."""
    return Node("FantasyIDApply", None, widgets, {"model": ("load", "MODEL"), "identity": ("id", "identity")})


def image_condition() -> Node:
    """FantasyID Image Condition, for ComfyUI's own samplers."""
    inputs = {"vae": ("load", "VAE"), "identity": ("id", "identity"), "model": ("load", "MODEL")}
    return Node("FantasyIDImageCondition", None, PUBLISHED_SIZE, conditioning() | inputs)


def video(
    latents: Source = ("sample", "LATENT"),
    prefix: str = "FantasyID/video",
    size: tuple[int, int] = (340, 446),
    mark: str = "",
) -> dict[str, Node]:
    """From latents to the saved video: nodes `decode`, `frames`, `save`, with `mark` behind their names."""
    decode, frames, save = f"decode{mark}", f"frames{mark}", f"save{mark}"
    return {
        decode: Node("VAEDecode", inputs={"samples": latents, "vae": ("load", "VAE")}, size=(size[0], 0)),
        frames: Node("CreateVideo", None, {"fps": 8}, {"images": (decode, "IMAGE")}, (size[0], 0)),
        save: Node("SaveVideo", None, {"filename_prefix": prefix}, {"video": (frames, "VIDEO")}, size=size),
    }
