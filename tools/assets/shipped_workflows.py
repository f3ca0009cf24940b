"""The shipped workflows and boxes. `tools/assets/build_workflows.py` lays them out; notes are in `workflow_notes/`."""

from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from .shipped_boxes import Blueprint, identity_box, prompt_box, repaired
from .workflow_parts import (
    BYPASSED,
    CONDITIONED,
    DOWNLOAD_GROUP,
    IDENTITY_COLOR,
    IDENTITY_GROUP,
    MODEL_GROUP,
    NANO,
    NANO_SAMPLER,
    OUTPUT,
    PHOTO_GROUP,
    PROMPT_GROUP,
    PUBLISHED,
    PUBLISHED_SAMPLER,
    STOCK_GROUP,
    VIDEO_COLOR,
    VIDEO_GROUP,
    WHO,
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
    negative,
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
    "smiles": "in a red shirt before a white wall smiles warmly at the camera.",
    "talks": "in a blue shirt before a grey wall talks to the camera.",
    "nods": "in a green shirt before a brown wall nods.",
    "tilts the head": "in a purple shirt before a yellow wall tilts the head to the right.",
    "turns": "in a white shirt before a blue wall turns the head to the left and smiles.",
}
SAVED = "fantasyid/identity_00001_.safetensors [output]"


@dataclass
class Workflow:
    """One file. Groups stand in `columns`, one below the other; the note is above those of the first. Nodes whose type
    is the name of one of `boxes` are boxes.
    """

    name: str
    nodes: dict[str, Node]
    columns: list[list[Group]]
    boxes: list[Blueprint] = field(default_factory=list)

    @property
    def note(self) -> str:
        """The note's Markdown; `$name` in it stands for the text of `_name.md`."""
        shared = {file.stem[1:]: file.read_text("utf-8").rstrip() for file in NOTES.glob("_*.md")}
        return Template((NOTES / f"{self.name}.md").read_text("utf-8").rstrip()).substitute(shared)


SMALL = [[MODEL_GROUP], [PHOTO_GROUP, PROMPT_GROUP], [IDENTITY_GROUP]]  # columns
LARGE = [[MODEL_GROUP], [DOWNLOAD_GROUP, PHOTO_GROUP, PROMPT_GROUP], [IDENTITY_GROUP]]
BOX_WIDTH = 232  # px of a video's nodes where five stand side by side
LANDSCAPE = (340, 340)  # px of Save Video where videos are 3 : 2


def small_model(person: str, text: str) -> dict[str, Node]:
    """Model, prompts and identity of FantasyID-nano; `text` goes on about the person."""
    return models(NANO) | prompts(text, WHO) | identity(NANO, person)


def published_model(person: str) -> dict[str, Node]:
    """Model, prompts and identity of the published model."""
    return models(PUBLISHED) | prompts(PARK) | identity(PUBLISHED, person)


def first_video() -> Workflow:
    """Photo and prompt → video, with what the pack brings."""
    text = "in a white shirt before a yellow wall smiles and talks to the camera."
    nodes = small_model("Rosa", text) | {"sample": sampler(NANO_SAMPLER)} | video()
    return Workflow("01 First video", nodes, [*SMALL, [VIDEO_GROUP]])


def views_from_video() -> Workflow:
    """A video as source: several views make the identity."""
    text = "in a green shirt before a purple wall smiles and talks to the camera."
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
    person = Group("Video of the person", [["photo", "source"]], IDENTITY_COLOR)
    columns = [[MODEL_GROUP], [person, PROMPT_GROUP], [IDENTITY_GROUP], [VIDEO_GROUP]]
    return Workflow("02 Person from a video", nodes | video(), columns)


def five_prompts() -> Workflow:
    """One identity in five videos, each a box: 37 nodes would be too small to read.

    Boxes of their own: older pages show the widgets of several of one kind alike.
    """
    one = identity_box()
    boxes = [one]
    nodes = models(NANO) | {
        "photo": photo("Chiyo"),
        "id": Node(one.name, inputs={"encoder": ("load", "encoder"), "photo": ("photo", "photo")}),
    }
    inputs = {
        **{"model": ("load", "MODEL"), "vae": ("load", "VAE"), "clip": ("clip", "CLIP")},
        **{"identity": ("id", "identity"), "who": WHO},
    }
    columns = []
    for number, (act, text) in enumerate(FIVE.items(), 1):
        made, save = f"video{number}", f"save{number}"
        widgets = {"text": text, "seed": 41 + number}
        boxes.append(prompt_box(f"{number} {act}"))
        nodes[made] = Node(boxes[-1].name, f"{number} {act}", widgets, inputs, (BOX_WIDTH, 0))
        prefix = f"FantasyID/{number}_{act.replace(' ', '_')}"
        nodes[save] = video(prefix=prefix, size=(BOX_WIDTH, 340))["save"]
        nodes[save].inputs = {"video": (made, "video")}
        columns.append([made, save])
    left = [[PHOTO_GROUP], [MODEL_GROUP, Group("Identity", [["id"]], IDENTITY_COLOR)]]
    right = [Group("Five videos", columns, VIDEO_COLOR)]
    return Workflow("03 One person in five videos", nodes, [*left, right], boxes)


def ten_seconds() -> Workflow:
    """Longer than the model was trained for."""
    text = "in an orange shirt before a white wall talks to the camera."
    nodes = small_model("Idris", text) | {
        "long": Node("FantasyIDLongVideo", inputs={"model": ("load", "MODEL")}),
        "sample": sampler(NANO_SAMPLER | {"frames": 81}, ("long", "MODEL")),
    }
    columns = [*SMALL, [Group("Video", [["long", "sample"], OUTPUT], VIDEO_COLOR)]]
    return Workflow("04 Ten seconds", nodes | video(), columns)


def face_of_video() -> Workflow:
    """Another person in the place of the one in a video."""
    text = "in a black shirt before a brown wall talks and lifts the brows."
    scale = {"upscale_method": "area", "width": 160, "height": 160, "crop": "center"}
    nodes = small_model("Rosa", text) | {
        "other": photo("Elena", "Choose a video"),
        "source": Node("GetVideoComponents", inputs={"video": ("other", "video")}),
        "scaled": Node("ImageScale", "To the model's size", scale, {"image": ("source", "images")}),
        "encoded": Node("VAEEncode", inputs={"pixels": ("scaled", "IMAGE"), "vae": ("load", "VAE")}),
        "apply": apply(guide_identity=True),
        "sample": ksampler(20, 4, conditioning(), ("encoded", "LATENT"), denoise=0.65),
    }
    for shown in ("faces", "overlay", "sheet"):  # so that the page can draw the rest large enough to read
        del nodes[shown]
    columns = [
        [MODEL_GROUP],
        [Group("Photo and video", [["photo", "other"]], IDENTITY_COLOR)],
        [Group("Identity from the photo", [["face", "mesh", "views"]], IDENTITY_COLOR)],
        [PROMPT_GROUP, Group("The video", [["source", "scaled", "encoded"]], "#b06634")],
        [
            Group("Identity", [["id"]], IDENTITY_COLOR),
            Group("Video with the other face", [["apply", "sample"], OUTPUT], VIDEO_COLOR),
        ],
    ]
    return Workflow("05 Another face in a video", nodes | video(), columns)


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
    del nodes["sheet"]
    keep = [["face", "mesh", "views"], ["faces", "overlay", "id", "store"]]
    use = [["pos", "neg", "sample"], ["stored", *OUTPUT]]
    columns = [
        [MODEL_GROUP],
        [PHOTO_GROUP],
        [Group("1 Save an identity", keep, IDENTITY_COLOR)],
        [Group("2 Video from a saved identity", use, VIDEO_COLOR)],
    ]
    return Workflow("06 Save and load an identity", nodes, columns)


def published() -> Workflow:
    """The released recipe."""
    nodes = published_model("Amara") | {"sample": sampler(PUBLISHED_SAMPLER)} | video(size=LANDSCAPE)
    return Workflow("07 Published model", nodes, [*LARGE, [VIDEO_GROUP]])


def stock_sampler() -> Workflow:
    """Apply FantasyID with the stock KSampler, T5 from CLIPLoader."""
    clip = {"clip_name": "t5xxl_fp8_e4m3fn_scaled.safetensors", "type": "pixart"}
    nodes = published_model("Idris") | {
        "clip": Node("CLIPLoader", None, clip),
        "apply": apply(),
        "cond": image_condition(),
        "sample": ksampler(50, 6, CONDITIONED, ("cond", "LATENT")),
    }
    columns = [*LARGE, [STOCK_GROUP]]
    return Workflow("08 Published model with KSampler", nodes | video(size=LANDSCAPE), columns)


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
        "steps": Node("FantasyIDSigmas", None, {"steps": 50}, model, (280, 126)),
        "solver": Node("KSamplerSelect", None, {"sampler_name": "ddim"}),
        "sample": Node("SamplerCustomAdvanced", inputs=sources),
    }
    nodes |= video(("sample", "output"), size=LANDSCAPE)
    made = [["apply", "cond", "solver", "guider", "steps"], ["noise", "sample", *OUTPUT]]
    columns = [*LARGE, [Group("Video", made, VIDEO_COLOR)]]
    return Workflow("09 Published model with custom sampler", nodes, columns)


def mesh_file() -> Workflow:
    """The mesh from a `.ply` file, no DECA and FLAME."""
    nodes = published_model("Ben") | {
        "mesh": Node("FantasyIDLoadMesh", None, {"file": "face.ply"}),
        "overlay": preview("The mesh", ("mesh", "preview")),
        "sample": sampler(PUBLISHED_SAMPLER),
    }
    return Workflow("10 Published model with a mesh file", nodes | video(size=LANDSCAPE), [*LARGE, [VIDEO_GROUP]])


def performance() -> Workflow:
    """What a face does in a video, on another person's mesh."""
    parts = identity(NANO, "Rosa")
    nodes = {key: parts[key] for key in ("photo", "face", "faces", "mesh", "overlay")} | {
        "other": photo("Chiyo", "Choose a video"),
        "source": Node("GetVideoComponents", inputs={"video": ("other", "video")}),
        "capture": Node(
            "FantasyIDCapture", None, {"model_name": NANO}, {"images": ("source", "images"), "fps": ("source", "fps")}
        ),
        "points": preview("Points that were read", ("capture", "preview")),
        "perform": Node(
            "FantasyIDPerform",
            None,
            {"model_name": NANO},
            {"mesh": ("mesh", "mesh"), "performance": ("capture", "performance")},
        ),
        "store": Node(
            "FantasyIDSaveAnimation",
            "Save as .glb (enable to use)",
            inputs={"animation": ("perform", "animation")},
            mode=BYPASSED,
        ),
        "frames": Node("CreateVideo", inputs={"images": ("perform", "frames"), "fps": ("perform", "fps")}),
        "save": video(prefix="FantasyID/performance")["save"],
    }
    person = Group("Who performs", [["face", "mesh"], ["faces", "overlay"]], IDENTITY_COLOR)
    played = Group("What is done", [["source"], ["capture"]], "#b06634")
    moving = Group("The moving mesh", [["perform", "store", "frames"], ["save"]], VIDEO_COLOR)
    columns = [
        [Group("Photo and video", [["photo"], ["other"]], IDENTITY_COLOR)],
        [person, played],
        [Group("Points that were read", [["points"]], "#b06634"), moving],
    ]
    return Workflow("11 Performance on another face", nodes, columns)


def repair() -> Workflow:
    """One face in any video drawn again as a person."""
    text = "in a black shirt before a brown wall talks and lifts the brows."
    nodes = small_model("Rosa", text) | {
        "other": photo("Elena", "Choose a video"),
        "source": Node("GetVideoComponents", inputs={"video": ("other", "video")}),
        **repaired(("source", "images"), {"fps": ("source", "fps")}),
        "frames": Node("CreateVideo", inputs={"images": ("paste", "images"), "fps": ("source", "fps")}),
        "save": video(prefix="FantasyID/repaired", size=(280, 386))["save"],
    }
    for shown in ("faces", "overlay", "sheet"):  # so that the page can draw the rest large enough to read
        del nodes[shown]
    columns = [
        [MODEL_GROUP],
        [
            Group("Photo and video", [["photo", "other"]], IDENTITY_COLOR),
            Group("Identity", [["id"]], IDENTITY_COLOR),
        ],
        [Group("Identity from the photo", [["face", "mesh", "views"]], IDENTITY_COLOR)],
        [PROMPT_GROUP, Group("The face in the video", [["source", "track"]], "#b06634")],
        [Group("Its clip drawn again", [["long", "clip_size", "encoded", "sample"]], VIDEO_COLOR)],
        [Group("Put back", [["decode", "paste", "frames", "save"]], VIDEO_COLOR)],
    ]
    return Workflow("12 Repair a face in a video", nodes, columns)


def takes() -> Workflow:
    """The best of four seeds."""
    text = "in a brown shirt before a blue wall smiles and talks to the camera."
    nodes = small_model("Elena", text) | video(("takes", "latent"))
    one = sampler(NANO_SAMPLER)
    nodes["takes"] = Node("FantasyIDTakes", None, one.widgets, one.inputs | {"encoder": ("load", "encoder")})
    nodes["seen"] = preview("What the judge saw", ("takes", "glimpses"))
    del nodes["sheet"]
    person = Group("Identity from the photo", [["face", "mesh", "views"], ["faces", "overlay", "id"]], IDENTITY_COLOR)
    columns = [*SMALL[:2], [person], [Group("Video", [["takes", "seen"], OUTPUT], VIDEO_COLOR)]]
    return Workflow("16 Best of four takes", nodes, columns)


def two_people() -> Workflow:
    """Each drawn alone before the same wall, then put side by side: the small model knows one person in a picture."""
    box = identity_box()
    nodes = models(NANO)
    sides = []
    people = {
        "Rosa": ("On the left", "in a white shirt before a grey wall talks to the camera."),
        "Ben": ("On the right", "in a blue shirt before a grey wall looks at the camera and smiles."),
    }
    for number, (person, (title, text)) in enumerate(people.items(), 1):
        photo_of, pos, who, drawn, decoded = (f"{name}{number}" for name in ("photo", "pos", "id", "sample", "decode"))
        nodes[photo_of] = photo(person, title)
        nodes[pos] = prompt(text, who=(photo_of, "who"))
        nodes[who] = Node(box.name, title, {}, {"encoder": ("load", "encoder"), "photo": (photo_of, "photo")})
        nodes[drawn] = sampler(NANO_SAMPLER | {"seed": 41 + number}, pos=pos)
        nodes[drawn].inputs["identity"] = (who, "identity")
        nodes[decoded] = Node("VAEDecode", inputs={"samples": (drawn, "LATENT"), "vae": ("load", "VAE")})
        sides.append([Group(title, [[pos, drawn, decoded]], VIDEO_COLOR)])
    halves = {"image1": ("decode1", "IMAGE"), "image2": ("decode2", "IMAGE")}
    saved = video(size=(280, 386))
    saved["frames"].inputs = {"images": ("both", "IMAGE")}
    nodes |= {
        "neg": negative(),
        "both": Node("ImageStitch", "Side by side", {}, halves),
        "frames": saved["frames"],
        "save": saved["save"],
    }
    columns = [
        [MODEL_GROUP],
        [Group("Photos", [["photo1", "photo2"]], IDENTITY_COLOR), Group("Negative prompt", [["neg"]])],
        [Group("Identities", [["id1", "id2"]], IDENTITY_COLOR)],
        *sides,
        [Group("Together", [["both", "frames", "save"]], VIDEO_COLOR)],
    ]
    return Workflow("13 Two people", nodes, columns, [box])


def one_then_the_other() -> Workflow:
    """The first half of the video one person, the second half another."""
    text = "A person in a white shirt before a blue wall looks at the camera and smiles."
    half = 1.55  # seconds, of 25 frames at 8 a second
    times = {"to_second_1": half, "from_second_2": half, "width_1": 1, "x_2": 0, "width_2": 1}
    box = identity_box()
    nodes = models(NANO) | prompts(text)
    inputs: dict[str, Source] = {"model": ("load", "MODEL")}
    for number, (person, title) in enumerate({"Amara": "The first", "Ben": "The second"}.items(), 1):
        photo_of, who = f"photo{number}", f"id{number}"
        nodes[photo_of] = photo(person, f"Choose {title.lower()}")
        nodes[who] = Node(box.name, title, {}, {"encoder": ("load", "encoder"), "photo": (photo_of, "photo")})
        inputs[f"identity_{number}"] = (who, "identity")
    nodes["people"] = Node("FantasyIDPeople", None, {"guide_identity": True, **times}, inputs)
    nodes["plan"] = preview("The plan", ("people", "plan"))
    nodes["sample"] = sampler(NANO_SAMPLER, ("people", "MODEL"))
    nodes["sample"].inputs["identity"] = ("people", "identity")
    columns = [
        [MODEL_GROUP, Group("Negative prompt", [["neg"]])],
        [Group("Photos", [["photo1", "photo2"]], IDENTITY_COLOR), Group("Prompt", [["pos"]])],
        [Group("Identities", [["id1", "id2"]], IDENTITY_COLOR)],
        [Group("Who is there when", [["people"]], IDENTITY_COLOR)],
        [Group("Video", [["sample", "plan"], OUTPUT], VIDEO_COLOR)],
    ]
    return Workflow("14 One, then the other", nodes | video(), columns, [box])


def portrait_video() -> Workflow:
    """A video of the size that the model knows, on a portrait canvas of its own picture, blurred."""
    text = "in a white shirt before a yellow wall smiles and talks to the camera."
    wide = {"upscale_method": "bicubic", "width": 160, "height": 288, "crop": "center"}
    canvas: Source = ("blurred", "IMAGE")
    box = identity_box()
    nodes = models(NANO) | prompts(text, WHO) | {"photo": photo("Amara")} | {"sample": sampler(NANO_SAMPLER)} | video()
    nodes |= {
        "id": Node(box.name, inputs={"encoder": ("load", "encoder"), "photo": ("photo", "photo")}),
        "canvas": Node("ImageScale", "A portrait canvas of it", wide, {"image": ("decode", "IMAGE")}),
        "blurred": Node("ImageBlur", None, {"blur_radius": 12, "sigma": 6}, {"image": ("canvas", "IMAGE")}),
        "joined": Node(
            "ImageCompositeMasked",
            "The video on the canvas",
            {"x": 0, "y": 64},
            {"destination": canvas, "source": ("decode", "IMAGE")},
        ),
    }
    nodes["frames"].inputs["images"] = ("joined", "IMAGE")
    nodes["decode"].size = nodes["sample"].size
    columns = [
        [MODEL_GROUP],
        [PHOTO_GROUP, PROMPT_GROUP],
        [Group("Identity", [["id"]], IDENTITY_COLOR)],
        [Group("Video", [["sample", "decode"]], VIDEO_COLOR)],
        [Group("Portrait video", [["canvas", "blurred", "joined"], ["frames", "save"]], "#b06634")],
    ]
    return Workflow("15 Portrait video", nodes, columns, [box])


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
        performance(),
        repair(),
        two_people(),
        one_then_the_other(),
        portrait_video(),
        takes(),
    ]
