"""People rendered straight into device memory: what all stages train on. Nothing is stored on a disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fantasyid_core.dit import byte_tokens

from ..people.batching import constant
from ..people.clip import CLIP_ZOOM, Clip, clip, still
from ..people.colours import COLOURS
from ..people.person import Person, person
from ..people.render import GAMMA, PARTS, render
from ..people.variety import varied
from .data import randint
from .settings import PoolSettings

FACE = ("face", "lips", "eyes", "mouth")
CLIPS_PER_FOUR = 5  # people who are filmed: one in four has a second clip
LIFT = 0.02  # of a photo's height: how far the middle of a picture framed as clips are lies above the photo's
MASK_SCALE = 4  # the face masks' pixels are this many px wide


class Pool:
    """A ring of people: their clips, photos and what is true of them.

    The n-th chunk of people is the same in every run with this split and seed, so `count` says what the pool holds.

    Args:
        settings: sizes.
        split: the seeds of the people that may be in it.
        seed: which of them come first.

    Attributes (N clips, P people, S photos of each; rows beyond `clips` and `people` are not filled yet):
        frames: (N, T, size, size, 3) uint8; face_mask: (N, T, size / 4, size / 4) uint8, 255 where the face is.
        landmarks (N, T, 68, 2) px, pose (N, T, 3) degrees, expression (N, T, 50): of every frame.
        shirt, background: (N,) int64 into `COLOURS`; owner: (N,) int64, whose clip it is.
        caption: (N + P · S, 226) int16, of the clips, then of the photos, person by person.
        stills: (P, S, still_size, still_size, 3) uint8; still_landmarks, still_pose, still_expression: of each.
        still_hair: (P, S, 4): colour in sRGB and whether it is long, each about standard normal.
        shape: (P, 100) shape codes; appearance: (P, L) paint, sex, age …, each about standard normal.
        latents: (N, t, 16, h, w) bfloat16 (float32 off a GPU) after `encode_with`; latent_face_mask: (N, t, h, w) 0…1.
        picture_latents (P, S, 16, h, w), latent_picture_mask (P, S, h, w): likewise of the photos, framed as clips are;
        picture_landmarks: (P, S, 68, 2) px of such a picture.
    """

    def __init__(self, settings: PoolSettings, split: range, seed: int, device: torch.device):
        self.settings, self.seed, self.device = settings, seed, device
        self.split, self.start = split, (seed * 100_003) % len(split)
        self.count, self.skipped = 0, 0  # chunks rendered so far, and left out before the first
        self.seconds = 0.0  # that rendering took
        s, n_people = settings, settings.people
        self.chunk_clips = s.with_video * CLIPS_PER_FOUR // 4
        self.slots = max(1, -(-s.capacity // n_people))
        n, p = self.slots * self.chunk_clips, self.slots * n_people

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        mask = s.size // MASK_SCALE
        self.frames = zeros(n, s.frames, s.size, s.size, 3, dtype=torch.uint8)
        self.face_mask = zeros(n, s.frames, mask, mask, dtype=torch.uint8)
        self.landmarks, self.pose = zeros(n, s.frames, 68, 2), zeros(n, s.frames, 3)
        self.expression = zeros(n, s.frames, 50)
        self.shirt, self.background, self.owner = (zeros(n, dtype=torch.int64) for _ in range(3))
        self.caption = zeros(n + p * s.stills, byte_tokens.TOKENS, dtype=torch.int16)
        self.stills = zeros(p, s.stills, s.still_size, s.still_size, 3, dtype=torch.uint8)
        self.still_landmarks, self.still_pose = zeros(p, s.stills, 68, 2), zeros(p, s.stills, 3)
        self.still_expression, self.still_hair = zeros(p, s.stills, 50), zeros(p, s.stills, 4)
        self.picture_mask = zeros(p, s.stills, mask, mask, dtype=torch.uint8)
        self.picture_landmarks = zeros(p, s.stills, 68, 2)
        self.shape, self.appearance = zeros(p, 100), zeros(p, len(appearance(person(split[0]))))
        self.latents: Tensor | None = None
        self.latent_face_mask: Tensor | None = None
        self.picture_latents: Tensor | None = None
        self.latent_picture_mask: Tensor | None = None
        self._encode: Callable[[Tensor], Tensor] | None = None
        self._encoder_key: object = None

    @property
    def clips(self) -> int:
        """Rows of clips that are filled."""
        return min(self.count, self.slots) * self.chunk_clips

    @property
    def people(self) -> int:
        """Rows of people that are filled."""
        return min(self.count, self.slots) * self.settings.people

    def new_slots(self, since: int) -> list[int]:
        """Places of the chunks that came after the `since`-th and are still there."""
        return [chunk % self.slots for chunk in range(max(since, self.count - self.slots), self.count)]

    def prefill(self, people: int) -> None:
        """Render until there are so many people, or the pool is full."""
        while self.people < min(people, self.slots * self.settings.people):
            self.add()

    def restore(self, count: int) -> None:
        """Bring the pool to where it was after `count` chunks."""
        self.count = max(self.count, count - self.slots)
        while self.count < count:
            self.add()

    def skip(self, chunks: int) -> None:
        """Leave the first chunks out of a pool that is still empty: another machine has drawn them."""
        if not self.count:
            self.skipped = chunks

    def refresh(self) -> None:
        """Render a chunk between two steps; what it takes is added to `seconds`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be that of the steps in the queue
        start = time.perf_counter()
        self.add()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def add(self) -> None:
        """Render the next chunk of people into the place of the oldest."""
        s, n = self.settings, self.settings.people
        seeds = [self.split[(self.start + (self.skipped + self.count) * n + i) % len(self.split)] for i in range(n)]
        members = [person(seed) for seed in seeds]
        slot = self.count % self.slots
        self._put_people(members, slot)
        if s.with_video:
            owners = [*range(s.with_video), *range(0, s.with_video, 4)]
            clips = [clip(members[i], int(k >= s.with_video), s.frames) for k, i in enumerate(owners)]
            rows = self._clips_of(slot)
            self.owner[rows] = torch.tensor(owners, device=self.device) + slot * n
            self._put_clips(clips, rows)
        if self._encode is not None:
            self._put_latents(slot)
        self.count += 1

    def draw(self, count: int, generator: torch.Generator, pictures: bool) -> "PoolSamples":
        """Random clips, or random photos as pictures."""
        if pictures:
            people = randint(generator, self.people, count)
            return self.pictures(people, randint(generator, self.settings.stills, count))
        rows = randint(generator, self.clips, count)
        return PoolSamples(
            self.latents[rows].float(),
            self.latent_face_mask[rows],
            self.landmarks[rows],
            rows,
            self.owner[rows],
            expression=self.expression[rows],
            pose=self.pose[rows],
        )

    def pictures(self, people: Tensor, photos: Tensor) -> "PoolSamples":
        """Which photos (B,) of which people (B,), as pictures; t = T = 1."""
        return PoolSamples(
            self.picture_latents[people, photos, None].float(),
            self.latent_picture_mask[people, photos, None],
            self.picture_landmarks[people, photos, None],
            len(self.frames) + people * self.settings.stills + photos,
            people,
            photos,
            self.still_expression[people, photos, None],
            self.still_pose[people, photos, None],
        )

    def captions_of(self, slot: int) -> list[slice]:
        """Where the captions of a chunk's clips and photos lie."""
        each, first_row = self.settings.people * self.settings.stills, len(self.frames)
        return [self._clips_of(slot), slice(first_row + slot * each, first_row + (slot + 1) * each)]

    def encode_with(self, encode: Callable[[Tensor], Tensor], key: object) -> None:
        """Keep latents of all clips from now on: `encode` takes frames (B, T, H, W, 3) uint8 → (B, t, 16, h, w).

        Latents that were made under the same `key` are kept.
        """
        self._encode = encode
        if key == self._encoder_key:
            return
        self._encoder_key, self.latents, self.picture_latents = key, None, None
        for slot in self.new_slots(0):
            self._put_latents(slot)

    def _clips_of(self, slot: int) -> slice:
        return slice(slot * self.chunk_clips, (slot + 1) * self.chunk_clips)

    def _people_of(self, slot: int) -> slice:
        return slice(slot * self.settings.people, (slot + 1) * self.settings.people)

    def _put_people(self, members: Sequence[Person], slot: int) -> None:
        s, rows = self.settings, self._people_of(slot)
        photo_clips = [varied(still(p, k), s.variety) for p in members for k in range(s.stills)]
        photos = render(photo_clips, s.still_size, self.device)
        shape = (len(members), s.stills)
        self.stills[rows] = _bytes(photos.frames[:, 0]).unflatten(0, shape)
        self.still_landmarks[rows] = photos.landmarks[:, 0].unflatten(0, shape)
        self.still_pose[rows] = photos.pose[:, 0].unflatten(0, shape)
        self.still_expression[rows] = photos.expression[:, 0].unflatten(0, shape)
        hair = torch.from_numpy(np.stack([_hair_label(c) for c in photo_clips])).to(self.device)
        self.still_hair[rows] = hair.unflatten(0, shape)
        self.shape[rows] = torch.stack([p.shape_code for p in members]).to(self.device)
        mean, scale = _appearance_scale()
        appearances = np.stack([(appearance(p) - mean) / scale for p in members]).astype(np.float32)
        self.appearance[rows] = torch.from_numpy(appearances).to(self.device)
        self.caption[self.captions_of(slot)[1]] = self._ids(photo_clips)
        left, top, side = clip_framing(s.still_size)
        face_mask = self._is_face(photos.parts[:, 0])[:, None, top : top + side, left : left + side]
        mask = F.interpolate(face_mask, self.picture_mask.shape[2:], mode="area")[:, 0]
        self.picture_mask[rows] = _bytes(mask).unflatten(0, shape)
        corner = self.still_landmarks.new_tensor([left, top])
        self.picture_landmarks[rows] = (self.still_landmarks[rows] - corner + 0.5) * (s.size / side) - 0.5

    def _put_clips(self, clips: Sequence[Clip], rows: slice) -> None:
        rendered = render(clips, self.settings.size, self.device)
        self.frames[rows] = _bytes(rendered.frames)
        face_mask = F.avg_pool2d(self._is_face(rendered.parts).flatten(0, 1)[:, None], MASK_SCALE)
        self.face_mask[rows] = _bytes(face_mask[:, 0]).unflatten(0, rendered.parts.shape[:2])
        self.landmarks[rows], self.pose[rows], self.expression[rows] = (
            rendered.landmarks,
            rendered.pose,
            rendered.expression,
        )
        names = list(COLOURS)
        for target, field in ((self.shirt, "shirt"), (self.background, "background")):
            colour_ids = [names.index(getattr(c.labels, field)) for c in clips]
            target[rows] = torch.tensor(colour_ids, device=self.device)
        self.caption[rows] = self._ids(clips)

    def _is_face(self, parts: Tensor) -> Tensor:
        is_face_part = torch.tensor([name in FACE for name in PARTS], device=self.device)
        return is_face_part[parts.long()].float()

    def _ids(self, clips: Sequence[Clip]) -> Tensor:
        return byte_tokens.encode_batch(c.caption for c in clips).to(self.device, torch.int16)

    def _put_latents(self, slot: int) -> None:
        people, rows = self._people_of(slot), self._clips_of(slot)
        pictures = self._encode(self._as_pictures(self.stills[people].flatten(0, 1)))[:, 0]
        size = pictures.shape[-2:]
        if self.picture_latents is None:
            cache_dtype = pictures.dtype if self.device.type != "cuda" else torch.bfloat16
            (n, t), shape = self.frames.shape[:2], self.stills.shape[:2]
            t = 1 + (t - 1) // 4
            self.latents, self.latent_face_mask = (
                torch.zeros(n, t, *inner, dtype=dtype, device=self.device)
                for inner, dtype in ((pictures.shape[1:], cache_dtype), (size, torch.float32))
            )
            self.picture_latents = torch.zeros(*shape, *pictures.shape[1:], dtype=cache_dtype, device=self.device)
            self.latent_picture_mask = torch.zeros(*shape, *size, device=self.device)
        self.picture_latents[people] = pictures.to(self.picture_latents).unflatten(0, (-1, self.settings.stills))
        self.latent_picture_mask[people] = F.adaptive_avg_pool2d(self.picture_mask[people].float() / 255, size)
        if self.chunk_clips:
            self.latents[rows] = self._encode(self.frames[rows]).to(self.latents)
            self.latent_face_mask[rows] = pool_masks_in_time(self.face_mask[rows].float() / 255, size)

    def _as_pictures(self, photos: Tensor) -> Tensor:
        """Photos (B, H, W, 3) uint8 → clips (B, 1, size, size, 3) uint8 of one frame, framed like other clips."""
        left, top, side = clip_framing(photos.shape[1])
        near = photos[:, top : top + side, left : left + side].movedim(-1, 1).float()
        size = self.settings.size
        return _bytes(F.interpolate(near / 255, (size, size), mode="bilinear").movedim(1, -1))[:, None]


def clip_framing(size: int) -> tuple[int, int, int]:
    """Left, top and side, px, of what a clip would show of a photo of this size."""
    side = round(CLIP_ZOOM * size)
    return (size - side) // 2, round((size - side) / 2 - LIFT * size), side


@dataclass(frozen=True, eq=False)
class PoolSamples:
    """What a batch is made of.

    Attributes:
        latents: (B, t, 16, h, w); face_mask: (B, t, h, w) 0…1; landmarks: (B, T, 68, 2) px.
        captions: (B,) rows of the pool's `caption`.
        people: (B,) who they are; photos: (B,) which photo of theirs each is, `None` for clips.
        expression: (B, T, 50); pose: (B, T, 3) degrees.
    """

    latents: Tensor
    face_mask: Tensor
    landmarks: Tensor
    captions: Tensor
    people: Tensor
    photos: Tensor | None = None
    expression: Tensor | None = None
    pose: Tensor | None = None


def pool_masks_in_time(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (B, 4 k + 1, H, W) of frames → of latents (B, k + 1, h, w): the first frame alone, then four at a time."""
    masks = F.adaptive_avg_pool2d(masks, tuple(size))
    later = masks[:, 1:].unflatten(1, (-1, 4)).mean(2)
    return torch.cat([masks[:, :1], later], 1)


def pool_points_in_time(points: Tensor) -> Tensor:
    """Points (B, 4 k + 1, N, 2) of frames → of latents (B, k + 1, N, 2), likewise."""
    if points.shape[1] == 1:
        return points
    return torch.cat([points[:, :1], points[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)


def appearance(member: Person) -> np.ndarray:
    """(L,) what a person looks like beside the shape of the head: paint, sex, age, ethnicity, build. Not the hair."""
    attributes = [float(member.sex == "male"), member.age, *member.ethnicity, member.weight, member.muscle]
    return np.concatenate([member.paint.vector, np.array(attributes)])


_HAIR_MEAN, _HAIR_SCALE = (0.36, 0.28, 0.22, 0.3), (0.22, 0.20, 0.18, 0.45)


def _hair_label(photo: Clip) -> np.ndarray:
    """(4,) as `Pool.still_hair`."""
    hair = photo.scene.hair
    return ((np.append(hair.colour ** (1 / GAMMA), hair.long) - _HAIR_MEAN) / _HAIR_SCALE).astype(np.float32)


def hair_colour(label: Tensor) -> Tensor:
    """Labels (…, 4) as `Pool.still_hair` → sRGB 0…1 (…, 3)."""
    return label[..., :3] * constant(_HAIR_SCALE[:3], label.device) + constant(_HAIR_MEAN[:3], label.device)


_SCALE: list[tuple[np.ndarray, np.ndarray]] = []


def _appearance_scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `appearance` over 300 people."""
    if not _SCALE:
        appearances = np.stack([appearance(person(seed)) for seed in range(300)])
        _SCALE.append((appearances.mean(0), appearances.std(0).clip(min=1e-6)))
    return _SCALE[0]


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
