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
from .base import five_frames, generate, losses_at_fixed_timesteps
from .captions import Captions
from .diffusion import FIXED_TIMESTEPS, Noising, Rotary, loss_weights, on_pictures, stratified_timesteps, weighted_mse
from .face import CROP, as_photos, reference_crops
from .options import IdentityOptions
from .references import References
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable
from .vae import encode, encode_pools

ENCODER_PARTS = ("abstractor", "spiral_net", "reducer")
IDENTITY_INPUTS = ("tokens", "hidden_states", "vertices")  # of a batch: the tokens, or what they are encoded from


class Source(Protocol):
    """Where an identity batch comes from: the pool, or a folder of clips."""

    def batch(self, step: int, count: int, generator: torch.Generator) -> Batch:
        """`latents`, `face_mask`, `text` embeddings and the reference: `crops` (B, S, S, 3), `vertices` (B, V, 3) or
        what `IdentityStage.encode_reference` makes of them and, with the option, `first_frame` latents (B, 16, h, w).
        """

    def validation(self) -> Batch:
        """Likewise, always the same, with `crops`; `empty_text` (1, L, D), embeddings of no text; and `truth`, frames
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

    def encode_tokens(self, hidden_states: Tensor, vertices: Tensor) -> Tensor:
        """Tower's hidden state (B, 1 + N, D) and vertices (B, V, 3) → identity tokens (B, N, K)."""
        face_tokens = self.abstractor(hidden_states)
        parts = [face_tokens] if self.options.branch_2d else []
        if self.options.branch_3d:
            # Autocast leaves the depth encoding in float32; the gathers over the full mesh are in bfloat16.
            parts.append(self.reducer(self.spiral_net(vertices.float(), face_tokens)).to(face_tokens.dtype))
        return torch.cat(parts, 1)

    def identity_tokens(
        self, tokens: Tensor | None = None, hidden_states: Tensor | None = None, vertices: Tensor | None = None
    ) -> Tensor:
        """Identity tokens as they are, or encoded from what `encode_tokens` takes: a batch has one of the two."""
        return self.encode_tokens(hidden_states, vertices) if tokens is None else tokens

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

    def forward(
        self,
        latents: Tensor,
        face_mask: Tensor,
        text: Tensor,
        image: Tensor,
        noise: Tensor,
        timestep: Tensor,
        tokens: Tensor | None = None,
        hidden_states: Tensor | None = None,
        vertices: Tensor | None = None,
        present: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Latents, image latents and noise (B, t, 16, h, w); identity tokens, or what they are encoded from; the
        rest as in `velocity` and `encode_tokens`.
        """
        noisy, velocity = self.noising(latents, noise, timestep)
        predicted = self.velocity(
            noisy, image, text, timestep, self.identity_tokens(tokens, hidden_states, vertices), present
        )
        sample_weights = self.loss_weights[timestep] if self.training and self.loss_weights is not None else None
        return {"loss": weighted_mse(predicted - velocity, face_mask, self.options.face_weight, sample_weights)}


class PoolSource:
    """Identity batches from the pool of synthetic people.

    Args:
        encode_reference: crops (B, S, S, 3) and vertices (B, V, 3) → `IDENTITY_INPUTS` of them.
        encode_first_frame: crops, and the size (h, w) of latents → their latents (B, 16, h, w).
    """

    def __init__(
        self,
        context: Context,
        options: IdentityOptions,
        encode_reference: Callable[[Tensor, Tensor], Batch],
        encode_first_frame: Callable[[Tensor, tuple[int, int]], Tensor],
    ):
        self.context, self.options = context, options
        self._encode_reference, self._encode_first_frame = encode_reference, encode_first_frame
        generator = context.generator(-1)
        self.references = References(context.pool, lambda *photos: self.encode_pictures(*photos, generator))
        self.captions = Captions(context.pool, context.embed_text)
        self.empty_text = context.embed_text(byte_tokens.encode_batch([""]).to(context.device))

    def batch(self, step: int, count: int, generator: torch.Generator) -> Batch:
        pool = self.context.pool
        if pictures := on_pictures(step, self.options.pictures):
            count *= self.options.pictures_batch
        samples = pool.draw(count, generator, pictures)
        dropped = data.rand(generator, count, 1, 1) < self.options.text_dropout
        text = torch.where(dropped, self.empty_text, self.captions.of(samples.captions))
        if pictures:
            text = text[:, : self.options.pictures_text]
        batch = {"latents": samples.latents, "face_mask": samples.face_mask, "text": text}
        photos = pool.settings.stills
        if samples.photos is not None:
            others = data.randint(generator, photos - 1, count) + 1 if self.options.multi_view else 0
            return batch | self.references.of(samples.people, (samples.photos + others) % photos)
        if self.options.multi_view:
            return batch | self.references.of(samples.people, data.randint(generator, photos, count))
        rows = samples.captions  # of clips these are the clips' own
        times = data.randint(generator, pool.frames.shape[1], count)
        return batch | self.encode_pictures(pool.frames[rows, times], pool.landmarks[rows, times], generator)

    def encode_pictures(self, pictures: Tensor, landmarks: Tensor, generator: torch.Generator) -> Batch:
        """Pictures (B, H, W, 3) uint8 and landmarks (B, 68, 2) px → `IDENTITY_INPUTS`, and `first_frame` if on."""
        cache_dtype = torch.bfloat16 if pictures.is_cuda else torch.float32
        crops = reference_crops(pictures, landmarks, generator)
        inputs = self._encode_reference(crops, self.vertices(pictures))
        # Vertices stay in float32: millimetres count.
        inputs = {name: x if name == "vertices" else x.to(cache_dtype) for name, x in inputs.items()}
        if self.options.first_frame:  # undamaged, as the video's first frame is at inference
            size = self.context.pool.latents.shape[-2:]
            sharp = data.align(pictures, landmarks, 8 * max(size), data.jitter(generator, len(pictures)))
            inputs["first_frame"] = self._encode_first_frame(sharp, size).to(cache_dtype)
        return inputs

    def vertices(self, pictures: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) uint8 → the regressor's faces, shape alone, (B, V, 3)."""
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
            "face_mask": pool.latent_face_mask[rows],
            "text": self.context.embed_text(pool.caption[rows].long()),
            "empty_text": self.empty_text,
            "crops": data.align(pictures, landmarks, CROP, exact),
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
        self.encoder_learns = self._unfreeze_encoder()
        self.source = self._make_source()
        self._unfreeze_transformer()
        for parameter in self.objective.parameters():
            if parameter.requires_grad:  # AdamW's small steps would be lost in bfloat16
                parameter.data = parameter.data.float()
        if any(p.requires_grad for p in model.transformer.transformer_blocks.parameters()):
            model.transformer.train()  # blocks are compiled to the very graphs of stage base, which may be there still
        self._validation: Batch | None = None
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

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        with torch.no_grad():
            batch = self._condition(self.source.batch(step, self.settings.batch, generator))
            count = len(batch["latents"])
            batch |= {
                "noise": data.randn(generator, *batch["latents"].shape),
                "timestep": stratified_timesteps(count, generator, self.options.high_noise_fraction),
            }
            if self.options.identity_dropout:
                batch["present"] = (data.rand(generator, count) >= self.options.identity_dropout).float()
            return batch

    def _condition(self, batch: Batch) -> Batch:
        """A source's batch with `IDENTITY_INPUTS` and `image` in place of `crops`, `vertices` and `first_frame`."""
        batch = dict(batch)
        crops, first, latents = batch.pop("crops", None), batch.pop("first_frame", None), batch["latents"]
        if crops is not None:
            batch |= self.encode_reference(crops, batch.pop("vertices"))
        if not self.options.first_frame:
            return batch | {"image": torch.zeros_like(latents)}
        if first is None:
            first = self._encode_first_frame(crops, latents.shape[-2:])
        image = first_frame_condition(first[:, :, None], latents.shape[1]).transpose(1, 2)
        return batch | {"image": image.to(latents)}

    def encode_reference(self, crops: Tensor, vertices: Tensor) -> Batch:
        """Crops (B, S, S, 3) and vertices (B, V, 3) → `tokens`, or `hidden_states` and `vertices` where the tokens'
        encoder is trained as well.
        """
        tower = self.context.model.encoder.tower
        with self.context.autocast():
            hidden_states = tower.last_hidden_state(tower.preprocess(crops))
            if self.encoder_learns:
                return {"hidden_states": hidden_states, "vertices": vertices}
            return {"tokens": self.objective.encode_tokens(hidden_states, vertices)}

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
        right, wrong = self._losses_of(0), self._losses_of(len(self._validation_batch()["latents"]) // 2)
        worse = {
            f"a_wrong_identity_at_{timestep}": wrong[f"loss_at_{timestep}"] / right[f"loss_at_{timestep}"]
            for timestep in FIXED_TIMESTEPS
        }
        return right | {"loss_of_a_wrong_identity": wrong["loss"]} | worse

    @torch.no_grad()
    def _losses_of(self, shift: int) -> dict[str, float]:
        """Losses at fixed times with the identity of the validation sample `shift` places on."""
        batch = self._validation_batch()

        def loss(rows: slice, noise: Tensor, timestep: Tensor) -> Tensor:
            inputs = {name: batch[name][rows] for name in ("latents", "face_mask", "text", "image")}
            inputs |= {name: x.roll(shift, 0)[rows] for name, x in _identity_inputs(batch).items()}
            return self.objective(**inputs, noise=noise, timestep=timestep)["loss"]

        with evaluating(self.objective):
            return losses_at_fixed_timesteps(self.context, loss, batch["latents"])

    @torch.no_grad()
    def sample_grid(self) -> Tensor:
        """Eight people: reference, five generated frames, the true clip's middle frame."""
        batch = self._validation_batch()
        stride = max(1, len(batch["latents"]) // 8)
        batch = {name: x[::stride][:8] if name != "empty_text" else x for name, x in batch.items()}
        with evaluating(self.objective), self.context.autocast():
            tokens = self.objective.identity_tokens(**_identity_inputs(batch))
            conditions = Conditions(batch["text"], batch["empty_text"], batch["image"], tokens)
            generated = generate(self.context, conditions, self.objective.shared_layer)
        size = tuple(generated.shape[2:4])
        crop = nn.functional.interpolate(batch["crops"].movedim(-1, 1), size, mode="bilinear", antialias=True)
        truth = batch["truth"][:, batch["truth"].shape[1] // 2, None]
        return pictures.grid(torch.cat([crop.movedim(1, -1)[:, None], five_frames(generated), truth], 1))

    def _validation_batch(self) -> Batch:
        if self._validation is None:
            batch = self.source.validation()
            self._validation = batch | self._condition(batch)
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


def _identity_inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in IDENTITY_INPUTS if name in batch}


def _checkpointed(
    index: int, block: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb
) -> tuple:
    return checkpoint(
        run_as_is, index, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb, use_reentrant=False
    )
