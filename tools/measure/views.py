"""The tables of docs/views.md: `python -m tools.measure.views [--people N] [--recognition dlib]`.

Who is who, on the host's example clips and on synthetic people; what new views are worth, against renders from the same
sides; and how long a video takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fantasyid_core.detection import dense_landmarks
from fantasyid_core.detection.alignment import FFHQ_TEMPLATE, align
from fantasyid_core.detection.dense_landmarks import ensure_dense_landmarks
from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.detection.head_pose import HeadPose
from fantasyid_core.meters import embedding
from fantasyid_core.reconstruction.dense_fit import fit_dense
from fantasyid_core.reconstruction.face_mesh import FaceMesh, from_dense_landmarks
from fantasyid_core.reconstruction.flame import Flame
from fantasyid_core.views.appearance import BUILT_IN, Recogniser
from fantasyid_core.views.collection import FaceViews, collect
from fantasyid_core.views.novel_views import grid, new_views
from fantasyid_core.views.recognition import assign_identities
from fantasyid_core.views.tracking import Track, follow
from fantasyid_lab.people.camera import project
from fantasyid_lab.people.clip import clip, still
from fantasyid_lab.people.head import LEFT_EYE, RIGHT_EYE, SKIN, load
from fantasyid_lab.people.person import TEST, person
from fantasyid_lab.people.render import render
from tools.measure.labelled_faces import photos
from tools.measure.reconstruction import face_model

PACKAGES = ("api", "video", "other")
# One face, or the largest of several, through most of the clip. Clips in one line show one person.
CLIPS = (
    ("api_bytedance_image_to_video-1",),
    ("api_hailuo_minimax_i2v-1",),
    ("api_runway_gen3a_turbo_image_to_video-1",),
    ("api_runway_gen4_turo_image_to_video-1",),
    ("api_topaz_video_enhance-1", "api_topaz_video_enhance-2"),
    ("api_veo2_i2v-1",),
    ("wan2.1_fun_control-1", "wan2.1_fun_control-2"),
    ("wan2.1_fun_inp-1",),
    ("ltxv_text_to_video-1",),
    ("video_humo-1",),
    ("video_wan2.1_alpha_t2v_14B-1",),
    ("video_wan2_2_14B_flf2v-1",),
    ("video_wan2_2_14B_s2v-1",),
    ("video_wan2_2_14B_t2v-1",),
    ("video_wan_vace_14B_v2v-1",),
    ("video_wan_vace_14B_v2v-2",),  # the same video, edited into another person
    ("video_wan_vace_flf2v-1",),
    ("video_wan_vace_inpainting-1", "video_wan_vace_inpainting-2"),
    ("video_wan_vace_outpainting-1", "video_wan_vace_outpainting-2"),
)
PIECES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--people", type=int, default=20, help="synthetic people, of the test split")
    parser.add_argument("--recognition", choices=("looks", *embedding.EMBEDDINGS), default="looks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    looks = arguments.recognition == "looks"
    recogniser = BUILT_IN if looks else embedding.recogniser(embedding.load(arguments.recognition))
    people = [person(seed) for seed in TEST[: arguments.people]]
    decisions("host's clips", host_tracks(recogniser), recogniser)
    decisions(f"{len(people)} synthetic people, two clips each", synthetic_tracks(people, recogniser), recogniser)
    compare(people[:8])
    real_photos()
    speed()


# Who is who


def host_tracks(recogniser: Recogniser) -> list[list[Track]]:
    """For each person of `CLIPS` the longest track of each clip."""
    files = {file.stem: file for package in PACKAGES for file in _folder(package).glob("*.webp")}
    return [[_longest(_frames(files[name]), recogniser) for name in names] for names in CLIPS]


def synthetic_tracks(people: Iterable, recogniser: Recogniser) -> list[list[Track]]:
    """For each person two clips, as if from two days: other light, shirt, background, and hair for a third of them."""
    found = []
    for one in people:
        frames = render([clip(one, seed, 13) for seed in (0, 1)], 256).frames
        found.append([_longest(each, recogniser) for each in frames])
    return found


def _longest(frames: Tensor, recogniser: Recogniser) -> Track:
    tracks = follow(frames, recogniser).tracks
    return max(tracks, key=lambda track: len(track.frames)) if tracks else Track()


def _folder(package: str) -> Path:
    return Path(importlib.util.find_spec(f"comfyui_workflow_templates_media_{package}").origin).parent / "templates"


def _frames(file: Path) -> Tensor:
    with Image.open(file) as picture:
        frames = []
        for number in range(0, picture.n_frames, 2):
            picture.seek(number)
            frames.append(torch.from_numpy(np.array(picture.convert("RGB"))))
    return torch.stack(frames).float() / 255


def decisions(title: str, people: list[list[Track]], recogniser: Recogniser) -> None:
    """References are the first faces of clips; each is asked about one track at a time, as after a cut."""
    counts = {name: [0, 0, 0] for name in ("later in the clip", "another clip of the person", "somebody else")}

    def ask(name: str, reference: Tensor, track: Track) -> None:
        if track.frames:
            assignment = assign_identities(reference, [track], recogniser)
            answer = (assignment.person, assignment.ambiguous, assignment.others)
            counts[name] = [count + len(tracks) for count, tracks in zip(counts[name], answer, strict=True)]

    for i, clips in enumerate(people):
        for j, track in enumerate(clips):
            if not track.frames:
                continue
            reference = track.sightings[0].identity
            for piece in range(1, PIECES):
                ask("later in the clip", reference, _piece(track, piece))
            for k, other in enumerate(clips):
                if k != j:
                    ask("another clip of the person", reference, other)
            for k, others in enumerate(people):
                for other in others if k != i else ():
                    ask("somebody else", reference, other)
    print(f"\n{title}: the person / not certain / somebody else")
    for name, (same, ambiguous, different) in counts.items():
        print(f"  {name:28}{same:6}{ambiguous:6}{different:6}")


def _piece(track: Track, number: int) -> Track:
    """A quarter of a track, as a track of its own."""
    piece, length = Track(), max(track.frames) + 1
    for sighting in track.sightings:
        if number * length <= sighting.frame * PIECES < (number + 1) * length:
            piece.add(sighting)
    return piece


# New views


def compare(people: list) -> None:
    """New views on the true mesh, beside what the camera sees from there, in even light."""
    print("\nnew views: photo's yaw, new yaw and pitch: share of the face seen; error of it, mean; detail correlation")
    for source in ((0, 0), (30, 0)):
        for side in ((15, 10), (-15, -10), (30, 0), (-30, 0), (45, 0), (-45, 0)):
            if side == source:
                continue
            rows = torch.tensor([compared(one, source, side) for one in people])
            share, error, alike = rows.mean(0).tolist()
            print(f"  {source[0]:4}  {side[0]:4} {side[1]:4}   {share:5.0%}  {error:.3f}  {alike:.2f}")


def compared(one, source: tuple[int, int], side: tuple[int, int], size: int = 288) -> tuple[float, float, float]:
    pose = np.array([(*source, 0), (*side, 0)], np.float32)
    camera = np.tile(np.array([[0, -0.03, 0.4, 3.0, 0]], np.float32), (2, 1))
    clip = still(one, 0)
    light = dataclasses.replace(clip.scene.light, lamp=np.zeros(3, np.float32), sky=np.full(3, 0.9, np.float32))
    clip = dataclasses.replace(
        clip,
        pose=pose,
        camera=camera,
        expression=np.repeat(clip.expression, 2, 0),
        scene=dataclasses.replace(clip.scene, light=light),
    )
    rendered = render([clip], size)
    head = load()
    vertices = head.vertices(one.shape_code[None], torch.from_numpy(clip.expression[:1]), torch.from_numpy(pose[:1]))
    in_photo = project(vertices, torch.from_numpy(camera[:1]), size)[0]
    in_photo[:, 2] = -vertices[0, :, 2] * size / 0.4
    photo, landmarks = rendered.frames[0], rendered.landmarks[0, :, :5]
    crop, to_crop = align(photo[0], landmarks[0])
    face = DetectedFace(photo[0], torch.tensor([0.0, 0, 160, 160]), landmarks[0], 1, crop, to_crop, HeadPose(*source))
    skin = (head.parts == SKIN) | (head.parts == LEFT_EYE) | (head.parts == RIGHT_EYE)
    views = new_views(face, FaceMesh(vertices[0], head.faces[skin], None, in_photo), [side], min_coverage=0.0)
    true, _ = align(photo[1], landmarks[1])
    covered = views.coverage[1] > 0
    part = torch.zeros_like(covered)
    part[176:448, 128:384] = True
    places = covered & part
    inner = places & (_box((~covered).float()) == 0)
    details = torch.stack([_box(x.mean(-1), 5) - _box(x.mean(-1)) for x in (views.crops[1], true)])
    alike = float(torch.corrcoef(details[:, inner])[0, 1])
    return float(views.scores[1]), float((views.crops[1] - true).abs().mean(-1)[places].mean()), alike


def real_photos() -> None:
    """How far faces of installed photos are turned by views at ±25°, as `read_yaw` reads it."""
    model = face_model()
    print("\nreal photos turned to −25° and 25°: the photo's yaw; yaw that is read in the views")
    for photo in photos():
        for face in detect(photo.read()) if photo.people else ():
            face = ensure_dense_landmarks(face)
            if min(face.box[2:] - face.box[:2]) < 60 or abs(face.pose.yaw) > 15:
                continue
            views = turned(face, model)
            yaws = [read_yaw(*each, model) for each in zip(views.crops[1:], views.coverage[1:], strict=True)]
            at = " ".join(f"{pose:+.0f}°: {yaw:+.0f}°" for pose, yaw in zip(views.poses[1:, 0], yaws, strict=True))
            print(f"  {photo.name:40} {face.pose.yaw:+4.0f}°   {at}")


def turned(face: DetectedFace, model: Flame, yaw: float = 25.0) -> FaceViews:
    """Views of a photo at ± `yaw`, on the mesh that the dense fit finds."""
    return new_views(face, from_dense_landmarks(face, model), grid(yaw, 0, 2, 1), min_coverage=0.0)


def read_yaw(crop: Tensor, coverage: Tensor, model: Flame) -> float:
    """Yaw in degrees as the dense fit reads it in a new view (512, 512, 3).

    Where the view shows nothing its edge's colours go on: a face cut out on grey is read as turned half as far, the
    true picture of a turned head too.
    """
    points, _ = dense_landmarks.read(_filled(crop, coverage), torch.tensor(FFHQ_TEMPLATE)[None])
    return float(torch.asin(-fit_dense(model, points[None]).rotation[0, 0, 2, 0].clamp(-1, 1)).rad2deg())


def _filled(picture: Tensor, known: Tensor) -> Tensor:
    """A picture (S, S, 3) whose other pixels are what ever coarser copies of it know (S a power of 2)."""
    colour, weight = picture.movedim(-1, 0)[None] * known, known[None, None]
    if not (weight == 0).any():
        return picture
    pool = torch.nn.functional.avg_pool2d
    mean, there = pool(colour, 2), pool(weight, 2)
    coarse = _filled((mean / there.clamp(min=1e-6))[0].movedim(0, -1), (there > 0)[0, 0].float())
    finer = torch.nn.functional.interpolate(coarse.movedim(-1, 0)[None], scale_factor=2, mode="bilinear")
    return torch.where(weight > 0, colour, finer)[0].movedim(0, -1)


def _box(picture: Tensor, size: int = 41) -> Tensor:
    """Mean over size × size about each pixel of (H, W)."""
    half = size // 2
    rows = torch.nn.functional.avg_pool2d(picture[None, None], (size, 1), 1, (half, 0))
    return torch.nn.functional.avg_pool2d(rows, (1, size), 1, (0, half))[0, 0]


# Speed


def speed() -> None:
    """A video of 49 frames of 480 × 720, one face, on one core."""
    frames = render([clip(person(TEST[0]), 0, 49)], 480).frames[0]
    frames = (
        torch.nn.functional.pad(frames.movedim(-1, 1), (120, 120, 0, 0), mode="replicate").movedim(1, -1).contiguous()
    )
    reference = detect(frames[0])[0]
    start, worked = time.perf_counter(), time.process_time()
    views = collect(reference, frames)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    print(f"\n49 frames of 480 × 720: {seconds:.1f} s, {worked:.1f} s of one core; {len(views.crops)} views")


if __name__ == "__main__":
    main()
