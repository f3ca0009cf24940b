"""The boxes of nodes that artists find among the nodes, and those that shipped workflows are made of."""

from dataclasses import dataclass, field

from .workflow_parts import (
    BY_MODEL,
    NANO,
    NANO_SAMPLER,
    Node,
    Source,
    identity,
    models,
    prompts,
    sampler,
    video,
)


@dataclass
class Blueprint:
    """A box of nodes that artists find among the nodes.

    Attributes:
        inputs: name → the inputs inside that it stands for; widgets among them are shown on the box.
        outputs: name → the output inside.
        columns: of the nodes inside.
        labels: of inputs that are shown by another name.
    """

    name: str
    category: str
    description: str
    nodes: dict[str, Node]
    inputs: dict[str, list[Source]]
    outputs: dict[str, Source]
    columns: list[list[str]]
    labels: dict[str, str] = field(default_factory=dict)


def repaired(frames: Source, more: dict[str, Source]) -> dict[str, Node]:
    """From frames to the nodes `track` … `paste`, which gives them back with the face drawn again; of any length.

    Args:
        more: further inputs of FantasyID Face Track.
    """
    by_model = {**BY_MODEL, "width": 160, "height": 160}
    drawn = sampler(NANO_SAMPLER | {"denoise": 0.4}, ("long", "MODEL"))
    drawn.inputs |= {"latents": ("encoded", "LATENT"), "frames": ("clip_size", "batch_size")}
    return {
        "track": Node("FantasyIDFaceTrack", None, by_model, {"images": frames, "model": ("load", "MODEL"), **more}),
        "long": Node("FantasyIDLongVideo", inputs={"model": ("load", "MODEL")}),
        "clip_size": Node("GetImageSize", "Frames of the clip", inputs={"image": ("track", "clip")}),
        "encoded": Node("VAEEncode", inputs={"pixels": ("track", "clip"), "vae": ("load", "VAE")}),
        "sample": drawn,
        "decode": Node("VAEDecode", inputs={"samples": ("sample", "LATENT"), "vae": ("load", "VAE")}),
        "paste": Node(
            "FantasyIDPasteFace",
            inputs={"images": frames, "clip": ("decode", "IMAGE"), "face_clip": ("track", "face_clip")},
        ),
    }


def identity_box() -> Blueprint:
    """Photos → identity."""
    nodes = {key: node for key, node in identity(NANO, "Amara").items() if node.type != "PreviewImage"}
    del nodes["photo"]
    nodes["face"].inputs.clear()
    del nodes["id"].inputs["encoder"]
    nodes["id"].widgets["combine"] = "weighted by pose"
    return Blueprint(
        "Identity from photos",
        "FantasyID/4 identity",
        "From a photo of a person, or several, to the identity that Apply FantasyID and FantasyID Sampler follow.",
        nodes,
        {
            "encoder": [("id", "encoder")],
            "photo": [("face", "image")],
            "more photos": [("views", "images")],
            "model_name": [("mesh", "model_name")],
            "mode": [("mesh", "mode")],
            "max_views": [("views", "max_views")],
            "combine": [("id", "combine")],
        },
        {
            "identity": ("id", "identity"),
            "faces found": ("face", "preview"),
            "contact sheet": ("views", "contact_sheet"),
            "verdict": ("face", "verdict"),
        },
        [["face"], ["mesh", "views"], ["id"]],
    )


def video_box() -> Blueprint:
    """Photo and prompt → video."""
    parts = models(NANO) | prompts("A young woman smiles and talks to the camera.") | identity(NANO, "Amara")
    parts |= {"sample": sampler(NANO_SAMPLER)} | video()
    nodes = {key: node for key, node in parts.items() if node.type not in ("PreviewImage", "SaveVideo")}
    del nodes["photo"]
    nodes["face"].inputs.clear()
    settings = ("seed", "settings", "steps", "guidance", "width", "height", "frames", "guide_identity")
    return Blueprint(
        "Identity video",
        "FantasyID/5 video",
        "From a photo and a prompt to a video of that person, all in one box. For Save Video.",
        nodes,
        {
            "photo": [("face", "image")],
            "text": [("pos", "text")],
            "model_name": [("load", "model_name"), ("clip", "model_name"), ("mesh", "model_name")],
            "mode": [("mesh", "mode")],
            **{name: [("sample", name)] for name in settings},
        },
        {
            "video": ("frames", "VIDEO"),
            "frames": ("decode", "IMAGE"),
            "faces found": ("face", "preview"),
            "verdict": ("face", "verdict"),
        },
        [["load", "clip", "face"], ["pos", "neg"], ["mesh", "views"], ["id"], ["sample"], ["decode", "frames"]],
        {"text": "prompt"},
    )


def prompt_box(name: str) -> Blueprint:
    """Model, identity and prompt → video: one of several videos of a workflow."""
    nodes = prompts("") | {"sample": sampler(NANO_SAMPLER)} | video()
    del nodes["save"]
    for key in ("pos", "neg"):
        del nodes[key].inputs["clip"]
    for socket in ("model", "identity", "vae"):
        del nodes["sample"].inputs[socket]
    del nodes["decode"].inputs["vae"]
    return Blueprint(
        name,
        "FantasyID/5 video",
        "From an identity and a prompt to a video.",
        nodes,
        {
            "model": [("sample", "model")],
            "vae": [("sample", "vae"), ("decode", "vae")],
            "clip": [("pos", "clip"), ("neg", "clip")],
            "identity": [("sample", "identity")],
            "who": [("pos", "who")],
            "text": [("pos", "text")],
            "seed": [("sample", "seed")],
        },
        {"video": ("frames", "VIDEO")},
        [["pos", "neg"], ["sample"], ["decode", "frames"]],
        {"text": "prompt"},
    )


def repair_box() -> Blueprint:
    """Frames and photo → frames with that person's face."""
    parts = models(NANO) | prompts("A person turns the head.") | identity(NANO, "Amara")
    parts |= repaired(("", ""), {})  # whose frames are the box's own input
    nodes = {key: node for key, node in parts.items() if node.type != "PreviewImage"}
    del nodes["photo"]
    for key, name in (("face", "image"), ("track", "images"), ("paste", "images")):
        del nodes[key].inputs[name]
    return Blueprint(
        "Repair a face",
        "FantasyID/5 video",
        "One face in a video of any model, drawn again as the person of a photo; all else stays. Video in, video out.",
        nodes,
        {
            "images": [("track", "images"), ("paste", "images")],
            "photo": [("face", "image")],
            "fps": [("track", "fps")],
            "text": [("pos", "text")],
            "model_name": [("load", "model_name"), ("clip", "model_name"), ("mesh", "model_name")],
            "mode": [("mesh", "mode")],
            "around": [("track", "around")],
            "seed": [("sample", "seed")],
            "denoise": [("sample", "denoise")],
            "match_colours": [("paste", "match_colours")],
        },
        {"images": ("paste", "images"), "mask": ("paste", "mask"), "report": ("track", "report")},
        [
            *(["load", "clip", "face"], ["pos", "neg"], ["mesh", "views", "id"]),
            *(["track", "long", "clip_size"], ["encoded", "sample"], ["decode", "paste"]),
        ],
        {"text": "prompt"},
    )


def blueprints() -> list[Blueprint]:
    """All boxes that artists find among the nodes."""
    return [identity_box(), video_box(), repair_box()]
