"""The shipped workflows and boxes. `tools/assets/build_workflows.py` lays them out; notes are in `workflow_notes/`."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from .workflow_parts import (
    BYPASSED,
    CONDITIONED,
    IDENTITY_COLOR,
    IDENTITY_GROUP,
    MODEL_GROUP,
    NANO,
    NANO_SAMPLER,
    OUTPUT_COLUMNS,
    PUBLISHED,
    PUBLISHED_GROUP,
    PUBLISHED_SAMPLER,
    STOCK_GROUP,
    VIDEO_COLOR,
    VIDEO_GROUP,
    Group,
    Node,
    Source,
    apply,
    conditioning,
    fuse,
    identity,
    image_condition,
    ksampler,
    models,
    photo,
    preview,
    prompt,
    prompts,
    sampler,
    video,
)

NOTES = Path(__file__).parent / "workflow_notes"
PARK = (
    "A person stands in a sunlit autumn park, looks at the camera, smiles warmly and says a few words. Golden leaves "
    "fall in the soft evening light. Medium close-up, the face in focus, steady camera, natural colours."
)
FIVE = {
    "smiles": "A woman with long black hair in a red shirt before a white wall smiles warmly at the camera.",
    "talks": "A woman with long black hair in a blue shirt before a grey wall talks to the camera.",
    "nods": "A woman with long black hair in a green shirt before a brown wall nods her head.",
    "tilts the head": "A woman with long black hair in a purple shirt before a yellow wall tilts her head to the right.",
    "turns": "A woman with long black hair in a white shirt before a blue wall turns her head to the left and smiles.",
}
SAVED = "fantasyid/identity_00001_.safetensors [output]"


@dataclass
class Workflow:
    """One file. Groups stand in `rows`, each row below the one before; the note stands left of all."""

    name: str
    nodes: dict[str, Node]
    rows: list[list[Group]]

    @property
    def note(self) -> str:
        """The note's Markdown; `$name` in it stands for the text of `_name.md`."""
        shared = {file.stem[1:]: file.read_text("utf-8").rstrip() for file in NOTES.glob("_*.md")}
        return Template((NOTES / f"{self.name}.md").read_text("utf-8").rstrip()).substitute(shared)


@dataclass
class Blueprint:
    """A box of nodes that artists find among the nodes.

    Attributes:
        inputs: name → the inputs inside that it stands for; widgets among them are shown on the box.
        outputs: name → the output inside.
        columns: of the nodes inside.
    """

    name: str
    category: str
    description: str
    nodes: dict[str, Node]
    inputs: dict[str, list[Source]]
    outputs: dict[str, Source]
    columns: list[list[str]]


def small_model(person: str, text: str) -> dict[str, Node]:
    """Model, prompts and identity of FantasyID-nano."""
    return models(NANO) | prompts(text) | identity(NANO, person)


def published_model(person: str) -> dict[str, Node]:
    """Model, prompts and identity of the published model."""
    return models(PUBLISHED) | prompts(PARK) | identity(PUBLISHED, person)


def first_video() -> Workflow:
    """Photo and prompt → video, with what the pack brings."""
    text = "A young woman with long black hair in a white shirt before a yellow wall smiles and talks to the camera."
    nodes = small_model("Amara", text) | {"sample": sampler(NANO_SAMPLER)} | video()
    return Workflow("01 First video", nodes, [[MODEL_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]])


def views_from_video() -> Workflow:
    """A video as source: several views make the identity."""
    text = "A man with short brown hair in a green shirt before a purple wall smiles and talks to the camera."
    nodes = small_model("Ben", text) | {
        "photo": photo("Ben", "Choose a person"),
        "source": Node("GetVideoComponents", inputs={"video": ("photo", "video")}),
        "face": Node("FantasyIDDetectFace", inputs={"image": ("source", "images")}),
        "views": Node(
            "FantasyIDViews", None, {"max_views": 6}, {"face": ("face", "face"), "images": ("source", "images")}
        ),
        "id": fuse(combine="weighted by pose"),
        "sample": sampler(NANO_SAMPLER),
    }
    columns = [["photo", "source"], *IDENTITY_GROUP.columns[1:]]
    rows = [[MODEL_GROUP], [Group("Identity from a video", columns, IDENTITY_COLOR)], [VIDEO_GROUP]]
    return Workflow("02 Person from a video", nodes | video(), rows)


def five_prompts() -> Workflow:
    """One identity in five videos."""
    nodes = models(NANO) | identity(NANO, "Chiyo") | {"neg": prompt("", "Negative prompt")}
    groups = []
    for number, (act, text) in enumerate(FIVE.items(), 1):
        pos, sample = f"pos{number}", f"sample{number}"
        nodes[pos] = prompt(text, f"Prompt {number}: {act}")
        nodes[sample] = sampler(NANO_SAMPLER | {"seed": 41 + number}, pos=pos)
        prefix = f"FantasyID/{number}_{act.replace(' ', '_')}"
        nodes |= video((sample, "LATENT"), prefix, (320, 440), str(number))
        columns = [[pos], [sample], [f"decode{number}", f"frames{number}"], [f"save{number}"]]
        groups.append(Group(f"Video {number}: {act}", columns, VIDEO_COLOR))
    rows = [[Group("Model", [["load"], ["clip"], ["neg"]])], [IDENTITY_GROUP], groups[:2], groups[2:4], groups[4:]]
    return Workflow("03 One person in five videos", nodes, rows)


def ten_seconds() -> Workflow:
    """Longer than the model was trained for."""
    text = "A man with short black hair and a beard in an orange shirt before a white wall talks to the camera."
    nodes = small_model("Idris", text) | {
        "long": Node("FantasyIDLongVideo", inputs={"model": ("load", "MODEL")}),
        "sample": sampler(NANO_SAMPLER | {"frames": 81}, ("long", "MODEL")),
    }
    rows = [[MODEL_GROUP], [IDENTITY_GROUP], [Group("Video", [["long"], *OUTPUT_COLUMNS], VIDEO_COLOR)]]
    return Workflow("04 Ten seconds", nodes | video(), rows)


def face_of_video() -> Workflow:
    """Another person in the place of the one in a video."""
    text = "A woman with red hair in a pink shirt before a grey wall turns her head."
    scale = {"upscale_method": "area", "width": 160, "height": 160, "crop": "center"}
    nodes = small_model("Rosa", text) | {
        "other": photo("Elena", "Choose a video"),
        "source": Node("GetVideoComponents", inputs={"video": ("other", "video")}),
        "scaled": Node("ImageScale", "To the model's size", scale, {"image": ("source", "images")}),
        "encoded": Node("VAEEncode", inputs={"pixels": ("scaled", "IMAGE"), "vae": ("load", "VAE")}),
        "apply": apply(guide_identity=True),
        "sample": ksampler(20, 4, conditioning(), ("encoded", "LATENT"), denoise=0.65),
    }
    rows = [
        [MODEL_GROUP],
        [IDENTITY_GROUP],
        [
            Group("The video", [["other"], ["source", "scaled"], ["encoded"]], "#b06634"),
            Group("Video with the other face", [["apply"], *OUTPUT_COLUMNS], VIDEO_COLOR),
        ],
    ]
    return Workflow("05 Another face in a video", nodes | video(), rows)


def saved_identity() -> Workflow:
    """An identity saved once and used again."""
    text = "A young woman with long brown hair in a brown shirt before a blue wall smiles and talks to the camera."
    save = {
        "store": Node("FantasyIDSaveIdentity", inputs={"identity": ("id", "identity")}),
        "stored": Node("FantasyIDLoadIdentity", None, {"file": SAVED}),
    }
    nodes = models(NANO) | identity(NANO, "Elena") | save | prompts(text) | {"sample": sampler(NANO_SAMPLER)} | video()
    nodes["sample"].inputs["identity"] = ("stored", "identity")
    for key in ("sample", "decode", "frames", "save", "stored", "pos", "neg"):
        nodes[key].mode = BYPASSED
    rows = [
        [Group("Model", [["load"], ["clip"]])],
        [Group("1 Save an identity", [*IDENTITY_GROUP.columns[:-1], ["id", "store"]], IDENTITY_COLOR)],
        [Group("2 Video from a saved identity", [["stored"], ["pos", "neg"], *OUTPUT_COLUMNS], VIDEO_COLOR)],
    ]
    return Workflow("06 Save and load an identity", nodes, rows)


def published() -> Workflow:
    """The released recipe."""
    nodes = published_model("Amara") | {"sample": sampler(PUBLISHED_SAMPLER)} | video(size=(420, 420))
    return Workflow("07 Published model", nodes, [[PUBLISHED_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]])


def stock_sampler() -> Workflow:
    """Apply FantasyID with the stock KSampler, T5 from CLIPLoader."""
    clip = {"clip_name": "t5xxl_fp8_e4m3fn_scaled.safetensors", "type": "pixart"}
    nodes = published_model("Idris") | {
        "clip": Node("CLIPLoader", None, clip),
        "apply": apply(),
        "cond": image_condition(),
        "sample": ksampler(50, 6, CONDITIONED, ("cond", "LATENT")),
    }
    rows = [[PUBLISHED_GROUP], [IDENTITY_GROUP], [STOCK_GROUP]]
    return Workflow("08 Published model with KSampler", nodes | video(size=(420, 420)), rows)


def custom_sampler() -> Workflow:
    """SamplerCustomAdvanced with FantasyID Sigmas."""
    model: dict[str, Source] = {"model": ("apply", "MODEL")}
    sources = {
        "noise": ("noise", "NOISE"),
        "guider": ("guider", "GUIDER"),
        "sampler": ("solver", "SAMPLER"),
        "sigmas": ("steps", "SIGMAS"),
        "latent_image": ("cond", "LATENT"),
    }
    nodes = published_model("Rosa") | {
        "apply": apply(),
        "cond": image_condition(),
        "noise": Node("RandomNoise", None, {"noise_seed": 42}),
        "guider": Node("CFGGuider", None, {"cfg": 6}, model | CONDITIONED),
        "steps": Node("FantasyIDSigmas", None, {"steps": 50}, model),
        "solver": Node("KSamplerSelect", None, {"sampler_name": "ddim"}),
        "sample": Node("SamplerCustomAdvanced", inputs=sources),
    }
    columns = [["apply", "cond"], ["noise", "guider", "solver", "steps"], *OUTPUT_COLUMNS]
    rows = [[PUBLISHED_GROUP], [IDENTITY_GROUP], [Group("Video", columns, VIDEO_COLOR)]]
    return Workflow(
        "09 Published model with custom sampler", nodes | video(("sample", "output"), size=(420, 420)), rows
    )


def mesh_file() -> Workflow:
    """The mesh from a `.ply` file, no DECA and FLAME."""
    nodes = published_model("Ben") | {
        "mesh": Node("FantasyIDLoadMesh", None, {"file": "face.ply"}),
        "overlay": preview("The mesh", ("mesh", "preview")),
        "sample": sampler(PUBLISHED_SAMPLER),
    }
    rows = [[PUBLISHED_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]]
    return Workflow("10 Published model with a mesh file", nodes | video(size=(420, 420)), rows)


def workflows() -> list[Workflow]:
    """All of them, in the order of their numbers."""
    return [
        first_video(),
        views_from_video(),
        five_prompts(),
        ten_seconds(),
        face_of_video(),
        saved_identity(),
        published(),
        stock_sampler(),
        custom_sampler(),
        mesh_file(),
    ]


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
    parts = small_model("Amara", "A young woman smiles and talks to the camera.")
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
    )


def blueprints() -> list[Blueprint]:
    """All boxes."""
    return [identity_box(), video_box()]
