"""Photo and prompt → frames without a host: a small model in the published layout, many people at once, any device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.acting import per_latent_frame
from fantasyid_core.dit.injection import BatchInjector, Injection, InjectionRun
from fantasyid_core.dit.region import TokenGrid
from fantasyid_core.dit.step_cache import StepCache
from fantasyid_core.errors import FaceNotFoundError
from fantasyid_core.fusion.identity import MEAN, Identity, fuse
from fantasyid_core.reconstruction import face_mesh
from fantasyid_core.reconstruction.performance import Performance, perform
from fantasyid_core.sampling.pipeline import Conditions, Guidance, decode_frames, encode_first_frame, sample
from fantasyid_core.sampling.schedule import Callback
from fantasyid_core.video.latents import LATENT_CHANNELS, latent_size, squeeze_to_frame
from fantasyid_core.views.collection import FaceViews

from .. import lora, nano
from ..latents import encode
from .modes import EXACT, Mode


@dataclass(frozen=True, eq=False)
class Request:
    """One video to make.

    Attributes:
        prompt: its text.
        identity: who.
        seed: of the first noise.
        strength: factor on what the injection adds; 0 leaves the identity out, of the image latents too.
        injections: identities by place, time or part of the run, injected in place of `identity`, whose reference crop
            stays the first frame. Such a video is sampled alone; `guide_identity` is that of the sampling.
    """

    prompt: str
    identity: Identity
    seed: int
    strength: float = 1.0
    injections: tuple[Injection, ...] = ()


def reference(photo: Tensor, device: torch.device | str | None = None) -> DetectedFace:
    """The most certain face of a small picture (H, W, 3), where even one that the detector doubts is the person.

    Args:
        device: where it is searched, see `detection.detect`.

    Raises:
        FaceNotFoundError: the detector sees none.
    """
    faces = detect(photo, min_score=0.3, device=device)
    if not faces:
        raise FaceNotFoundError("No face was found in the reference.")
    return max(faces, key=lambda face: face.score)


class Generator:
    """A small model, loaded; makes identities and videos.

    Args:
        model: as `nano.read` or `nano.build` give it.
        dtype: of the video transformer and the autoencoder; the rest runs in float32.
    """

    def __init__(self, model: nano.Nano, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        self.model, self.device, self.dtype = model, torch.device(device), dtype
        for module in model.modules.values():
            module.to(self.device).eval().requires_grad_(False)
        for module in (model.transformer, model.vae):
            module.to(dtype)
        self._face_model = model.face.to(self.device)

    @torch.no_grad()
    def identity(
        self, face: DetectedFace, others: Sequence[DetectedFace] = (), performance: Performance | None = None
    ) -> Identity:
        """The identity of a face, from its photo alone or with others of the same person: their mean, all alike; with a
        performance it acts.
        """
        faces = [
            replace(each, image=each.image.to(self.device), crop=each.crop.to(self.device)) for each in (face, *others)
        ]
        mesh = face_mesh.reconstruct(
            faces[0], self.model.regressor, self._face_model, face_mesh.SHAPE_ONLY, others=faces[1:]
        )
        views = FaceViews(torch.stack([each.crop for each in faces]), torch.ones(len(faces)))
        acting = None if performance is None else per_latent_frame(perform(self._face_model, mesh, performance))
        return fuse(self.model.encoder, views, mesh, MEAN, device=self.device, acting=acting)

    def videos(self, requests: Sequence[Request], **sampling) -> Tensor:
        """Make videos; arguments as for `sample`.

        Returns:
            (B, frames, H, W, 3) uint8 on the CPU.
        """
        return self.decode(self.sample(requests, **sampling))

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        *,
        frames: int = nano.FRAMES,
        steps: int = 20,
        guidance: float = 6.0,
        scheduler: str = "ddim",
        batch: int = 8,
        size: tuple[int, int] = (nano.HEIGHT, nano.WIDTH),
        progress: Callable[[int, int], None] = lambda done, of: None,
        mode: Mode = EXACT,
        guide_identity: bool = False,
        start: Tensor | None = None,
        denoising_strength: float = 1.0,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Latents of videos, `batch` at a time. With ddim a video does not depend on what else is in its batch.

        A step cache, where the mode has one, decides for a batch as a whole. With `guide_identity` the unconditional
        branch goes without the identity, see `pipeline.Guidance`. Videos are drawn again from `start` latents
        (B, T, 16, h, w) by `denoising_strength`, above 0 … 1, where these are given. Rotary positions are scaled to a
        `grid` of patches, by default the model's.

        Returns:
            (B, T, 16, h, w) on the CPU.
        """
        latents = []
        batch = 1 if any(request.injections for request in requests) else batch
        for begin in range(0, len(requests), batch):
            some = requests[begin : begin + batch]
            own = None if start is None else start[begin : begin + batch]
            drawn = self.latents(
                some, frames, steps, guidance, scheduler, size, mode, guide_identity, own, denoising_strength, grid=grid
            )
            latents.append(drawn.cpu())
            progress(min(begin + batch, len(requests)), len(requests))
        return torch.cat(latents)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, 4 T − 3, H, W, 3) float 0…1 → mean latents (B, T, 16, h, w), as the transformer sees them."""
        return encode(self.model.vae, 255 * frames).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, T, 16, h, w), as the transformer sees them → frames (B, 4 T − 3, H, W, 3) uint8 on the CPU."""
        return decode_frames(self.model.vae, latents)

    @torch.no_grad()
    def latents(
        self,
        requests: Sequence[Request],
        frames: int,
        steps: int,
        guidance: float,
        scheduler: str,
        size: tuple[int, int],
        mode: Mode = EXACT,
        guide_identity: bool = False,
        start: Tensor | None = None,
        denoising_strength: float = 1.0,
        callback: Callback | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """One batch of videos as latents (B, T, 16, h, w) on the generator's device, arguments as for `videos`."""
        from fantasyid_core.dit.transformer import run_as_is

        t, h, w = latent_size(frames, *size)
        shape = (t, LATENT_CHANNELS, h, w)
        draws = [torch.Generator().manual_seed(r.seed) for r in requests]
        first = self._first_frames(requests, draws, shape, size)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        injections = requests[0].injections
        conditions = Conditions(
            text=self.text([r.prompt for r in requests]).to(self.dtype),
            negative_text=self.text([""]).to(self.dtype),
            image=first,
            tokens=None if injections else _tokens([r.identity for r in requests], t).to(self.device),
            strength=torch.tensor([r.strength for r in requests], device=self.device),
        )
        return sample(
            self.model.transformer,
            noise.to(self.device),
            conditions,
            Guidance(guidance, guide_identity),
            scheduler=scheduler,
            steps=steps,
            generator=torch.Generator(self.device).manual_seed(requests[0].seed),
            injector=self._injector(injections, shape, Guidance(guidance, guide_identity)) if injections else None,
            cache=StepCache(mode.cache) if mode.cache else None,
            run_block=partial(run_as_is, fp8=True) if mode.fp8 else None,
            image_rotary_emb=self.model.transformer.rotary_embedding(t, h, w, self.device, grid=grid),
            start=None if start is None else start.to(self.device, torch.float32),
            denoising_strength=denoising_strength,
            callback=callback,
        )

    def _injector(self, injections: Sequence[Injection], shape: tuple[int, ...], guidance: Guidance) -> BatchInjector:
        """Injects them into both branches of one video's latents of `shape` (T, 16, h, w)."""
        patch = self.model.transformer.config.patch_size
        run = InjectionRun([replace(one, guide_identity=guidance.guide_identity) for one in injections])
        grid = TokenGrid(shape[0], shape[2] // patch, shape[3] // patch)
        return BatchInjector(run, grid, (True, False) if guidance.is_on else ())

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts → embeddings (B, 226, D), padding included, as CogVideoX reads them."""
        ids = byte_tokens.encode_batch(prompts).to(self.device)
        return self.model.text(ids).last_hidden_state

    def _first_frames(
        self,
        requests: Sequence[Request],
        draws: Sequence[torch.Generator],
        shape: tuple[int, ...],
        size: tuple[int, int],
    ) -> Tensor:
        """Image latents (B, T, 16, h, w): the reference crops first where the model was trained so, drawn from the
        encoder's distribution as FantasyID Sampler does, or zeros.
        """
        if not self.model.config.get("first_frame_condition", True):
            return torch.zeros(len(requests), *shape, device=self.device)
        vae = self.model.vae
        crops = torch.cat([squeeze_to_frame(r.identity.image, *size) for r in requests]).to(self.device)
        pixels = (crops.movedim(-1, 1)[:, :, None] * 2 - 1).to(self.dtype)
        drawn = zip(pixels.split(1), draws, strict=True)
        return torch.cat([encode_first_frame(vae, one, shape[0], draw) for one, draw in drawn])


def _tokens(identities: Sequence[Identity], frames: int) -> Tensor:
    """(B, N, K) identity tokens, or (B, T, N, K) of `frames` latent frames where one acts; the last ones hold."""
    if all(identity.frame_tokens is None for identity in identities):
        return torch.stack([identity.tokens for identity in identities])
    every = []
    for identity in identities:
        moving = identity.vertex_tokens[None] if identity.frame_tokens is None else identity.frame_tokens
        moving = moving[torch.arange(frames).clamp(max=len(moving) - 1)]
        every.append(torch.cat([identity.face_tokens.expand(frames, -1, -1), moving], 1))
    return torch.stack(every)


def load(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    lora_file: Path | None = None,
) -> Generator:
    """The small model of a folder in the published layout, with a LoRA of it where one is named.

    Raises:
        WeightsMissingError, WeightsError, MeshError: files are missing or damaged.
    """
    model = nano.read(folder)
    if lora_file is not None:
        lora.merge(model.transformer, lora_file)
    return Generator(model, device, dtype)
