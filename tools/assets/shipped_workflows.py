"""What the shipped workflows hold: nodes, links, groups and notes. `tools/assets/build_workflows.py` lays them out."""

from dataclasses import dataclass, field
from typing import Any

NANO, PUBLISHED = "FantasyID-nano", "FantasyID"
NANO_SIZE = {"width": 160, "height": 160, "frames": 25}
BY_MODEL = {"settings": "default for this model"}  # so that who picks another model gets its size and steps
NANO_SAMPLER = {
    **BY_MODEL,
    "seed": 42,
    "steps": 20,
    "guidance": 4,
    "scheduler": "ddim",
    **NANO_SIZE,
    "guide_identity": True,
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
    size: tuple[int, int] = (300, 0)  # px, at least
    mode: int = 0


@dataclass
class Group:
    """Nodes of one stage: keys in columns."""

    title: str
    columns: list[list[str]]
    color: str = "#3f789e"


@dataclass
class Workflow:
    """One file. Groups stand in `rows`, each row below the one before; the note stands left of all."""

    name: str
    note: str
    nodes: dict[str, Node]
    rows: list[list[Group]]


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


CONSENT = "**Consent:** use only faces of people who agreed to it."
OWN_PHOTO = (
    "**Your own photo:** put *Load Image* in the place of **Choose a photo** and connect it to **FantasyID Detect "
    "Face**. One person, face visible and upright; the verdict is under that node once it has run. Hair and skin of "
    "real photos are often wrong in the video: the small model has only ever seen people like those of the list."
)
NANO_PROMPTS = (
    "**Prompts:** short plain sentences of who is there, in what shirt, before which colour, and what happens: "
    "smiles, talks, turns the head, nods, tilts the head, blinks, looks up. At most 225 letters."
)
PUBLISHED_NEEDS = """## Needs

- The model, 14 GB, in `models/fantasyid/FantasyID/`: enable **FantasyID Download Model** (Ctrl+B), tick *confirm*, run, press R, bypass it again.
- DECA and FLAME, which you license yourself (non-commercial): `deca_model.tar`, `generic_model.pkl` and `transform.pkl` in the model's `face_model/`."""
PARK = (
    "A person stands in a sunlit autumn park, looks at the camera, smiles warmly and says a few words. Golden leaves "
    "fall in the soft evening light. Medium close-up, the face in focus, steady camera, natural colours."
)


def preview(title: str, source: Source) -> Node:
    """Shows a picture and saves nothing, so that what a run has made is the video."""
    return Node("PreviewImage", title, inputs={"images": source}, size=(300, 320))


def models(model: str) -> dict[str, Node]:
    """The loaders `load` and `clip`, and for the published model the download beside them, bypassed."""
    nodes = {
        "load": Node("FantasyIDLoadModel", widgets={"model_name": model}),
        "clip": Node("FantasyIDLoadTextEncoder", widgets={"model_name": model}),
    }
    if model == PUBLISHED:
        nodes["download"] = Node("FantasyIDDownload", "Download the model (enable to use)", mode=BYPASSED)
    return nodes


def prompt(text: str, title: str = "Prompt") -> Node:
    """A prompt of the model's own text encoder."""
    return Node("FantasyIDTextEncode", title, {"text": text}, {"clip": ("clip", "CLIP")}, size=(380, 150))


def prompts(text: str) -> dict[str, Node]:
    """The nodes `pos` and `neg`."""
    return {"pos": prompt(text), "neg": prompt("", "Negative prompt")}


def photo(person: str) -> Node:
    """Where the artist begins."""
    return Node("FantasyIDExamplePhoto", "Choose a photo", {"person": person})


def identity(model: str, person: str, mode: str) -> dict[str, Node]:
    """From the photo to the node `id`, with a preview of each stage."""
    return {
        "photo": photo(person),
        "face": Node("FantasyIDDetectFace", inputs={"image": ("photo", "photo")}),
        "faces": preview("Faces found", ("face", "preview")),
        "mesh": Node(
            "FantasyIDReconstruct",
            None,
            # As released the whole photo is squeezed, and the mesh fits only where the face fills it.
            {"model_name": model, "mode": mode, "look_at": "whole photo" if model == PUBLISHED else "face crop"},
            {"face": ("face", "face")},
        ),
        "overlay": preview("3D face over the photo", ("mesh", "overlay")),
        "views": Node("FantasyIDViews", inputs={"face": ("face", "face")}),
        "sheet": preview("Views of the person", ("views", "contact_sheet")),
        "id": Node(
            "FantasyIDFuse",
            inputs={"encoder": ("load", "encoder"), "views": ("views", "views"), "mesh": ("mesh", "mesh")},
        ),
    }


def sampler(settings: dict[str, Any], model: Source = ("load", "MODEL"), pos: str = "pos") -> Node:
    """FantasyID Sampler."""
    return Node(
        "FantasyIDSampler",
        None,
        settings,
        {
            "model": model,
            "identity": ("id", "identity"),
            "vae": ("load", "VAE"),
            "positive": (pos, "CONDITIONING"),
            "negative": ("neg", "CONDITIONING"),
        },
    )


def video(
    latents: Source, prefix: str = "FantasyID/video", size: tuple[int, int] = (420, 560), mark: str = ""
) -> dict[str, Node]:
    """From latents to the saved video: nodes `decode`, `frames`, `save`, with `mark` behind their names."""
    return {
        f"decode{mark}": Node("VAEDecode", inputs={"samples": latents, "vae": ("load", "VAE")}, size=(260, 0)),
        f"frames{mark}": Node("CreateVideo", None, {"fps": 8}, {"images": (f"decode{mark}", "IMAGE")}, size=(260, 0)),
        f"save{mark}": Node(
            "SaveVideo", None, {"filename_prefix": prefix}, {"video": (f"frames{mark}", "VIDEO")}, size=size
        ),
    }


MODEL_GROUP = Group("Model and prompt", [["load"], ["clip"], ["pos"], ["neg"]])
PUBLISHED_GROUP = Group("Model and prompt", [["load"], ["clip"], ["download"], ["pos"], ["neg"]])
IDENTITY_GROUP = Group(
    "Identity from the photo",
    [["photo"], ["face", "faces"], ["mesh", "overlay"], ["views", "sheet"], ["id"]],
    "#8a8",
)
VIDEO_COLOR = "#a1309b"
VIDEO_GROUP = Group("Video", [["sample"], ["decode", "frames"], ["save"]], VIDEO_COLOR)
STOCK_GROUP = Group("Video", [["apply", "cond"], ["sample"], ["decode", "frames"], ["save"]], VIDEO_COLOR)


def first_video() -> Workflow:
    """Photo and prompt → video, with what the pack brings."""
    return Workflow(
        "01 First video",
        f"""# The first video

Press **Run**. The small model comes with the pack and nothing is downloaded: 3 s of video, 160 × 160, in about a minute on a plain CPU.

## Yours to change

- **Choose a photo**: who is in the video.
- **Prompt**: what happens.

{NANO_PROMPTS}

{OWN_PHOTO}

**Size and steps** are the model's own as long as the sampler's *settings* say so; with *as set here* its widgets count.

## What it is

A demonstration of the method, trained on synthetic people: **not a likeness engine**. Smiling and talking come out clean; heads that turn far smear. For larger videos and real faces there is the published model: workflow *07 Published model*.

{CONSENT}""",
        models(NANO)
        | prompts(
            "A young woman with long black hair in a white shirt before a yellow wall smiles and talks to the camera."
        )
        | identity(NANO, "Amara", "shape only")
        | {"sample": sampler(NANO_SAMPLER)}
        | video(("sample", "LATENT")),
        [[MODEL_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]],
    )


def views_from_video() -> Workflow:
    """A video as source: several views make the identity."""
    return Workflow(
        "02 Person from a video",
        f"""# The person comes from a video

Instead of one photo, the frames of a short video show the person from several sides. **FantasyID Detect Face** takes the frame that shows the face best as the reference; **FantasyID Multi-View** adds sharp frames in other poses; **FantasyID Feature Fusion** weighs them by pose.

## Yours to change

- **Choose a person**: gives a photo and, used here, a video of a head that turns.
- **max_views** of FantasyID Multi-View: how many frames at most.

**Your own video:** put *Load Video* in the place of **Choose a person** and connect it to *Get Video Components*. A few seconds in which the person turns the head are plenty.

{CONSENT}""",
        models(NANO)
        | prompts("A man with short brown hair in a green shirt before a purple wall smiles and talks to the camera.")
        | identity(NANO, "Ben", "shape only")
        | {
            "photo": Node("FantasyIDExamplePhoto", "Choose a person", {"person": "Ben"}),
            "source": Node("GetVideoComponents", inputs={"video": ("photo", "video")}),
            "face": Node("FantasyIDDetectFace", inputs={"image": ("source", "images")}),
            "views": Node(
                "FantasyIDViews",
                None,
                {"max_views": 6},
                {"face": ("face", "face"), "images": ("source", "images")},
            ),
            "id": Node(
                "FantasyIDFuse",
                None,
                {"combine": "weighted by pose"},
                {"encoder": ("load", "encoder"), "views": ("views", "views"), "mesh": ("mesh", "mesh")},
            ),
            "sample": sampler(NANO_SAMPLER),
        }
        | video(("sample", "LATENT")),
        [
            [MODEL_GROUP],
            [
                Group(
                    "Identity from a video",
                    [["photo", "source"], ["face", "faces"], ["mesh", "overlay"], ["views", "sheet"], ["id"]],
                    "#8a8",
                )
            ],
            [VIDEO_GROUP],
        ],
    )


FIVE = {
    "smiles": "A woman with long black hair in a red shirt before a white wall smiles warmly at the camera.",
    "talks": "A woman with long black hair in a blue shirt before a grey wall talks to the camera.",
    "nods": "A woman with long black hair in a green shirt before a brown wall nods her head.",
    "tilts the head": "A woman with long black hair in a purple shirt before a yellow wall tilts her head to the right.",
    "turns": "A woman with long black hair in a white shirt before a blue wall turns her head to the left and smiles.",
}


def five_prompts() -> Workflow:
    """One identity in five videos."""
    nodes = models(NANO) | identity(NANO, "Chiyo", "shape only") | {"neg": prompt("", "Negative prompt")}
    rows = []
    for number, (act, text) in enumerate(FIVE.items(), 1):
        pos, sample = f"pos{number}", f"sample{number}"
        nodes[pos] = prompt(text, f"Prompt {number}: {act}")
        nodes[sample] = sampler(NANO_SAMPLER | {"seed": 41 + number}, pos=pos)
        name = act.replace(" ", "_")
        nodes |= video((sample, "LATENT"), f"FantasyID/{number}_{name}", (320, 440), str(number))
        rows.append(
            Group(
                f"Video {number}: {act}",
                [[pos], [sample], [f"decode{number}", f"frames{number}"], [f"save{number}"]],
                VIDEO_COLOR,
            )
        )
    return Workflow(
        "03 One person in five videos",
        f"""# One person, five prompts

The identity is computed once, and every sampler takes it: the same person smiles, talks, nods, tilts and turns the head. Five times the time of one video, some minutes on a plain CPU.

Bypass a group (right-click its title, *Bypass Group Nodes*) to leave its video out.

{NANO_PROMPTS}

{OWN_PHOTO}

{CONSENT}""",
        nodes,
        [
            [Group("Model", [["load"], ["clip"], ["neg"]])],
            [IDENTITY_GROUP],
            rows[:2],
            rows[2:4],
            rows[4:],
        ],
    )


def ten_seconds() -> Workflow:
    """Longer than the model was trained for."""
    return Workflow(
        "04 Ten seconds",
        f"""# Ten seconds

81 frames at 8 a second. The small model knows 25 frames: **FantasyID Long Video** predicts every step in windows of that length, which overlap and are blended, with the same person in each.

Some five minutes on a plain CPU. Fewer **frames** in the sampler (a multiple of 4 plus 1) are faster.

With the published model the same node makes more than 49 frames.

{NANO_PROMPTS}

{OWN_PHOTO}

{CONSENT}""",
        models(NANO)
        | prompts("A man with short black hair and a beard in an orange shirt before a white wall talks to the camera.")
        | identity(NANO, "Idris", "shape only")
        | {
            "long": Node("FantasyIDLongVideo", inputs={"model": ("load", "MODEL")}),
            "sample": sampler(NANO_SAMPLER | {"frames": 81}, ("long", "MODEL")),
        }
        | video(("sample", "LATENT")),
        [
            [MODEL_GROUP],
            [IDENTITY_GROUP],
            [Group("Video", [["long"], ["sample"], ["decode", "frames"], ["save"]], VIDEO_COLOR)],
        ],
    )


def face_of_video() -> Workflow:
    """Another person in the place of the one in a video."""
    nodes = (
        models(NANO)
        | prompts("A woman with red hair in a pink shirt before a grey wall turns her head.")
        | identity(NANO, "Rosa", "shape only")
        | {
            "photo": photo("Rosa"),
            "other": Node("FantasyIDExamplePhoto", "Choose a video", {"person": "Elena"}),
            "source": Node("GetVideoComponents", inputs={"video": ("other", "video")}),
            "scaled": Node(
                "ImageScale",
                "To the model's size",
                {"upscale_method": "area", "width": 160, "height": 160, "crop": "center"},
                {"image": ("source", "images")},
            ),
            "encoded": Node("VAEEncode", inputs={"pixels": ("scaled", "IMAGE"), "vae": ("load", "VAE")}),
            "apply": Node(
                "FantasyIDApply",
                None,
                {"guide_identity": True},
                {"model": ("load", "MODEL"), "identity": ("id", "identity")},
            ),
            "sample": Node(
                "KSampler",
                None,
                {"seed": 42, "steps": 20, "cfg": 4, "sampler_name": "ddim", "scheduler": "simple", "denoise": 0.65},
                {
                    "model": ("apply", "MODEL"),
                    "positive": ("pos", "CONDITIONING"),
                    "negative": ("neg", "CONDITIONING"),
                    "latent_image": ("encoded", "LATENT"),
                },
            ),
        }
        | video(("sample", "LATENT"))
    )
    return Workflow(
        "05 Another face in a video",
        f"""# Another face in an existing video

The video is encoded, noised by two thirds and drawn again with another person: movement and framing stay, the face becomes that of the photo.

## Yours to change

- **Choose a photo**: who it becomes. **Choose a video**: what happens.
- **Prompt**: say what the video shows, with the new person's hair and clothes.
- **denoise** of KSampler: 0.5 keeps more of the video, 0.8 more of the person.

**Your own:** put *Load Image* and *Load Video* in their places. The small model wants square videos of 25 frames.

{CONSENT} Both the person in the photo and the one in the video must have agreed.""",
        nodes,
        [
            [MODEL_GROUP],
            [IDENTITY_GROUP],
            [
                Group("The video", [["other"], ["source", "scaled"], ["encoded"]], "#b06634"),
                Group(
                    "Video with the other face", [["apply"], ["sample"], ["decode", "frames"], ["save"]], VIDEO_COLOR
                ),
            ],
        ],
    )


SAVED = "fantasyid/identity_00001_.safetensors [output]"


def saved_identity() -> Workflow:
    """An identity saved once and used again."""
    second = {"sample", "decode", "frames", "save", "stored", "pos", "neg"}
    nodes = (
        models(NANO)
        | identity(NANO, "Elena", "shape only")
        | {
            "store": Node("FantasyIDSaveIdentity", inputs={"identity": ("id", "identity")}),
            "stored": Node("FantasyIDLoadIdentity", None, {"file": SAVED}),
        }
        | prompts(
            "A young woman with long brown hair in a brown shirt before a blue wall smiles and talks to the camera."
        )
        | {"sample": sampler(NANO_SAMPLER)}
        | video(("sample", "LATENT"))
    )
    nodes["sample"].inputs["identity"] = ("stored", "identity")
    for key in second:
        nodes[key].mode = BYPASSED
    return Workflow(
        "06 Save and load an identity",
        f"""# Save an identity, use it again

Group **1** turns a photo into an identity file, once. Group **2** makes videos from the file, without the photo.

1. Press **Run**: group 1 saves the identity. Press R, so that the lists show the new file.
2. Select group **2** and press Ctrl+B to enable it; bypass group **1** the same way. Choose the file in **FantasyID Load Identity** and run.

{OWN_PHOTO}

{CONSENT} An identity file describes a face: keep and share it only with that person's consent.""",
        nodes,
        [
            [Group("Model", [["load"], ["clip"]])],
            [
                Group(
                    "1 Save an identity",
                    [["photo"], ["face", "faces"], ["mesh", "overlay"], ["views", "sheet"], ["id", "store"]],
                    "#8a8",
                )
            ],
            [
                Group(
                    "2 Video from a saved identity",
                    [["stored"], ["pos", "neg"], ["sample"], ["decode", "frames"], ["save"]],
                    VIDEO_COLOR,
                )
            ],
        ],
    )


def published() -> Workflow:
    """The released recipe."""
    return Workflow(
        "07 Published model",
        f"""# The published model

The released recipe: 6 s of video, 720 × 480, 50 steps.

{PUBLISHED_NEEDS}

{OWN_PHOTO.split(" Hair and skin")[0]}

More photos of the person, or a video's frames, go into `images` of **FantasyID Multi-View**.

{CONSENT}""",
        models(PUBLISHED)
        | prompts(PARK)
        | identity(PUBLISHED, "Amara", "as released")
        | {"sample": sampler(PUBLISHED_SAMPLER)}
        | video(("sample", "LATENT"), size=(420, 420)),
        [[PUBLISHED_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]],
    )


def _stock(model: dict[str, Any] | None = None) -> dict[str, Node]:
    """Nodes `apply` and `cond`, for ComfyUI's own samplers."""
    return {
        "apply": Node(
            "FantasyIDApply", None, model or {}, {"model": ("load", "MODEL"), "identity": ("id", "identity")}
        ),
        "cond": Node(
            "FantasyIDImageCondition",
            None,
            PUBLISHED_SIZE,
            {
                "positive": ("pos", "CONDITIONING"),
                "negative": ("neg", "CONDITIONING"),
                "vae": ("load", "VAE"),
                "identity": ("id", "identity"),
                "model": ("load", "MODEL"),
            },
        ),
    }


def ksampler() -> Workflow:
    """Apply FantasyID with the stock KSampler, T5 from CLIPLoader."""
    clip = Node("CLIPLoader", None, {"clip_name": "t5xxl_fp8_e4m3fn_scaled.safetensors", "type": "pixart"})
    return Workflow(
        "08 Published model with KSampler",
        f"""# The published model with KSampler

**Apply FantasyID** gives a MODEL for any sampler: set strength, start, end and layer weights there; LoRA nodes go in front of it.

{PUBLISHED_NEEDS}
- T5-XXL, which other models use too, in `models/text_encoders/`: [t5xxl_fp8_e4m3fn_scaled](https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp8_e4m3fn_scaled.safetensors). CLIPLoader's type must be `pixart`, or `cogvideox` where the list has it.

## Settings

`ddim` or `euler` with scheduler `simple` follow the release's schedule; `normal` and `ddim_uniform` do not.

{CONSENT}""",
        models(PUBLISHED)
        | {"clip": clip}
        | prompts(PARK)
        | identity(PUBLISHED, "Idris", "as released")
        | _stock()
        | {
            "sample": Node(
                "KSampler",
                None,
                {"seed": 42, "steps": 50, "cfg": 6, "sampler_name": "ddim", "scheduler": "simple"},
                {
                    "model": ("apply", "MODEL"),
                    "positive": ("cond", "positive"),
                    "negative": ("cond", "negative"),
                    "latent_image": ("cond", "LATENT"),
                },
            )
        }
        | video(("sample", "LATENT"), size=(420, 420)),
        [[PUBLISHED_GROUP], [IDENTITY_GROUP], [STOCK_GROUP]],
    )


def custom_sampler() -> Workflow:
    """SamplerCustomAdvanced with FantasyID Sigmas."""
    return Workflow(
        "09 Published model with custom sampler",
        f"""# The published model with SamplerCustomAdvanced

Noise, guider, sampler and sigmas are nodes of their own: exchange any of them. **FantasyID Sigmas** gives the release's own timesteps; the sampler `ddim` or `euler` goes with them.

{PUBLISHED_NEEDS}

{CONSENT}""",
        models(PUBLISHED)
        | prompts(PARK)
        | identity(PUBLISHED, "Rosa", "as released")
        | _stock()
        | {
            "noise": Node("RandomNoise", None, {"noise_seed": 42}),
            "guider": Node(
                "CFGGuider",
                None,
                {"cfg": 6},
                {"model": ("apply", "MODEL"), "positive": ("cond", "positive"), "negative": ("cond", "negative")},
            ),
            "steps": Node("FantasyIDSigmas", None, {"steps": 50}, {"model": ("apply", "MODEL")}),
            "solver": Node("KSamplerSelect", None, {"sampler_name": "ddim"}),
            "sample": Node(
                "SamplerCustomAdvanced",
                inputs={
                    "noise": ("noise", "NOISE"),
                    "guider": ("guider", "GUIDER"),
                    "sampler": ("solver", "SAMPLER"),
                    "sigmas": ("steps", "SIGMAS"),
                    "latent_image": ("cond", "LATENT"),
                },
            ),
        }
        | video(("sample", "output"), size=(420, 420)),
        [
            [PUBLISHED_GROUP],
            [IDENTITY_GROUP],
            [
                Group(
                    "Video",
                    [
                        ["apply", "cond"],
                        ["noise", "guider", "solver", "steps"],
                        ["sample"],
                        ["decode", "frames"],
                        ["save"],
                    ],
                    VIDEO_COLOR,
                )
            ],
        ],
    )


def mesh_file() -> Workflow:
    """The mesh from a `.ply` file, no DECA and FLAME."""
    nodes = (
        models(PUBLISHED)
        | prompts(PARK)
        | identity(PUBLISHED, "Ben", "as released")
        | {
            "mesh": Node("FantasyIDLoadMesh", None, {"file": "face.ply"}),
            "overlay": preview("The mesh", ("mesh", "preview")),
            "sample": sampler(PUBLISHED_SAMPLER),
        }
        | video(("sample", "LATENT"), size=(420, 420))
    )
    return Workflow(
        "10 Published model with a mesh file",
        f"""# The published model with a mesh from a file

No DECA, no FLAME: the face's shape comes from a `.ply` file.

## Needs

- The model, 14 GB, in `models/fantasyid/FantasyID/`: enable **FantasyID Download Model** (Ctrl+B), tick *confirm*, run, press R, bypass it again.
- FLAME's mesh hierarchy `transform.pkl` in the model's `face_model/`.
- The same person's mesh with FLAME's 5023 vertices, as DECA writes it: copy it into ComfyUI's `input/`, press R and choose it in **FantasyID Load Mesh**.

{CONSENT}""",
        nodes,
        [[PUBLISHED_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]],
    )


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
        ksampler(),
        custom_sampler(),
        mesh_file(),
    ]


def identity_box() -> Blueprint:
    """Photos → identity."""
    nodes = {key: node for key, node in identity(NANO, "Amara", "shape only").items() if node.type != "PreviewImage"}
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
        },
        [["face"], ["mesh", "views"], ["id"]],
    )


def video_box() -> Blueprint:
    """Photo and prompt → video."""
    parts = (
        models(NANO)
        | prompts("A young woman smiles and talks to the camera.")
        | identity(NANO, "Amara", "shape only")
        | {"sample": sampler(NANO_SAMPLER)}
        | video(("sample", "LATENT"))
    )
    nodes = {key: node for key, node in parts.items() if node.type not in ("PreviewImage", "SaveVideo")}
    del nodes["photo"]
    nodes["face"].inputs.clear()
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
            **{
                name: [("sample", name)]
                for name in ("seed", "settings", "steps", "guidance", "width", "height", "frames", "guide_identity")
            },
        },
        {"video": ("frames", "VIDEO"), "frames": ("decode", "IMAGE"), "faces found": ("face", "preview")},
        [["load", "clip", "face"], ["pos", "neg"], ["mesh", "views"], ["id"], ["sample"], ["decode", "frames"]],
    )


def blueprints() -> list[Blueprint]:
    """All boxes."""
    return [identity_box(), video_box()]
