"""Photo and prompt → frames without a host: a small model in the published layout, many people at once, any device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fantasyid_core.detection.faces import DetectedFace, detect
from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.injection import LayerAttention
from fantasyid_core.dit.step_cache import StepCache
from fantasyid_core.errors import FaceNotFoundError
from fantasyid_core.fusion.identity import MEAN, Identity, fuse
from fantasyid_core.reconstruction import face_mesh
from fantasyid_core.sampling.schedule import TRAIN_STEPS, denoise, guide
from fantasyid_core.video.latents import LATENT_CHANNELS, first_frame_condition, latent_size, squeeze_to_frame
from fantasyid_core.views.collection import FaceViews

from .. import nano
from .modes import EXACT, Mode


@dataclass(frozen=True, eq=False)
class Request:
    """One video to make.

    Attributes:
        prompt: its text.
        identity: who.
        seed: of the first noise.
        strength: factor on what the injection adds; 0 leaves the identity out, of the image latents too.
    """

    prompt: str
    identity: Identity
    seed: int
    strength: float = 1.0


class Rows:
    """An `Injector` where every row of the batch has an identity and a strength of its own.

    Args:
        tokens: (B, N, K), one row per row of the batch.
        strength: (B,)
    """

    def __init__(self, tokens: Tensor, strength: Tensor):
        self._tokens, self._strength = tokens, strength[:, None, None]
        self._keys_values: dict[int, tuple[Tensor, Tensor]] = {}

    def add_to(self, hidden: Tensor, layer: int, attention: LayerAttention, progress: float) -> Tensor:
        """As `Injector.add_to`: visual tokens (B, L, dim) with the identities added by one layer."""
        if layer not in self._keys_values:
            self._keys_values[layer] = attention.keys_values(self._tokens.to(hidden))
        return hidden + self._strength.to(hidden) * attention(hidden, self._keys_values[layer])


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
            nn.Module.to(module, dtype)  # diffusers' own warns of what does not concern us
        self._face_model = model.face.to(self.device)

    @torch.no_grad()
    def identity(self, face: DetectedFace, others: Sequence[DetectedFace] = ()) -> Identity:
        """The identity of a face, from its photo alone or with others of the same person: their mean, all alike."""
        faces = [
            replace(each, image=each.image.to(self.device), crop=each.crop.to(self.device)) for each in (face, *others)
        ]
        mesh = face_mesh.reconstruct(
            faces[0], self.model.regressor, self._face_model, face_mesh.SHAPE_ONLY, others=faces[1:]
        )
        views = FaceViews(torch.stack([each.crop for each in faces]), torch.ones(len(faces)))
        return fuse(self.model.encoder, views, mesh, MEAN, device=self.device)

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
    ) -> Tensor:
        """Latents of videos, `batch` at a time. With ddim a video does not depend on what else is in its batch.

        A step cache, where the mode has one, decides for a batch as a whole. With `guide_identity` the unconditional
        branch goes without the identity (`injection.Injection.guided`), its image latents included.

        Returns:
            (B, T, 16, h, w) on the CPU.
        """
        made = []
        for start in range(0, len(requests), batch):
            some = requests[start : start + batch]
            made.append(self.latents(some, frames, steps, guidance, scheduler, size, mode, guide_identity).cpu())
            progress(min(start + batch, len(requests)), len(requests))
        return torch.cat(made)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, T, 16, h, w), as the transformer sees them → frames (B, 4 T − 3, H, W, 3) uint8 on the CPU."""
        vae = self.model.vae
        videos = []
        # diffusers decodes two latents at a time and makes 4 T frames of an even number: the first one twice helps.
        even = latents.shape[1] % 2 == 0
        if even:
            latents = torch.cat([latents[:, :1], latents], 1)
        for one in latents.transpose(1, 2).split(1):
            scaled = (one / vae.config.scaling_factor).to(self.device, self.dtype)
            pixels = vae.decode(scaled, return_dict=False)[0][:, :, 4 * even :]
            videos.append((pixels.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
        return torch.cat(videos).permute(0, 2, 3, 4, 1)

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
    ) -> Tensor:
        """One batch of videos as latents (B, T, 16, h, w) on the generator's device, arguments as for `videos`."""
        from fantasyid_core.dit.transformer import run_as_is

        transformer = self.model.transformer
        t, h, w = latent_size(frames, *size)
        count = len(requests)
        shape = (t, LATENT_CHANNELS, h, w)
        draws = [torch.Generator().manual_seed(r.seed) for r in requests]
        first = self._first_frames(requests, draws, shape, size)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        text = self.text([r.prompt for r in requests])
        tokens = torch.stack([r.identity.tokens for r in requests]).to(self.device)
        strength = torch.tensor([r.strength for r in requests], device=self.device)
        guided = guidance != 1
        if guided:
            text = torch.cat([self.text([""]).expand(count, -1, -1), text])
            kept = 0.0 if guide_identity else 1.0  # of the identity in the unconditional branch; as released, all
            tokens, first = (torch.cat([x, x]) for x in (tokens, first))
            strength = torch.cat([kept * strength, strength])
        first = first.masked_fill((strength == 0).view(-1, 1, 1, 1, 1), 0)
        rows = Rows(tokens, strength)
        rotary = transformer.rotary_embedding(t, h, w, self.device)
        cache = StepCache(mode.cache) if mode.cache else None
        run_block = partial(run_as_is, fp8=True) if mode.fp8 else None

        def velocity(latents: Tensor, timestep: int) -> Tensor:
            both = torch.cat([latents, latents]) if guided else latents
            seen = torch.cat([both, first], 2).to(self.dtype)
            times = torch.full((len(both),), timestep, device=self.device)
            done = 1 - timestep / (TRAIN_STEPS - 1)
            v = transformer(
                seen,
                text.to(self.dtype),
                times,
                rotary=rotary,
                run=rows,
                progress=done,
                cache=cache,
                run_block=run_block,
            ).float()
            return guide(*v.chunk(2), guidance) if guided else v

        generator = torch.Generator(self.device).manual_seed(requests[0].seed)
        return denoise(velocity, noise.to(self.device), scheduler=scheduler, steps=steps, generator=generator)

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
        encoded = [vae.encode(one[None]).latent_dist.sample(draw) for one, draw in zip(pixels, draws, strict=True)]
        first = torch.cat(encoded).float() * vae.config.scaling_factor
        return first_frame_condition(first, shape[0]).transpose(1, 2)


def load(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Generator:
    """The small model of a folder in the published layout.

    Raises:
        WeightsMissingError, WeightsError, MeshError: files are missing or damaged.
    """
    return Generator(nano.read(folder), device, dtype)
