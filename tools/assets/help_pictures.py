"""`python -m tools.assets.help_pictures [NODE …]`: a picture for each help page, into `web/docs/pictures/`.

What a node gets and what it makes of it, with the example people and FantasyID-nano; minutes on a CPU. Those named, or
all.
"""

import sys
from collections.abc import Callable

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from fantasyid_core.detection import face_track
from fantasyid_core.detection.by_hand import face_in_mask
from fantasyid_core.detection.selection import find_face, numbered
from fantasyid_core.dit.region import Region
from fantasyid_core.dit.step_cache import CacheSettings
from fantasyid_core.images import from_pil, load_photo, to_pil
from fantasyid_core.meters import embedding, landmark_motion, meters
from fantasyid_core.meters.judge import best_first, by_tokens, judge_video
from fantasyid_core.reconstruction import animation, flame, render
from fantasyid_core.sampling.schedule import TRAIN_STEPS, timesteps
from fantasyid_core.sampling.windows import windows
from fantasyid_core.video.face_clip import paste
from fantasyid_core.video.latents import squeeze_to_frame
from fantasyid_core.video.plan import arrange, draw_plan
from fantasyid_core.views.collection import FaceViews, collect
from fantasyid_core.views.contact_sheet import contact_sheet
from fantasyid_core.views.novel_views import grid, new_views
from fantasyid_lab import nano
from fantasyid_lab.evaluation.modes import Mode

from ..environment import ROOT
from .draw_example_photos import PEOPLE, PHOTOS
from .draw_thumbnails import frames
from .help_studio import Studio
from .picture_layout import GAP, GROUND, INK, WIDTH, flow, font, laid_out, stage
from .shipped_workflows import FIVE

PICTURES = ROOT / "web" / "docs" / "pictures"
LIMIT = 40_000  # bytes
SAYS = "A young woman with long black hair in a white shirt before a yellow wall smiles and talks to the camera."
CHIYO = "A woman with long black hair"
MOMENTS = (8, 20)  # frames of the captured video
PERFORMERS = ("Amara", "Rosa", "Ben")
TREE = "models/fantasyid/FantasyID/\n  transformer_ema/\n  vae/\n  text_encoder/\n  face_encoder/\n  face_model/"


def bars(rows: list[tuple[str, list[tuple[float, float]]]]) -> Image.Image:
    """Named rows of bars (from, to) on a line from 0 to 1."""
    picture = Image.new("RGB", (WIDTH - 2 * GAP, 26 * len(rows) + 4), GROUND)
    draw = ImageDraw.Draw(picture)
    for i, (name, spans) in enumerate(rows):
        top = 4 + 26 * i
        draw.text((0, top + 3), name, fill=INK, font=font(12))
        for start, end in spans:
            x0, x1 = (110 + (picture.width - 116) * at for at in (start, end))
            draw.rectangle((x0, top, max(x1, x0 + 2), top + 20), fill=(92, 140, 220), outline=GROUND)
    return picture


def mesh_picture(studio: Studio, person: str) -> Tensor:
    """The mesh from the front."""
    mesh = studio.mesh(person)
    return render.shade(mesh.vertices, mesh.faces)


def apply(studio: Studio) -> Image.Image:
    strengths = (0.0, 1.0, 1.5)
    made = [(studio.video("Amara", SAYS, strength)[12], f"strength {strength:g}") for strength in strengths]
    return flow(stage((studio.photo("Amara"), "photo")), stage(*made, across=3))


def capture(studio: Studio) -> Image.Image:
    video, track, played = studio.captured
    faces = [face_track.drawn(video[i], track.points[i], 256) for i in MOMENTS]
    shown = animation.shade(studio.performed("Chiyo", played), 256)
    return flow(
        stage(*((face, f"frame {i}") for face, i in zip(faces, MOMENTS, strict=True)), across=2),
        stage(*((shown[i], "captured") for i in MOMENTS), across=2),
    )


def tracked(studio: Studio) -> Image.Image:
    wide, clip = studio.wide
    first, corners = to_pil(wide[0]), clip.to_clip[0].tolist()
    box = [-corners[1] / corners[0], -corners[2] / corners[0]]
    side = clip.mask.shape[1] / corners[0]
    ImageDraw.Draw(first).rectangle([*box, box[0] + side, box[1] + side], outline=(80, 255, 80), width=2)
    return flow(
        stage((first, "video"), wide=2),
        stage(*((clip.frames[i], f"clip, frame {i}") for i in MOMENTS)),
        stage((clip.mask[MOMENTS[0]][..., None].expand(-1, -1, 3), "mask")),
    )


def paste_face(studio: Studio) -> Image.Image:
    wide, clip = studio.wide
    drawn = studio.repaired("Amara", 0.5)
    pasted, _ = paste(wide, clip, drawn)
    return flow(
        stage((wide[MOMENTS[0]], "video"), wide=2),
        stage((drawn[MOMENTS[0]], "clip drawn again")),
        stage((pasted[MOMENTS[0]], "video with it"), wide=2),
    )


def people(studio: Studio) -> Image.Image:
    pair, boxes = ("Amara", "Ben"), ((0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 0.5, 1.0))
    regions = [Region(box=boxes[0]), Region(from_second=1.0, box=boxes[1])]
    first = arrange([studio.face(name).crop for name in pair], boxes)
    return flow(
        stage(*((studio.photo(name), f"identity_{number}") for number, name in enumerate(pair, 1)), across=1),
        stage((draw_plan(regions, (1, 2), 360, 240, 3.0), "plan"), wide=2),
        stage((squeeze_to_frame(first, 160, 240)[0], "identity: the first frame"), wide=2),
    )


def load_performance(studio: Studio) -> Image.Image:
    frames = animation.shade(studio.performed("Rosa", studio.captured[2]), 256)
    return flow(
        stage(("performance_00001_\n.safetensors", "output/fantasyid/")),
        stage(*((frames[i], f"frame {i}") for i in MOMENTS), across=2, wide=2),
    )


def perform(studio: Studio) -> Image.Image:
    video, _, played = studio.captured
    rows = [animation.shade(studio.performed(person, played), 256) for person in PERFORMERS]
    return flow(
        stage(*((video[i], f"video, frame {i}") for i in MOMENTS)),
        *(stage(*((frames[i], person) for i in MOMENTS)) for frames, person in zip(rows, PERFORMERS, strict=True)),
    )


def save_animation(studio: Studio) -> Image.Image:
    frames = animation.shade(studio.performed("Rosa", studio.captured[2]), 256)
    return flow(
        stage(*((frames[i], f"frame {i}") for i in MOMENTS), across=2, wide=2),
        stage(("animation_00001_.glb", "for Preview 3D, Blender")),
    )


def save_performance(studio: Studio) -> Image.Image:
    video, _, _ = studio.captured
    return flow(
        stage((video[MOMENTS[1]], "video")),
        stage(("performance", "of FantasyID Capture")),
        stage(("performance_00001_\n.safetensors", "output/fantasyid/")),
    )


def detect_face(studio: Studio) -> Image.Image:
    group = Image.new("RGB", (3 * 512, 512))
    for i, person in enumerate(("Ben", "Amara", "Rosa")):
        group.paste(studio.photo(person), (512 * i, 0))
    found = find_face(from_pil(group)[None], "rightmost")
    preview = numbered(found.faces, found.face, "good")
    return flow(stage((preview, "preview, select: rightmost"), wide=3), stage((found.face.crop, "crop")))


def download(studio: Studio) -> Image.Image:
    return flow(
        stage(("Hugging Face\nor ModelScope", "14 GB, when you confirm it")),
        stage((TREE, "")),
        stage(("FantasyID Load Model\nmodel_name: FantasyID", "press R first")),
    )


def drawn_face(studio: Studio) -> Image.Image:
    drawing = ImageOps.posterize(studio.photo("Rosa").convert("RGB"), 2)
    oval = Image.new("L", drawing.size)
    x0, y0, x1, y1 = studio.face("Rosa").box.tolist()
    ImageDraw.Draw(oval).ellipse((x0, y0, x1, y1), fill=255)
    face = face_in_mask(from_pil(drawing), torch.from_numpy(from_pil(oval.convert("RGB")).numpy()[..., 0]))
    painted = Image.composite(Image.blend(drawing, Image.new("RGB", drawing.size, "white"), 0.5), drawing, oval)
    return flow(
        stage((painted, "a drawing, mask painted")),
        stage((numbered([face], face), "preview")),
        stage((face.crop, "crop")),
    )


def example_photo(studio: Studio) -> Image.Image:
    return flow(stage(*((studio.photo(person), person) for person in PEOPLE), across=6))


def faster(studio: Studio) -> Image.Image:
    exact = studio.video("Amara", SAYS)[12]
    fast = studio.video("Amara", SAYS, mode=Mode("cache", CacheSettings()))[12]
    apart = ((fast - exact).abs() * 4).clamp(max=1)
    return flow(stage((exact, "off"), (fast, "step_cache: first block"), (apart, "what changed, four times"), across=3))


def fuse(studio: Studio) -> Image.Image:
    crops = [(crop, "") for crop in filmed("Ben", 4).crops]
    return flow(
        stage((laid_out(stage(*crops, across=2), 256), "views"), (mesh_picture(studio, "Ben"), "mesh"), across=2),
        stage(("identity:\n115 tokens and\nthe reference\ncrop", "for FantasyID Sampler")),
    )


def filmed(person: str, count: int) -> FaceViews:
    """Views of an example person from the video."""
    pictures = torch.stack([from_pil(frame) for frame in frames(person, 13)])
    return collect(find_face(pictures).face, pictures, count)


def image_condition(studio: Studio) -> Image.Image:
    crop = studio.face("Elena").crop
    squeezed = squeeze_to_frame(crop, 480, 720)[0]
    return flow(
        stage((crop, "the identity's reference crop")),
        stage((squeezed, "first latent frame, 720 by 480")),
        stage(("12 latent frames\nof zeros", "the rest, for the sampler")),
    )


def likeness_meter(studio: Studio) -> Image.Image:
    face, video = studio.face("Amara"), studio.video("Amara", SAYS)
    others = [load_photo(PHOTOS / f"{person}.jpg") for person in ("Chiyo", "Rosa", "Elena")]
    found = meters.measure_likeness(video, face.image, face.landmarks, embedding.load("dlib"), gallery=others)
    return flow(stage((face.crop, "face"), (video[12], "frames")), stage((found.plot, "plot"), wide=3))


def likeness_gate(studio: Studio) -> Image.Image:
    encode = studio.generator.model.encoder.face_tokens
    judge = by_tokens(encode, encode(studio.face("Chiyo").crop[None])[0])
    videos = {name: torch.stack([from_pil(frame) for frame in frames(name, 9)]) for name in ("Rosa", "Chiyo", "Elena")}
    scores = {name: judge_video(judge, video).similarity for name, video in videos.items()}
    order = best_first(torch.tensor(list(scores.values())))
    shown = [(video[4], f"{scores[name]:.3f}") for name, video in videos.items()]
    return flow(
        stage((studio.face("Chiyo").crop, "face")),
        stage(*shown, across=3, wide=2),
        stage(*(shown[i] for i in order[:1]), across=1),
    )


def load_identity(studio: Studio) -> Image.Image:
    return flow(stage(("identity_00001_\n.safetensors", "output/fantasyid/")), stage(*acts(studio), across=2))


def acts(studio: Studio) -> list[tuple[Tensor, str]]:
    """One person in two videos, with what happens."""
    return [(studio.video("Chiyo", f"{CHIYO} {FIVE[act]}")[16], act) for act in ("smiles", "turns")]


def load_mesh(studio: Studio) -> Image.Image:
    return flow(
        stage(("face.ply or face.obj,\n5023 vertices", "input/"), wide=2),
        stage((mesh_picture(studio, "Idris"), "preview")),
    )


def load_model(studio: Studio) -> Image.Image:
    return flow(
        stage((TREE, "")),
        stage(
            ("MODEL", "to the sampler"),
            ("VAE", "to VAE Decode"),
            ("encoder", "to FantasyID Feature Fusion"),
        ),
    )


def load_text_encoder(studio: Studio) -> Image.Image:
    return flow(
        stage(("text_encoder/", "in the model's folder")),
        stage(("CLIP", "T5-XXL; FantasyID-nano's own")),
        stage(("FantasyID Text Encode", "prompt and negative prompt")),
    )


def long_video(studio: Studio) -> Image.Image:
    plan, count = windows(25, 12), 21
    spans = plan.over(count)
    rows = [(f"window {i}", [(span[0] / count, (span[-1] + 1) / count)]) for i, span in enumerate(spans, 1)]
    chart = bars([*rows, ("81 frames", [(0, 1)])])
    return flow(stage((chart, f"FantasyID-nano: {len(spans)} windows of 25 frames, sharing 12 or more")))


def motion_meter(studio: Studio) -> Image.Image:
    video = studio.video("Chiyo", f"{CHIYO} {FIVE['turns']}")
    model = flame.load(nano.SHIPPED / "face_model" / "generic_model.safetensors")
    plot = meters.motion_plot(landmark_motion.measure(video, model).motion)
    return flow(stage((video[0], "first frame"), (video[-1], "last frame")), stage((plot, "plot"), wide=2))


def turned(studio: Studio) -> Image.Image:
    views = new_views(studio.face("Elena"), studio.mesh("Elena"), grid(30.0, 15.0, 3, 3), 0.5)
    return flow(stage((studio.photo("Elena"), "photo")), stage((contact_sheet(views), "contact_sheet"), wide=3))


def reconstruct(studio: Studio) -> Image.Image:
    face, mesh = studio.face("Ben"), studio.mesh("Ben")
    overlay = render.overlay(face.image, mesh.in_photo, mesh.faces)
    return flow(
        stage((studio.photo("Ben"), "photo")),
        stage((overlay, "overlay")),
        stage((mesh_picture(studio, "Ben"), "preview")),
    )


def sampler(studio: Studio) -> Image.Image:
    video = studio.video("Amara", SAYS)
    shown = [(video[i], f"frame {i}") for i in (0, 8, 16, 24)]
    return flow(stage((studio.photo("Amara"), "photo")), stage(*shown, across=4))


def save_identity(studio: Studio) -> Image.Image:
    return flow(
        stage((studio.photo("Chiyo"), "photo")),
        stage(("identity", "of FantasyID Feature Fusion")),
        stage(("identity_00001_\n.safetensors", "output/fantasyid/")),
    )


def save_mesh(studio: Studio) -> Image.Image:
    return flow(
        stage((mesh_picture(studio, "Rosa"), "mesh")),
        stage(("mesh_00001_.glb", "for Preview 3D, Blender"), (".obj or .ply", "for FantasyID Load Mesh"), wide=2),
    )


def sigmas(studio: Studio) -> Image.Image:
    def marks(steps: int) -> list[tuple[float, float]]:
        return [(1 - t / TRAIN_STEPS, 1 - t / TRAIN_STEPS) for t in timesteps(steps)]

    chart = bars([(f"{steps} steps", marks(steps)) for steps in (10, 20, 50)])
    return flow(stage((chart, "where each step lies, from pure noise (left) to the video (right)")))


def takes(studio: Studio) -> Image.Image:
    seen, scores, best = studio.takes("Amara", SAYS)
    shown = [
        (pictures[1], f"seed {42 + number}: {score:.3f}")
        for number, (pictures, score) in enumerate(zip(seen, scores, strict=True))
    ]
    return flow(
        stage((studio.photo("Amara"), "photo")),
        stage(*shown, across=3),
        stage((best[12], "the best, finished")),
    )


def text_encode(studio: Studio) -> Image.Image:
    return flow(stage((studio.photo("Chiyo"), "one identity")), stage(*acts(studio), across=2))


def turntable(studio: Studio) -> Image.Image:
    mesh = studio.mesh("Amara")
    shown = render.turntable(mesh.vertices, mesh.faces, 6, 256)
    return flow(stage(*((frame, f"frame {i}") for i, frame in enumerate(shown)), across=6))


def views(studio: Studio) -> Image.Image:
    found = filmed("Ben", 6)
    return flow(stage((found.crops[0], "face")), stage((contact_sheet(found, 3), "contact_sheet"), wide=3))


DRAWN: dict[str, Callable[[Studio], Image.Image]] = {
    "FantasyIDApply": apply,
    "FantasyIDCapture": capture,
    "FantasyIDDetectFace": detect_face,
    "FantasyIDDownload": download,
    "FantasyIDDrawnFace": drawn_face,
    "FantasyIDExamplePhoto": example_photo,
    "FantasyIDFaceTrack": tracked,
    "FantasyIDFaster": faster,
    "FantasyIDFuse": fuse,
    "FantasyIDImageCondition": image_condition,
    "FantasyIDLikenessGate": likeness_gate,
    "FantasyIDLikenessMeter": likeness_meter,
    "FantasyIDLoadIdentity": load_identity,
    "FantasyIDLoadMesh": load_mesh,
    "FantasyIDLoadModel": load_model,
    "FantasyIDLoadTextEncoder": load_text_encoder,
    "FantasyIDLoadPerformance": load_performance,
    "FantasyIDLongVideo": long_video,
    "FantasyIDMotionMeter": motion_meter,
    "FantasyIDNewViews": turned,
    "FantasyIDPasteFace": paste_face,
    "FantasyIDPeople": people,
    "FantasyIDPerform": perform,
    "FantasyIDReconstruct": reconstruct,
    "FantasyIDSampler": sampler,
    "FantasyIDSaveAnimation": save_animation,
    "FantasyIDSaveIdentity": save_identity,
    "FantasyIDSaveMesh": save_mesh,
    "FantasyIDSavePerformance": save_performance,
    "FantasyIDSigmas": sigmas,
    "FantasyIDTakes": takes,
    "FantasyIDTextEncode": text_encode,
    "FantasyIDTurntable": turntable,
    "FantasyIDViews": views,
}


def save(picture: Image.Image, name: str) -> None:
    """Write `NAME.webp`, as good as the limit of bytes allows."""
    file = PICTURES / f"{name}.webp"
    for quality in range(88, 30, -6):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size <= LIMIT:
            break


def main() -> None:
    """Draw those that are named, or all."""
    names = sys.argv[1:] or list(DRAWN)
    if unknown := [name for name in names if name not in DRAWN]:
        sys.exit(f"Nothing draws {', '.join(unknown)}: write a function for it and add it to DRAWN in {__file__}.")
    PICTURES.mkdir(exist_ok=True)
    studio = Studio()
    for name in names:
        save(DRAWN[name](studio), name)


if __name__ == "__main__":
    main()
