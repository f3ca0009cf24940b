"""Stage vae: frames → latents → frames."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fantasyid_core.fusion.image_tower import ImageTower
from fantasyid_core.io.weights import read as read_weights
from fantasyid_core.meters.motion import turn_speed

from .. import fast_vae, nano
from ..evaluation import sharpness
from ..latents import decode, encode, to_model
from ..people.crops import crop_grid, sample
from . import data, pictures
from .face import CROP
from .options import VaeOptions
from .pool import MASK_SCALE, Pool
from .stage import Batch, Context, Stage, evaluating, trainable
from .whitening import fold, whitening

RANDOM_CROP_SHARE = 0.2  # share of crops that may lie anywhere
LANDMARK_RADIUS = 3.5  # px, how far a landmark makes pixels count
JAW = slice(5, 22)  # landmarks that nothing fine lies near
CANDIDATES = 4  # windows of which the fastest turning one is taken
FAST_TURN = 6.0  # degrees a frame


@dataclass(frozen=True, eq=False)
class VaeBatch(Batch):
    """Parts of clips.

    Attributes:
        frames: (B, T, H, W, 3) uint8; weight: (B, T, H / 4, W / 4), what their pixels count.
        noise: (B, t, h, w, 16), standard normal, that the latents are drawn with.
        frame_index: (B,), the frame whose face the tower reads, and crop_grid: (B, S, S, 2) px, where the pixels of its
            crop lie; None without a perceptual loss.
    """

    frames: Tensor
    weight: Tensor
    noise: Tensor
    frame_index: Tensor | None = None
    crop_grid: Tensor | None = None


class Reconstruction(nn.Module):
    """L1 of pixels, of their gradients, of differences between frames and of the strength of edges; perceptual distance
    of faces (tower); KL of the latents.

    Args:
        tower: the image tower, frozen; `None` without a perceptual loss.
    """

    def __init__(self, vae: nn.Module, tower: nn.Module | None, options: VaeOptions):
        super().__init__()
        self.vae, self.tower, self.options = vae, tower, options

    def forward(self, batch: VaeBatch) -> dict[str, Tensor]:
        pixels = to_model(batch.frames)
        mean, std = fast_vae.encode(self.vae, pixels)
        reconstructed = fast_vae.decode(self.vae, mean + std * batch.noise)
        weight = F.interpolate(batch.weight, scale_factor=MASK_SCALE, mode="bilinear")[..., None]
        weight = weight / weight.mean()
        error = reconstructed.float() - pixels
        l1 = (error.abs() * weight).mean()
        gradient = sum((error.diff(dim=d).abs() * weight.narrow(d, 1, weight.shape[d] - 1)).mean() for d in (2, 3))
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.clamp(min=1e-12).log()).mean()
        options = self.options
        loss = l1 + options.gradient_weight * gradient + options.kl_weight * kl
        terms = {"l1": l1, "gradient": gradient, "kl": kl}
        if options.temporal_weight:
            temporal = (error.diff(dim=1).abs() * weight[:, 1:]).mean()
            loss, terms = loss + options.temporal_weight * temporal, terms | {"temporal": temporal}
        if options.edge_weight:
            edges = edge_distance(reconstructed.float(), pixels, weight)
            loss, terms = loss + options.edge_weight * edges, terms | {"edges": edges}
        if self.tower is not None:
            shown = torch.arange(len(pixels), device=pixels.device), batch.frame_index
            perceptual = self._perceptual_distance(reconstructed[shown], batch.frames[shown], batch.crop_grid)
            loss, terms = loss + self.options.likeness_weight * perceptual, terms | {"perceptual": perceptual}
        return {"loss": loss} | terms

    def _perceptual_distance(self, reconstructed: Tensor, true: Tensor, crop_grid: Tensor) -> Tensor:
        """One less the cosine of the tower's hidden states, mean over states and tokens; made in −1…1, true uint8."""
        crops = sample(torch.cat([reconstructed.float() * 127.5 + 127.5, true.float()]), crop_grid.repeat(2, 1, 1, 1))
        hidden, _ = self.tower(self.tower.preprocess(crops))
        return torch.stack([1 - F.cosine_similarity(*x.float().chunk(2), dim=-1).mean() for x in hidden]).mean()


class VaeStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.options: VaeOptions = self.settings.options
        tower = self._tower().eval().requires_grad_(False) if self.options.likeness_weight else None
        self.objective = Reconstruction(trainable(context.model.vae), tower, self.options)
        context.model.vae.encoder.requires_grad_(self.options.encoder)

    def _tower(self) -> nn.Module:
        if not self.options.tower:
            return self.context.model.encoder.tower
        return ImageTower.from_state_dict(read_weights(Path(self.options.tower))).float().to(self.context.device)

    def batch(self, step: int, generator: torch.Generator) -> VaeBatch:
        pool, options = self.context.pool, self.options
        length, size = pool.frames.shape[1:3]
        whole = step % options.long_every == options.long_every - 1
        window = length if whole else min(options.window, length)
        crop = size if whole else min(options.crop, size)
        count = max(1, int(self.settings.batch * options.long_share)) if whole else self.settings.batch
        rows, times = self._windows(count, window, generator)
        landmarks = pool.landmarks[rows[:, None], times]  # (B, T, 68, 2)
        corner = self._corner(landmarks, size - crop, crop, generator)  # (B, 2) in pixels of the masks: x, y
        frames = _crop_video(pool.frames, rows, times, corner * MASK_SCALE, crop)
        face_mask = _crop_video(pool.face_mask, rows, times, corner, crop // MASK_SCALE)
        turning = (turn_speed(pool.pose[rows[:, None], times]) / FAST_TURN).clamp(max=1)[..., None, None]
        face = options.face_weight - 1 + options.turning_weight * turning
        weight = 1 + face * face_mask.float() / 255
        landmarks = landmarks - corner[:, None, None] * MASK_SCALE
        weight = weight + options.detail_weight * landmark_proximity(landmarks, crop)
        noise = data.randn(generator, count, (window - 1) // 4 + 1, crop // 8, crop // 8, 16)
        if self.objective.tower is None:
            return VaeBatch(frames, weight, noise)
        frame_index = data.randint(generator, window, count)
        shown = landmarks[torch.arange(count, device=frame_index.device), frame_index]
        grid = crop_grid(shown, CROP, data.jitter(generator, count))
        return VaeBatch(frames, weight, noise, frame_index, grid)

    def _windows(self, count: int, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clips (B,) and the frames of each that are looked at (B, window)."""
        pool, share = self.context.pool, self.options.turning_share
        length = pool.frames.shape[1]
        candidates = CANDIDATES if share else 1
        rows = data.randint(generator, pool.clips, candidates, count)
        first = data.randint(generator, length - window + 1, candidates, count)
        times = first[..., None] + torch.arange(window, device=rows.device)
        if not share:
            return rows[0], times[0]
        speed = turn_speed(pool.pose[rows[..., None], times]).mean(-1)
        any_of_them = data.rand(generator, count) >= share
        chosen = torch.where(any_of_them, 0, speed.argmax(0))
        column = torch.arange(count, device=rows.device)
        return rows[chosen, column], times[chosen, column]

    def _corner(self, landmarks: Tensor, room: int, crop: int, generator: torch.Generator) -> Tensor:
        """Where crops begin: (B, 2), in units of `MASK_SCALE`, most with the face in the middle."""
        count, device = len(landmarks), landmarks.device
        focus = landmarks.mean((1, 2)) - crop / 2 + 0.1 * crop * data.randn(generator, count, 2)
        anywhere = data.rand(generator, count, 2) * room
        corner = torch.where(data.rand(generator, count, 1) < RANDOM_CROP_SHARE, anywhere, focus)
        limit = torch.tensor(room // MASK_SCALE, device=device)
        return (corner / MASK_SCALE).round().long().clamp(min=0).minimum(limit)

    def validate(self) -> dict[str, float]:
        pool, vae = self.context.validation, self.context.model.vae
        frames, face_mask = pool.frames[: min(16, pool.clips)], pool.face_mask[: min(16, pool.clips)]
        with evaluating(vae), self.context.autocast():
            reconstructed = decode(vae, encode(vae, frames))
        square = (reconstructed - frames.float() / 255).square().mean(-1)  # (B, T, H, W)
        inside = F.interpolate(face_mask.float() / 255, scale_factor=MASK_SCALE)
        in_face = (square * inside).sum() / inside.sum().clamp(min=1)
        made, true = (
            torch.tensor(
                [sharpness.turning_sharpness(*clip) for clip in zip(x, pool.landmarks, pool.pose, strict=False)]
            )
            for x in (reconstructed, frames)
        )
        return {
            "psnr": _decibel(square.mean()),
            "psnr_face": _decibel(in_face),
            "turning_sharpness": sharpness.ratio(made, true),
        }

    def sample_grid(self) -> Tensor:
        pool, vae = self.context.validation, self.context.model.vae
        frames = pool.frames[: min(6, pool.clips)]
        with evaluating(vae), self.context.autocast():
            reconstructed = decode(vae, encode(vae, frames))
        columns = torch.linspace(0, frames.shape[1] - 1, 4).round().long().tolist()
        pairs = [x[:, i] for i in columns for x in (frames.float() / 255, reconstructed)]
        return pictures.grid(torch.stack(pairs, 1))

    def export(self) -> None:
        """Weights, such that the latents have no mean, a variance of 1, and all directions something of it; where the
        decoder alone was trained, as they are.
        """
        model, pool = self.context.model, self.context.pool
        vae = model.vae
        if not self.options.encoder:
            nano.write(model, self.context.model_folder, ["vae"])
            return
        vae.config = replace(vae.config, scaling_factor=1.0)
        with evaluating(vae), torch.no_grad(), self.context.autocast():
            pairs = [fast_vae.encode(vae, to_model(part)) for part in pool.frames[: min(256, pool.clips)].split(16)]
        mean, std = (torch.cat(x).float().movedim(-1, 2) for x in zip(*pairs, strict=True))
        fold(vae, *whitening(mean), std.mean((0, 1, 3, 4)))
        nano.write(model, self.context.model_folder, ["vae"])


def encoder_of(context: Context):
    """A function for `Pool.encode_with`."""
    vae = context.model.vae.eval()

    @torch.no_grad()
    def run(frames: Tensor) -> Tensor:
        with context.autocast():
            return encode(vae, frames)

    return run


def encode_pools(context: Context) -> None:
    """Give the pools the latents of this model's autoencoder."""
    vae = context.model.vae
    key = (vae.config.scaling_factor, sum(p.abs().sum().item() for p in vae.encoder.parameters()))
    for pool in (context.pool, context.validation):
        if isinstance(pool, Pool):
            pool.encode_with(encoder_of(context), key)


def edge_distance(made: Tensor, true: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 of the mean strength of edges in 4 × 4 px of videos (B, T, H, W, 3); weights (B, T, H, W, 1)."""

    def strength(x: Tensor) -> Tensor:
        x = x.flatten(0, 1).mean(-1)
        down, across = x.diff(dim=1)[:, :, :-1], x.diff(dim=2)[:, :-1]
        return F.avg_pool2d((down.square() + across.square() + 1e-6).sqrt()[:, None], 4, ceil_mode=True)

    weight = F.avg_pool2d(weight.flatten(0, 1)[..., 0][:, None, :-1, :-1], 4, ceil_mode=True)
    return ((strength(made) - strength(true)).abs() * weight).mean()


def landmark_proximity(landmarks: Tensor, size: int) -> Tensor:
    """Landmarks (B, T, 68, 2) px of pictures of `size` → how near pixels are to eyes, brows, nose and mouth, 0…1, for
    every `MASK_SCALE`-th pixel: (B, T, size / 4, size / 4).
    """
    grid = (torch.arange(size // MASK_SCALE, device=landmarks.device) + 0.5) * MASK_SCALE - 0.5
    inner = torch.cat([landmarks[..., : JAW.start, :], landmarks[..., JAW.stop :, :]], -2)
    across, down = ((grid - inner[..., i, None]).square() for i in (0, 1))  # (B, T, 51, size / 4)
    sigma = LANDMARK_RADIUS + MASK_SCALE / 2
    return (-(across[..., None, :] + down[..., :, None]) / (2 * sigma * sigma)).exp().amax(2)


def _crop_video(video: Tensor, rows: Tensor, times: Tensor, corner: Tensor, size: int) -> Tensor:
    """(N, T, H, W, …) → clips `rows` (B,), their frames `times` (B, t), squares from `corner` (B, 2)."""
    across, down = (corner[:, i, None] + torch.arange(size, device=rows.device) for i in (0, 1))
    return video[rows[:, None, None, None], times[:, :, None, None], down[:, None, :, None], across[:, None, None]]


def _decibel(square_error: Tensor) -> float:
    return float(-10 * torch.log10(square_error.clamp(min=1e-10)))
