"""Stage identity: injection layers and, as the options say, the encoder of the tokens and the DiT."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.injection import LayerAttention, SampleInjector
from fantasyid_core.dit.transformer import run_as_is
from fantasyid_core.fusion.identity import BRANCHES
from fantasyid_core.sampling.pipeline import Conditions
from fantasyid_core.video.latents import first_frame_condition

from .. import nano
from . import data, pictures
from .base import five_frames, generate, losses_at_fixed_times
from .captions import Captions
from .diffusion import FIXED_TIMES, Noising, Rotary, loss_weights, on_pictures, stratified_timesteps, weighted_mse
from .face import CROP, aligned_crops, as_photos
from .options import IdentityOptions
from .references import References
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable
from .vae import encode, encode_pools

ENCODER_PARTS = ("abstractor", "spiral_net", "reducer")
WHO = ("tokens", "hidden", "vertices")  # what a batch may know its people by


class Source(Protocol):
    """Where an identity batch comes from: the pool, or a folder of clips."""

    def batch(self, step: int, count: int, generator: torch.Generator) -> Batch:
        """`latents`, `face`, `words` (text embeddings) and the reference: `crops` (B, S, S, 3), `vertices` (B, V, 3) or
        what `IdentityStage.known` makes of them and, with `first_frame`, latents `first` (B, 16, h, w).
        """

    def validation(self) -> Batch:
        """Likewise, always the same, with `crops`; `empty` (1, L, D), embeddings of no text; and `truth`, frames
        (B, T, H, W, 3) 0…1.
        """


class IdentityObjective(nn.Module):
    """The velocity loss again, with the identity of another picture injected."""

    def __init__(self, model: nano.Nano, options: IdentityOptions, device: torch.device):
        super().__init__()
        self.transformer = model.transformer
        self.abstractor, self.spiral_net, self.reducer = (getattr(model.encoder, name) for name in ENCODER_PARTS)
        self.noising, self.rotary, self.options = Noising(device), Rotary(model.transformer), options
        self.loss_weights: Tensor | None = None  # (1000,) what samples of each time count in training

    @property
    def shared_layer(self) -> LayerAttention | None:
        """The injection layer of all blocks, where they share one."""
        return self.transformer.layer_attention[0] if self.options.shared_layer else None

    def tokens(self, hidden: Tensor, vertices: Tensor) -> Tensor:
        """Tower's hidden state (B, 1 + N, D) and vertices (B, V, 3) → identity tokens (B, N, K)."""
        face = self.abstractor(hidden)
        parts = [face] if self.options.branch_2d else []
        if self.options.branch_3d:
            # Autocast leaves the depth encoding in float32; the gathers over the full mesh are in bfloat16.
            parts.append(self.reducer(self.spiral_net(vertices.float(), face)).to(face.dtype))
        return torch.cat(parts, 1)

    def descriptor(
        self, tokens: Tensor | None = None, hidden: Tensor | None = None, vertices: Tensor | None = None
    ) -> Tensor:
        """Identity tokens as they are, or made of what `tokens` takes: what a batch holds of `WHO`."""
        return self.tokens(hidden, vertices) if tokens is None else tokens

    def velocity(
        self,
        noisy: Tensor,
        image: Tensor,
        words: Tensor,
        time: Tensor,
        tokens: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """Noisy and image latents (B, t, 16, h, w) → the velocity with the identity injected where it is `present`."""
        if present is not None:
            image = image * present.view(-1, 1, 1, 1, 1)
        seen = torch.cat([noisy, image], 2).to(words.dtype)
        if torch.is_grad_enabled():  # the first block asks for gradients like the others, and compiles like them
            seen, words = seen.detach().requires_grad_(), words.detach().requires_grad_()
        return self.transformer(
            seen,
            words,
            time,
            rotary=self.rotary(noisy),
            injector=SampleInjector(tokens, present, self.shared_layer),
            run_block=_recomputed if self.options.checkpointing and torch.is_grad_enabled() else None,
        )

    def forward(
        self,
        latents: Tensor,
        face: Tensor,
        words: Tensor,
        image: Tensor,
        noise: Tensor,
        time: Tensor,
        tokens: Tensor | None = None,
        hidden: Tensor | None = None,
        vertices: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Latents, image latents and noise (B, t, 16, h, w); identity tokens, or what they are made of; the rest as in
        `velocity` and `tokens`.
        """
        noisy, velocity = self.noising(latents, noise, time)
        made = self.velocity(noisy, image, words, time, self.descriptor(tokens, hidden, vertices), present)
        counts = self.loss_weights[time] if self.training and self.loss_weights is not None else None
        return {"loss": weighted_mse(made - velocity, face, self.options.face_weight, counts)}


class PoolSource:
    """Identity batches from the pool of synthetic people.

    Args:
        known: crops (B, S, S, 3) and vertices (B, V, 3) → what is known of the person, as the objective takes it.
        first: crops, and the size (h, w) of latents → their latents (B, 16, h, w).
    """

    def __init__(
        self,
        context: Context,
        options: IdentityOptions,
        known: Callable[[Tensor, Tensor], Batch],
        first: Callable[[Tensor, tuple[int, int]], Tensor],
    ):
        self.context, self.options, self._known, self._first = context, options, known, first
        generator = context.generator(-1)
        self.references = References(context.pool, lambda *photos: self.seen(*photos, generator))
        self.captions = Captions(context.pool, context.words)
        self.empty = context.words(byte_tokens.encode_batch([""]).to(context.device))

    def batch(self, step: int, count: int, generator: torch.Generator) -> Batch:
        pool = self.context.pool
        if pictures := on_pictures(step, self.options.pictures):
            count *= self.options.pictures_batch
        drawn = pool.draw(count, generator, pictures)
        dropped = data.rand(generator, count, 1, 1) < self.options.text_dropout
        words = torch.where(dropped, self.empty, self.captions.of(drawn.captions))
        if pictures:
            words = words[:, : self.options.pictures_text]
        batch = {"latents": drawn.latents, "face": drawn.face, "words": words}
        photos = pool.settings.stills
        if drawn.photos is not None:
            others = data.randint(generator, photos - 1, count) + 1 if self.options.multi_view else 0
            return batch | self.references.of(drawn.people, (drawn.photos + others) % photos)
        if self.options.multi_view:
            return batch | self.references.of(drawn.people, data.randint(generator, photos, count))
        rows = drawn.captions  # of clips these are the clips' own
        times = data.randint(generator, pool.frames.shape[1], count)
        return batch | self.seen(pool.frames[rows, times], pool.landmarks[rows, times], generator)

    def seen(self, pictures: Tensor, landmarks: Tensor, generator: torch.Generator) -> Batch:
        """Pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → what is known and, where wanted, `first`."""
        cache_dtype = torch.bfloat16 if pictures.is_cuda else torch.float32
        crops = aligned_crops(pictures, landmarks, generator)
        known = self._known(crops, self.vertices(pictures))
        seen = {name: x if name == "vertices" else x.to(cache_dtype) for name, x in known.items()}  # millimetres count
        if self.options.first_frame:  # undamaged, as the video's first frame is at inference
            size = self.context.pool.latents.shape[-2:]
            sharp = data.aligned(pictures, landmarks, 8 * max(size), data.jitter(generator, len(pictures)))
            seen["first"] = self._first(sharp, size).to(cache_dtype)
        return seen

    def vertices(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 → the faces that the regressor sees in them, shape alone, (B, V, 3)."""
        with self.context.autocast():
            code = self.context.model.regressor(as_photos(pictures)).float()
        return self.context.model.face.decode(code[:, :100])

    def validation(self) -> Batch:
        """The first 64 validation clips with the first photo of their people as reference."""
        pool = self.context.validation
        rows = slice(0, min(64, pool.clips))
        people = pool.owner[rows]
        pictures, landmarks = pool.stills[people, 0], pool.still_landmarks[people, 0]
        exact = torch.zeros(len(people), 4, device=pool.device)
        return {
            "latents": pool.latents[rows].float(),
            "face": pool.face_latent[rows],
            "words": self.context.words(pool.caption[rows].long()),
            "empty": self.empty,
            "crops": data.aligned(pictures, landmarks, CROP, exact),
            "vertices": self.vertices(pictures),
            "truth": pool.frames[rows].float() / 255,
        }


class IdentityStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.options: IdentityOptions = self.settings.options
        options = self.options
        model = context.model
        for module in model.modules.values():
            module.eval().requires_grad_(False)
        model.face = model.face.to(context.device)
        self.objective = IdentityObjective(model, options, context.device)
        mesh_learns = bool(options.branch_3d and options.mesh_lr_mult)
        self.encoder_learns = bool(options.encoder_lr_mult) or mesh_learns
        if options.encoder_lr_mult:
            trainable(model.encoder.abstractor)
        if mesh_learns:
            trainable(model.encoder.spiral_net)
            trainable(model.encoder.reducer)
        if options.data:
            from .clip_folder import FolderSource

            self.source = FolderSource(context, options)
        else:
            encode_pools(context)
            self.source = PoolSource(context, options, self.known, self._first)
        layers = model.transformer.layer_attention
        (layers[0] if options.shared_layer else layers).requires_grad_(True)
        sees_first_frame = model.config.get("first_frame_condition", True)  # as in the release, which does not say so
        learns_it = options.first_frame and not sees_first_frame
        unfrozen = (*options.unfreeze, *(["patch_embed.proj"] if learns_it else []))
        for name, parameter in model.transformer.named_parameters():
            if name.startswith(unfrozen) and not name.startswith("layer_attention."):
                parameter.requires_grad_(True)
        for parameter in self.objective.parameters():
            if parameter.requires_grad:  # AdamW's small steps would be lost in bfloat16
                parameter.data = parameter.data.float()
        if any(p.requires_grad for p in model.transformer.transformer_blocks.parameters()):
            model.transformer.train()  # blocks are compiled to the very graphs of stage base, which may be there still
        self._validation: Batch | None = None
        if options.loss_weighting:
            at_start = self._losses_of(0)
            losses = [at_start[f"loss_at_{time}"] for time in FIXED_TIMES]
            self.objective.loss_weights = loss_weights(losses, options.loss_weighting).to(context.device)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        with torch.no_grad():
            batch = self._seen(self.source.batch(step, self.settings.batch, generator))
            count = len(batch["latents"])
            batch |= {
                "noise": data.randn(generator, *batch["latents"].shape),
                "time": stratified_timesteps(count, generator, self.options.high_noise_fraction),
            }
            if self.options.identity_dropout:
                batch["present"] = (data.rand(generator, count) >= self.options.identity_dropout).float()
            return batch

    def _seen(self, batch: Batch) -> Batch:
        """A source's batch with what is known of the person and `image` in place of `crops`, `vertices` and `first`."""
        batch = dict(batch)
        crops, first, latents = batch.pop("crops", None), batch.pop("first", None), batch["latents"]
        if crops is not None:
            batch |= self.known(crops, batch.pop("vertices"))
        if not self.options.first_frame:
            return batch | {"image": torch.zeros_like(latents)}
        if first is None:
            first = self._first(crops, latents.shape[-2:])
        image = first_frame_condition(first[:, :, None], latents.shape[1]).transpose(1, 2)
        return batch | {"image": image.to(latents)}

    def known(self, crops: Tensor, vertices: Tensor) -> Batch:
        """Crops (B, S, S, 3) and vertices (B, V, 3) → `tokens`, or `hidden` and `vertices` where the tokens' encoder is
        trained as well.
        """
        tower = self.context.model.encoder.tower
        with self.context.autocast():
            hidden = tower.last_hidden_state(tower.preprocess(crops))
            if self.encoder_learns:
                return {"hidden": hidden, "vertices": vertices}
            return {"tokens": self.objective.tokens(hidden, vertices)}

    def _first(self, crops: Tensor, size: tuple[int, int]) -> Tensor:
        """Crops (B, S, S, 3) squeezed to one frame with latents of size (h, w) → its latents (B, 16, h, w)."""
        pixels = tuple(8 * n for n in size)
        frame = nn.functional.interpolate(crops.movedim(-1, 1), pixels, mode="bilinear", antialias=True)
        frames = (frame.clamp(0, 1) * 255).movedim(1, -1)[:, None]
        with self.context.autocast():
            return encode(self.context.model.vae, frames)[:, 0]

    def muon_parameters(self) -> list[nn.Parameter]:
        dit, encoder = self.context.model.transformer, self.context.model.encoder
        parts = (getattr(encoder, name) for name in ENCODER_PARTS)
        return parameters_of(dit.layer_attention, dit.transformer_blocks, *parts)

    def lr_mults(self) -> dict[nn.Module, float]:
        dit, encoder = self.context.model.transformer, self.context.model.encoder
        mesh = dict.fromkeys((encoder.spiral_net, encoder.reducer), self.options.mesh_lr_mult)
        face = {encoder.abstractor: self.options.encoder_lr_mult}
        return mesh | face | {dit: self.options.dit_lr_mult, dit.layer_attention: 1.0}

    def compile(self) -> list[nn.Module]:
        transformer = self.context.model.transformer
        return [*transformer.transformer_blocks, *transformer.layer_attention]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses at fixed times with the right identity, and by how much a wrong one makes each of them worse."""
        right, wrong = self._losses_of(0), self._losses_of(len(self._prepared()["latents"]) // 2)
        worse = {
            f"a_wrong_identity_at_{time}": wrong[f"loss_at_{time}"] / right[f"loss_at_{time}"] for time in FIXED_TIMES
        }
        return right | {"loss_of_a_wrong_identity": wrong["loss"]} | worse

    @torch.no_grad()
    def _losses_of(self, shift: int) -> dict[str, float]:
        """Losses at fixed times with the identity of the validation sample `shift` places on."""
        batch = self._prepared()

        def loss(rows: slice, noise: Tensor, time: Tensor) -> Tensor:
            what = {name: batch[name][rows] for name in ("latents", "face", "words", "image")}
            who = {name: x.roll(shift, 0)[rows] for name, x in _who(batch).items()}
            return self.objective(**what, **who, noise=noise, time=time)["loss"]

        with evaluating(self.objective):
            return losses_at_fixed_times(self.context, loss, batch["latents"])

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Eight people: reference, five generated frames, the true clip's middle frame."""
        batch = self._prepared()
        every = max(1, len(batch["latents"]) // 8)
        batch = {name: x[::every][:8] if name != "empty" else x for name, x in batch.items()}
        with evaluating(self.objective), self.context.autocast():
            tokens = self.objective.descriptor(**_who(batch))
            conditions = Conditions(batch["words"], batch["empty"], batch["image"], tokens)
            made = generate(self.context, conditions, self.objective.shared_layer)
        size = tuple(made.shape[2:4])
        crop = nn.functional.interpolate(batch["crops"].movedim(-1, 1), size, mode="bilinear", antialias=True)
        truth = batch["truth"][:, batch["truth"].shape[1] // 2, None]
        return pictures.grid(torch.cat([crop.movedim(1, -1)[:, None], five_frames(made), truth], 1))

    def _prepared(self) -> Batch:
        if self._validation is None:
            batch = self.source.validation()
            self._validation = batch | self._seen(batch)
        return self._validation

    def export(self) -> None:
        model, layers = self.context.model, self.context.model.transformer.layer_attention
        if self.options.shared_layer:
            for layer in layers[1:]:
                layer.load_state_dict(layers[0].state_dict())
        model.config["first_frame_condition"] = bool(self.options.first_frame)
        branches = [name for name in BRANCHES if getattr(self.options, f"branch_{name}")]
        model.config.pop("identity_branches", None)  # of the model that it may have gone on from
        if branches != list(BRANCHES):
            model.config["identity_branches"] = branches
        nano.write(model, self.context.model_folder, ["transformer"])


def _who(batch: Batch) -> Batch:
    """What tells a batch's people apart."""
    return {name: batch[name] for name in WHO if name in batch}


def _recomputed(index: int, block: nn.Module, visual: Tensor, words: Tensor, time: Tensor, rotary) -> tuple:
    return checkpoint(run_as_is, index, block, visual, words, time, rotary, use_reentrant=False)
