"""Stage identity: injection layers and, as the options say, the encoder of the tokens and the DiT."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fantasyid_core.dit import byte_tokens
from fantasyid_core.dit.injection import LayerAttention, SampleInjector
from fantasyid_core.dit.transformer import run_as_is
from fantasyid_core.errors import TrainingError
from fantasyid_core.fusion.identity import BRANCHES
from fantasyid_core.sampling.pipeline import Conditions
from fantasyid_core.video.latents import first_frame_condition

from .. import nano
from ..latents import encode
from ..people.crops import align
from . import data, pictures
from .acting import Performances, as_captured, meshes_per_latent_frame
from .base import five_frames, generate, losses_at_fixed_timesteps
from .captions import Captions
from .diffusion import FIXED_TIMESTEPS, Noising, Rotary, loss_weights, on_pictures, stratified_timesteps, weighted_mse
from .face import CROP, as_photos, reference_crops
from .identity_batch import Clips, IdentityBatch, Reference, ReferenceCrops, ValidationClips
from .options import IdentityOptions
from .pool import PoolSamples
from .references import References
from .stage import Context, Stage, evaluating, parameters_of, trainable
from .vae import encode_pools

ENCODER_PARTS = ("abstractor", "spiral_net", "reducer")


class Source(Protocol):
    """Where an identity batch comes from: the pool, or a folder of clips."""

    def batch(self, step: int, count: int, generator: torch.Generator) -> Clips:
        """What to train on at a step."""

    def validation(self) -> ValidationClips:
        """What to look at, always the same."""


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

    def encode_tokens(self, hidden_states: Tensor, vertices: Tensor) -> Tensor:
        """Tower's hidden state (B, 1 + N, D) and vertices (B, V, 3) → identity tokens (B, N, K)."""
        face_tokens = self.abstractor(hidden_states)
        parts = [face_tokens] if self.options.branch_2d else []
        if self.options.branch_3d:
            # Autocast leaves the depth encoding in float32; the gathers over the full mesh are in bfloat16.
            parts.append(self.reducer(self.spiral_net(vertices.float(), face_tokens)).to(face_tokens.dtype))
        return torch.cat(parts, 1)

    def identity_tokens(self, reference: Reference) -> Tensor:
        """A reference's identity tokens (B, N, K) as they are, or encoded; (B, t, N, K) where some of them act."""
        tokens = reference.tokens
        if tokens is None:
            tokens = self.encode_tokens(reference.hidden_states, reference.vertices)
        return tokens if reference.meshes is None else self.act(tokens, reference.meshes)

    def act(self, tokens: Tensor, meshes: Tensor) -> Tensor:
        """Identity tokens (B, N, K) → of each latent frame (B, t, N, K): in the first A samples those of the face and
        of the meshes (A, t, V, 3), in the others always the same.
        """
        acting, frames = meshes.shape[:2]
        face_tokens = tokens[:acting, : self.abstractor.side**2].repeat_interleave(frames, 0)
        vertex_tokens = self.reducer(self.spiral_net(meshes.flatten(0, 1).float(), face_tokens)).to(tokens.dtype)
        moving = torch.cat([face_tokens, vertex_tokens], 1).unflatten(0, (acting, frames))
        return torch.cat([moving, tokens[acting:, None].expand(-1, frames, -1, -1)])

    def velocity(
        self,
        noisy: Tensor,
        image: Tensor,
        text: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        present: Tensor | None = None,
    ) -> Tensor:
        """Noisy and image latents (B, t, 16, h, w) → the velocity with the identity injected where it is `present`."""
        if present is not None:
            image = image * present.view(-1, 1, 1, 1, 1)
        model_input = torch.cat([noisy, image], 2).to(text.dtype)
        if torch.is_grad_enabled():  # the first block asks for gradients like the others, and compiles like them
            model_input, text = model_input.detach().requires_grad_(), text.detach().requires_grad_()
        return self.transformer(
            model_input,
            text,
            timestep,
            image_rotary_emb=self.rotary(noisy),
            injector=SampleInjector(tokens, present, self.shared_layer),
            run_block=_checkpointed if self.options.checkpointing and torch.is_grad_enabled() else None,
        )

    def forward(self, batch: IdentityBatch) -> dict[str, Tensor]:
        timestep = batch.timestep
        noisy, velocity = self.noising(batch.latents, batch.noise, timestep)
        tokens = self.identity_tokens(batch.reference)
        predicted = self.velocity(noisy, batch.image, batch.text, timestep, tokens, batch.present)
        sample_weights = self.loss_weights[timestep] if self.training and self.loss_weights is not None else None
        return {"loss": weighted_mse(predicted - velocity, batch.face_mask, self.options.face_weight, sample_weights)}


class PoolSource:
    """Identity batches from the pool of synthetic people.

    Args:
        encode_reference: turns crops into what is kept of them.
        encode_first_frame: crops, and the size (h, w) of latents → their latents (B, 16, h, w).
    """

    def __init__(
        self,
        context: Context,
        options: IdentityOptions,
        encode_reference: Callable[[ReferenceCrops], Reference],
        encode_first_frame: Callable[[Tensor, tuple[int, int]], Tensor],
    ):
        self.context, self.options = context, options
        self._encode_reference, self._encode_first_frame = encode_reference, encode_first_frame
        generator = context.generator(-1)
        self.references = References(context.pool, lambda *photos: self.encode_pictures(*photos, generator))
        self.captions = Captions(context.pool, context.embed_text)
        self.empty_text = context.embed_text(byte_tokens.encode_batch([""]).to(context.device))

    def batch(self, step: int, count: int, generator: torch.Generator) -> Clips:
        pool = self.context.pool
        if pictures := on_pictures(step, self.options.pictures):
            count *= self.options.pictures_batch
        samples = pool.draw(count, generator, pictures)
        dropped = data.rand(generator, count, 1, 1) < self.options.text_dropout
        text = torch.where(dropped, self.empty_text, self.captions.of(samples.captions))
        if pictures:
            text = text[:, : self.options.pictures_text]
        reference = self._draw_reference(samples, generator)
        performances = Performances(samples.expression, samples.pose)
        return Clips(samples.latents, samples.face_mask, text, reference, performances)

    def _draw_reference(self, samples: PoolSamples, generator: torch.Generator) -> Reference:
        """Of each person another photo than the one that is trained on, or with `multi_view` off what that shows."""
        pool, count = self.context.pool, len(samples.people)
        photos = pool.settings.stills
        if samples.photos is not None:
            others = data.randint(generator, photos - 1, count) + 1 if self.options.multi_view else 0
            return self.references.of(samples.people, (samples.photos + others) % photos)
        if self.options.multi_view:
            return self.references.of(samples.people, data.randint(generator, photos, count))
        rows = samples.captions  # of clips these are the clips' own
        times = data.randint(generator, pool.frames.shape[1], count)
        return self.encode_pictures(pool.frames[rows, times], pool.landmarks[rows, times], generator)

    def encode_pictures(self, pictures: Tensor, landmarks: Tensor, generator: torch.Generator) -> Reference:
        """Pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → what is kept of them."""
        cache_dtype = torch.bfloat16 if pictures.is_cuda else torch.float32
        crops = ReferenceCrops(
            reference_crops(pictures, landmarks, generator, self.options.randomise), self.vertices(pictures)
        )
        encoded = self._encode_reference(crops)
        # Vertices stay in float32: millimetres count.
        reference = replace(encoded.map(lambda x: x.to(cache_dtype)), vertices=encoded.vertices)
        if not self.options.first_frame:
            return reference
        size = self.context.pool.latents.shape[-2:]
        # Undamaged, as the video's first frame is at inference.
        sharp = align(pictures, landmarks, 8 * max(size), data.jitter(generator, len(pictures)))
        return replace(reference, first_frame=self._encode_first_frame(sharp, size).to(cache_dtype))

    def vertices(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 → the regressor's faces, shape alone, (B, V, 3)."""
        with self.context.autocast():
            code = self.context.model.regressor(as_photos(pictures)).float()
        return self.context.model.face.decode(code[:, :100])

    def validation(self) -> ValidationClips:
        """The first 64 validation clips with the first photo of their people as reference."""
        pool = self.context.validation
        rows = slice(0, min(64, pool.clips))
        people = pool.owner[rows]
        pictures, landmarks = pool.stills[people, 0], pool.still_landmarks[people, 0]
        exact = torch.zeros(len(people), 4, device=pool.device)
        return ValidationClips(
            latents=pool.latents[rows].float(),
            face_mask=pool.latent_face_mask[rows],
            text=self.context.embed_text(pool.caption[rows].long()),
            reference=ReferenceCrops(align(pictures, landmarks, CROP, exact), self.vertices(pictures)),
            performances=Performances(pool.expression[rows], pool.pose[rows]),
            empty_text=self.empty_text,
            truth=pool.frames[rows].float() / 255,
        )


class IdentityStage(Stage):
    """See the module."""

    objective_class: type[IdentityObjective] = IdentityObjective

    def __init__(self, context: Context):
        super().__init__(context)
        self.options: IdentityOptions = self.settings.options
        options = self.options
        model = context.model
        for module in model.modules.values():
            module.eval().requires_grad_(False)
        model.face = model.face.to(context.device)
        self.objective = self.objective_class(model, options, context.device)
        if options.acting_share:
            _check_acting(options)
        self.encoder_learns = self._unfreeze_encoder()
        self.source = self._make_source()
        self._unfreeze_transformer()
        for parameter in self.objective.parameters():
            if parameter.requires_grad:  # AdamW's small steps would be lost in bfloat16
                parameter.data = parameter.data.float()
        if any(p.requires_grad for p in model.transformer.transformer_blocks.parameters()):
            model.transformer.train()  # blocks are compiled to the very graphs of stage base, which may be there still
        self._looked_at: tuple[ValidationClips, Reference, Tensor] | None = None
        if options.loss_weighting:
            initial = self._losses_of(0)
            losses = [initial[f"loss_at_{timestep}"] for timestep in FIXED_TIMESTEPS]
            self.objective.loss_weights = loss_weights(losses, options.loss_weighting).to(context.device)

    def _unfreeze_encoder(self) -> bool:
        """Train the parts of the identity encoder that the options name; whether there are any."""
        options, encoder = self.options, self.context.model.encoder
        if options.encoder_lr_mult:
            trainable(encoder.abstractor)
        train_mesh = bool(options.branch_3d and options.mesh_lr_mult)
        if train_mesh:
            trainable(encoder.spiral_net)
            trainable(encoder.reducer)
        return bool(options.encoder_lr_mult) or train_mesh

    def _unfreeze_transformer(self) -> None:
        """Train the injection layers, and the DiT's parameters that the options name."""
        options, transformer = self.options, self.context.model.transformer
        layers = transformer.layer_attention
        (layers[0] if options.shared_layer else layers).requires_grad_(True)
        # As in the release, whose configuration does not say so.
        has_first_frame = self.context.model.config.get("first_frame_condition", True)
        patch_embed = ["patch_embed.proj"] if options.first_frame and not has_first_frame else []
        for name, parameter in transformer.named_parameters():
            if name.startswith((*options.unfreeze, *patch_embed)) and not name.startswith("layer_attention."):
                parameter.requires_grad_(True)

    def _make_source(self) -> Source:
        if self.options.data:
            from .clip_folder import FolderSource

            return FolderSource(self.context, self.options)
        encode_pools(self.context)
        return PoolSource(self.context, self.options, self.encode_reference, self._encode_first_frame)

    def batch(self, step: int, generator: torch.Generator) -> IdentityBatch:
        with torch.no_grad():
            clips = self.source.batch(step, self.settings.batch, generator)
            reference, image = self.condition(clips)
            count, dropout = len(clips.latents), self.options.identity_dropout
            reference = self._with_acting(reference, clips, generator)
            return IdentityBatch(
                latents=clips.latents,
                face_mask=clips.face_mask,
                text=clips.text,
                reference=reference,
                image=image,
                noise=data.randn(generator, *clips.latents.shape),
                timestep=stratified_timesteps(count, generator, self.options.high_noise_fraction),
                present=(data.rand(generator, count) >= dropout).float() if dropout else None,
            )

    def _with_acting(self, reference: Reference, clips: Clips, generator: torch.Generator) -> Reference:
        """The reference with that share of the people acting as in their clips."""
        if not (acting := round(self.options.acting_share * len(clips.latents))):
            return reference
        performances = as_captured(
            clips.performances.map(lambda x: x[:acting]),
            self.context.model.face,
            generator,
            self.options.acting_noise,
            self.options.acting_missing,
        )
        return self.act(reference, performances)

    def act(self, reference: Reference, performances: Performances) -> Reference:
        """The reference of B people, of whom the first A act: their meshes, or the tokens of these where the encoder is
        not trained.
        """
        neutral = reference.vertices[: len(performances.pose)]
        reference = replace(reference, meshes=meshes_per_latent_frame(self.context.model.face, neutral, performances))
        if self.encoder_learns:
            return reference
        with self.context.autocast():
            return Reference(tokens=self.objective.identity_tokens(reference))

    def condition(self, clips: Clips) -> tuple[Reference, Tensor]:
        """The clips' reference, encoded, and image latents (B, t, 16, h, w)."""
        latents, crops = clips.latents, clips.reference
        reference = self.encode_reference(crops) if isinstance(crops, ReferenceCrops) else crops
        if not self.options.first_frame:
            return reference, torch.zeros_like(latents)
        first = reference.first_frame
        if first is None:
            first = self._encode_first_frame(crops.crops, latents.shape[-2:])
        image = first_frame_condition(first[:, :, None], latents.shape[1]).transpose(1, 2)
        return replace(reference, first_frame=None), image.to(latents)

    def encode_reference(self, reference: ReferenceCrops) -> Reference:
        """What identity tokens are encoded from where their encoder is trained as well, else the tokens."""
        tower = self.context.model.encoder.tower
        with self.context.autocast():
            hidden_states = tower.last_hidden_state(tower.preprocess(reference.crops))
            if self.encoder_learns:
                return Reference(hidden_states=hidden_states, vertices=reference.vertices)
            vertices = reference.vertices if self.options.acting_share else None
            return Reference(self.objective.encode_tokens(hidden_states, reference.vertices), vertices=vertices)

    def _encode_first_frame(self, crops: Tensor, size: tuple[int, int]) -> Tensor:
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
        abstractor = {encoder.abstractor: self.options.encoder_lr_mult}
        return mesh | abstractor | {dit: self.options.dit_lr_mult, dit.layer_attention: 1.0}

    def compile(self) -> list[nn.Module]:
        transformer = self.context.model.transformer
        return [*transformer.transformer_blocks, *transformer.layer_attention]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses at fixed times with the right identity, and by how much a wrong one makes each of them worse."""
        clips, _, _ = self._validation()
        right, wrong = self._losses_of(0), self._losses_of(len(clips.latents) // 2)
        worse = {
            f"a_wrong_identity_at_{timestep}": wrong[f"loss_at_{timestep}"] / right[f"loss_at_{timestep}"]
            for timestep in FIXED_TIMESTEPS
        }
        acting = {"loss_acting": self._losses_of(0, acts=True)["loss"]} if self.options.acting_share else {}
        return right | {"loss_of_a_wrong_identity": wrong["loss"]} | worse | acting

    @torch.no_grad()
    def _losses_of(self, shift: int, acts: bool = False) -> dict[str, float]:
        """Losses at fixed times with the identity of the validation sample `shift` places on, at rest or acting as the
        clips do.
        """
        clips, reference, image = self._validation()
        if acts:
            reference = self.act(reference, clips.performances)
        reference = reference.map(lambda x: x.roll(shift, 0))

        def loss(rows: slice, noise: Tensor, timestep: Tensor) -> Tensor:
            batch = IdentityBatch(
                latents=clips.latents[rows],
                face_mask=clips.face_mask[rows],
                text=clips.text[rows],
                reference=reference.map(lambda x: x[rows]),
                image=image[rows],
                noise=noise,
                timestep=timestep,
            )
            return self.objective(batch)["loss"]

        with evaluating(self.objective):
            return losses_at_fixed_timesteps(self.context, loss, clips.latents)

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Eight people: reference, five generated frames, the true clip's middle frame."""
        clips, reference, image = self._validation()
        stride = max(1, len(clips.latents) // 8)
        rows = slice(0, 8 * stride, stride)
        with evaluating(self.objective), self.context.autocast():
            tokens = self.objective.identity_tokens(reference.map(lambda x: x[rows]))
            conditions = Conditions(clips.text[rows], clips.empty_text, image[rows], tokens)
            generated = self._generate(conditions)
        size, crops = tuple(generated.shape[2:4]), clips.reference.crops[rows]
        crop = nn.functional.interpolate(crops.movedim(-1, 1), size, mode="bilinear", antialias=True)
        truth = clips.truth[rows, clips.truth.shape[1] // 2, None]
        return pictures.grid(torch.cat([crop.movedim(1, -1)[:, None], five_frames(generated), truth], 1))

    def _generate(self, conditions: Conditions) -> Tensor:
        return generate(self.context, conditions, self.objective.shared_layer)

    def _validation(self) -> tuple[ValidationClips, Reference, Tensor]:
        """The clips that are looked at, and what they are conditioned on."""
        if self._looked_at is None:
            clips = self.source.validation()
            self._looked_at = (clips, *self.condition(clips))
        return self._looked_at

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
        model.config.pop("trained_with_acting", None)
        if self.options.acting_share:
            model.config["trained_with_acting"] = True
        nano.write(model, self.context.model_folder, ["transformer"])


def _check_acting(options: IdentityOptions) -> None:
    if options.data or not (options.branch_2d and options.branch_3d):
        raise TrainingError(
            "acting_share needs the pool of synthetic people, whose motion is known, and both branches. Set it to 0, "
            "or leave data empty and set branch_2d and branch_3d to true."
        )


def _checkpointed(
    index: int, block: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb
) -> tuple:
    return checkpoint(
        run_as_is, index, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, use_reentrant=False
    )
