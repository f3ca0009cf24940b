"""People rendered straight into device memory: what all stages train on. Nothing is stored on a disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import bytes_text
from ..people.clip import Clip, clip, still
from ..people.colours import COLOURS
from ..people.person import Person, person
from ..people.render import PARTS, render
from .data import randint
from .settings import PoolSettings

FACE = ("face", "lips", "eyes", "mouth")
CLIPS_PER_FOUR = 5  # people: one in four has a second clip
MASK_SCALE = 4  # the face masks' pixels are this many px wide


class Pool:
    """A ring of people: their clips, photos and what is true of them.

    The n-th chunk of people is the same in every run with this split and seed, so `count` says what the pool holds.

    Args:
        settings: sizes.
        split: the seeds of the people that may be in it.
        seed: which of them come first.

    Attributes (N clips, P people, S photos; rows beyond `clips` and `people` are not filled yet):
        frames: (N, T, size, size, 3) uint8; face: (N, T, size / 4, size / 4) uint8, 255 where the face is.
        landmarks (N, T, 68, 2) px, pose (N, T, 3) degrees, expression (N, T, 50): of every frame.
        shirt, background: (N,) int64 into `COLOURS`; caption: (N, 226) int16; owner: (N,) int64, whose clip it is.
        stills: (P, S, still_size, still_size, 3) uint8; still_landmarks, still_pose, still_expression: of each.
        shape: (P, 100) shape codes; look: (P, L) paint, sex, age …, each about standard normal.
        latents: (N, t, 16, h, w) bfloat16 (float32 off a GPU) after `encode_with`; face_latent: (N, t, h, w) 0…1.
        single_latents: (N, K, 16, h, w), of K single frames of each clip, evenly spread; single_face: (N, K, h, w).
    """

    def __init__(self, settings: PoolSettings, split: range, seed: int, device: torch.device):
        self.settings, self.device = settings, device
        self.split, self.start = split, (seed * 100_003) % len(split)
        self.count = 0  # chunks rendered so far
        self.seconds = 0.0  # that rendering took
        s, n_people = settings, settings.people
        self.chunk_clips = n_people * CLIPS_PER_FOUR // 4
        self.slots = max(1, -(-s.clips // self.chunk_clips))
        n, p = self.slots * self.chunk_clips, self.slots * n_people

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        mask = s.size // MASK_SCALE
        self.frames = zeros(n, s.frames, s.size, s.size, 3, dtype=torch.uint8)
        self.face = zeros(n, s.frames, mask, mask, dtype=torch.uint8)
        self.landmarks, self.pose = zeros(n, s.frames, 68, 2), zeros(n, s.frames, 3)
        self.expression = zeros(n, s.frames, 50)
        self.shirt, self.background, self.owner = (zeros(n, dtype=torch.int64) for _ in range(3))
        self.caption = zeros(n, bytes_text.TOKENS, dtype=torch.int16)
        self.stills = zeros(p, s.stills, s.still_size, s.still_size, 3, dtype=torch.uint8)
        self.still_landmarks, self.still_pose = zeros(p, s.stills, 68, 2), zeros(p, s.stills, 3)
        self.still_expression = zeros(p, s.stills, 50)
        self.shape, self.look = zeros(p, 100), zeros(p, len(look(person(split[0]))))
        self.latents: Tensor | None = None
        self.face_latent: Tensor | None = None
        self.single_latents: Tensor | None = None
        self.single_face: Tensor | None = None
        # Not the first, in which heads look ahead.
        self.singles = torch.linspace(s.frames / 4, s.frames - 1, s.singles, device=device).round().long()
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

    def fill(self, clips: int) -> None:
        """Render until there are `clips`, or the pool is full."""
        while self.clips < min(clips, self.slots * self.chunk_clips):
            self.add()

    def restore(self, count: int) -> None:
        """Bring the pool to where it was after `count` chunks."""
        self.count = max(self.count, count - self.slots)
        while self.count < count:
            self.add()

    def grow(self, step: int, every: int, seconds: float) -> None:
        """Between two steps, every so many: render a chunk, unless rendering has taken `seconds` by now."""
        if step % every or self.seconds >= seconds:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the time would be that of the steps in the queue
        began = time.perf_counter()
        self.add()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def add(self) -> None:
        """Render the next chunk of people into the place of the oldest."""
        s, n = self.settings, self.settings.people
        seeds = [self.split[(self.start + self.count * n + i) % len(self.split)] for i in range(n)]
        members = [person(seed) for seed in seeds]
        slot = self.count % self.slots
        self._put_people(members, slot * n)
        if s.frames:
            owners = [*range(n), *range(0, n, 4)]
            second = n  # clips from here on are their owners' second
            clips = [clip(members[i], int(k >= second), s.frames) for k, i in enumerate(owners)]
            rows = slice(slot * self.chunk_clips, (slot + 1) * self.chunk_clips)
            self.owner[rows] = torch.tensor(owners, device=self.device) + slot * n
            self._put_clips(clips, rows)
        self.count += 1

    def videos(self, rows: Tensor) -> "Latents":
        """Whole clips."""
        return Latents(self.latents[rows].float(), self.face_latent[rows], self.landmarks[rows])

    def draw(self, count: int, generator: torch.Generator, pictures: bool) -> tuple[Tensor, "Latents"]:
        """Random clips, or single frames of such: rows (B,) and what they show."""
        rows = randint(generator, self.clips, count)
        if not pictures:
            return rows, self.videos(rows)
        return rows, self.pictures(rows, randint(generator, len(self.singles), count))

    def pictures(self, rows: Tensor, which: Tensor) -> "Latents":
        """Single frames of clips `rows` (B,), the `which`-th (B,) of those that are encoded alone; t = T = 1."""
        return Latents(
            self.single_latents[rows, which, None].float(),
            self.single_face[rows, which, None],
            self.landmarks[rows, self.singles[which], None],
        )

    def encode_with(self, encode: Callable[[Tensor], Tensor], key: object) -> None:
        """Keep latents of all clips from now on: `encode` takes frames (B, T, H, W, 3) uint8 → (B, t, 16, h, w).

        Latents that were made under the same `key` are kept.
        """
        self._encode = encode
        if key == self._encoder_key:
            return
        self._encoder_key, self.latents = key, None
        for start in range(0, self.clips, self.chunk_clips):
            self._put_latents(slice(start, start + self.chunk_clips))

    def _put_people(self, members: Sequence[Person], first: int) -> None:
        s, rows = self.settings, slice(first, first + len(members))
        photos = render([still(p, k) for p in members for k in range(s.stills)], s.still_size, self.device)
        shape = (len(members), s.stills)
        self.stills[rows] = _bytes(photos.frames[:, 0]).unflatten(0, shape)
        self.still_landmarks[rows] = photos.landmarks[:, 0].unflatten(0, shape)
        self.still_pose[rows] = photos.pose[:, 0].unflatten(0, shape)
        self.still_expression[rows] = photos.expression[:, 0].unflatten(0, shape)
        self.shape[rows] = torch.stack([p.shape_code for p in members]).to(self.device)
        mean, scale = _look_scale()
        looks = np.stack([(look(p) - mean) / scale for p in members]).astype(np.float32)
        self.look[rows] = torch.from_numpy(looks).to(self.device)

    def _put_clips(self, clips: Sequence[Clip], rows: slice) -> None:
        drawn = render(clips, self.settings.size, self.device)
        self.frames[rows] = _bytes(drawn.frames)
        kinds = torch.tensor([name in FACE for name in PARTS], device=self.device)
        face = F.avg_pool2d(kinds[drawn.parts.long()].float().flatten(0, 1)[:, None], MASK_SCALE)
        self.face[rows] = _bytes(face[:, 0]).unflatten(0, drawn.parts.shape[:2])
        self.landmarks[rows], self.pose[rows], self.expression[rows] = drawn.landmarks, drawn.pose, drawn.expression
        names = list(COLOURS)
        for target, field in ((self.shirt, "shirt"), (self.background, "background")):
            numbers = [names.index(getattr(c.labels, field)) for c in clips]
            target[rows] = torch.tensor(numbers, device=self.device)
        self.caption[rows] = bytes_text.encode_batch(c.caption for c in clips).to(self.device, torch.int16)
        if self._encode is not None:
            self._put_latents(rows)

    def _put_latents(self, rows: slice) -> None:
        latents = self._encode(self.frames[rows])
        if self.latents is None:
            kept = latents.dtype if self.device.type != "cuda" else torch.bfloat16
            self.latents = torch.zeros((len(self.frames), *latents.shape[1:]), dtype=kept, device=self.device)
            self.face_latent = torch.zeros((len(self.frames), *latents[0, :, 0].shape), device=self.device)
            shape = (len(self.frames), len(self.singles), *latents.shape[2:])
            self.single_latents = torch.zeros(shape, dtype=kept, device=self.device)
            self.single_face = torch.zeros((*shape[:2], *shape[3:]), device=self.device)
        self.latents[rows] = latents.to(self.latents.dtype)
        for i, moment in enumerate(self.singles.tolist()):
            alone = self._encode(self.frames[rows, moment, None])[:, 0]
            self.single_latents[rows, i] = alone.to(self.latents.dtype)
            masks = self.face[rows, moment, None].float() / 255
            self.single_face[rows, i] = F.adaptive_avg_pool2d(masks, latents.shape[-2:])[:, 0]
        self.face_latent[rows] = pooled_in_time(self.face[rows].float() / 255, latents.shape[-2:])


@dataclass(frozen=True, eq=False)
class Latents:
    """What a batch is made of: latents (B, t, 16, h, w), face (B, t, h, w) 0…1, landmarks (B, T, 68, 2) px."""

    latents: Tensor
    face: Tensor
    landmarks: Tensor


def pooled_in_time(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Masks (B, 4 k + 1, H, W) of frames → of latents (B, k + 1, h, w): the first frame alone, then four at a time."""
    masks = F.adaptive_avg_pool2d(masks, tuple(size))
    rest = masks[:, 1:].unflatten(1, (-1, 4)).mean(2)
    return torch.cat([masks[:, :1], rest], 1)


def pooled_in_time_points(points: Tensor) -> Tensor:
    """Points (B, 4 k + 1, N, 2) of frames → of latents (B, k + 1, N, 2), likewise."""
    if points.shape[1] == 1:
        return points
    return torch.cat([points[:, :1], points[:, 1:].unflatten(1, (-1, 4)).mean(2)], 1)


def look(member: Person) -> np.ndarray:
    """(L,) what a person looks like beside the shape of the head: paint, sex, age, ethnicity, build. Not the hair."""
    paint = [np.atleast_1d(value) for value in vars(member.paint).values()]
    rest = [float(member.sex == "male"), member.age, *member.ethnicity, member.weight, member.muscle]
    return np.concatenate([*paint, np.array(rest)])


_SCALE: list[tuple[np.ndarray, np.ndarray]] = []


def _look_scale() -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of `look` over 300 people."""
    if not _SCALE:
        looks = np.stack([look(person(seed)) for seed in range(300)])
        _SCALE.append((looks.mean(0), looks.std(0).clip(min=1e-6)))
    return _SCALE[0]


def _bytes(x: Tensor) -> Tensor:
    return (x * 255).round().clamp(0, 255).to(torch.uint8)
