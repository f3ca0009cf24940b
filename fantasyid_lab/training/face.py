"""Stage face: the identity encoder and the shape regressor, from photos of people whose truth is known.

Linear probes read shape code and appearance from the tower's patches, the face abstractor's tokens and the vertex
tokens; the first two also have a contrastive loss over two photos of a person (InfoNCE). The probes are not exported.
The diffusion loss alone does not teach the encoder: it was tried (docs/training.md). The regressor learns DECA's code
of photos in many framings.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fantasyid_core.fusion.identity import IdentityEncoder
from fantasyid_core.fusion.spiral_net import checked_axes
from fantasyid_core.meters.attribute_regressor import degrade
from fantasyid_core.reconstruction import deca
from fantasyid_core.reconstruction.flame import Flame

from .. import nano
from ..people.batching import constant
from ..people.camera import apply, face_crop
from ..people.crops import align
from . import data, pictures
from .face_truth import Camera, axis_angle, mean_squared_mm, variance_explained, vertex_gram
from .options import FaceOptions
from .pool import hair_colour
from .randomise import Randomisation, randomise
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable

CAMERA_SPREAD = (2.0, 0.02, 0.02)  # of scale and shift, about a standard deviation
CONTRASTIVE = ("patches", "face")  # whose probes have the contrastive loss
CROP = 112  # px of the crops: as nano's tower reads them, which leaves nothing to resize
MESH_LR_MULT = 0.1  # at the full rate the vertex tokens become a constant (docs/training.md)


@dataclass(frozen=True, eq=False)
class FaceBatch(Batch):
    """Photos of people whose truth is known: for the encoder two crops of each of P, for the regressor B of the photos.

    Attributes:
        crops: (2 P, S, S, 3) 0…1, the two of a person one after the other.
        shape: (P, 100), true of the people; appearance: (2 P, L), what each crop shows of it, hair too.
        photos: (B, 3, 224, 224) 0…1; crop: (B,), the numbers of the crops that were cut from them.
        expression (B, 50), pose (B, 6), camera (B, 3): DECA's codes of the photos.
    """

    crops: Tensor
    photos: Tensor
    crop: Tensor
    shape: Tensor
    appearance: Tensor
    expression: Tensor
    pose: Tensor
    camera: Tensor


class LinearProbe(nn.Module):
    """Linear probe of tokens (B, N, C): shape code, appearance, and a unit vector for the contrastive loss.

    It reads the mean of the normalised tokens, as an injection layer does whose attention is still uniform.
    """

    def __init__(self, width: int, appearance_size: int):
        super().__init__()
        self.sizes = (100, appearance_size, 64)
        self.layer = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled = F.layer_norm(tokens.float(), tokens.shape[-1:]).mean(1)
        shape, appearance, embedding = self.layer(pooled).float().split(self.sizes, 1)
        return shape, appearance, F.normalize(embedding, dim=1)


class FaceObjective(nn.Module):
    """Losses of encoder and regressor; shape errors are squared millimetres over the face model's vertices."""

    def __init__(
        self, encoder: IdentityEncoder, regressor: nn.Module, appearance_size: int, face: Flame, temperature: float
    ):
        super().__init__()
        self.tower, self.abstractor = encoder.tower, encoder.abstractor
        self.spiral_net, self.reducer = encoder.spiral_net, encoder.reducer
        self.regressor, self.face, self.temperature = regressor, face, temperature
        width, token = encoder.tower.cls_token.shape[-1], encoder.abstractor.proj_out.shape[-1]
        widths = {"patches": width, "face": token, "mesh": token}
        self.probes = nn.ModuleDict({name: LinearProbe(width, appearance_size) for name, width in widths.items()})
        self.register_buffer("shape_gram", vertex_gram(face.shape_basis[..., :100]), persistent=False)
        self.register_buffer("expression_gram", vertex_gram(face.expression_basis[..., :50]), persistent=False)

    def tokens(self, crops: Tensor) -> dict[str, Tensor]:
        """Crops (B, S, S, 3) → the tower's patches (B, G², D), the face tokens (B, N, K)."""
        # Without the class token: the abstractor does not read it, so nothing is to be learned there.
        hidden = self.tower.last_hidden_state(self.tower.preprocess(crops))
        return {"patches": hidden[:, 1:], "face": self.abstractor(hidden)}

    def vertex_tokens(self, shape: Tensor, face_tokens: Tensor) -> Tensor:
        """Shape codes (B, 100) and face tokens (B, N, K) → vertex tokens (B, M, K)."""
        return self.reducer(self.spiral_net(self.face.decode(shape), face_tokens))

    def forward(self, batch: FaceBatch) -> dict[str, Tensor]:
        shape, appearance = batch.shape.repeat_interleave(2, 0), batch.appearance
        code = deca.split(self.regressor(batch.photos.contiguous(memory_format=torch.channels_last)).float())
        tokens, crop = self.tokens(batch.crops), batch.crop
        predictions = {name: self.probes[name](x) for name, x in tokens.items()}
        losses = {}
        for name, (predicted_shape, predicted_appearance, embedding) in predictions.items():
            losses |= self._probe_losses(name, predicted_shape, predicted_appearance, shape, appearance)
            losses[f"{name}_contrastive"] = self._contrastive_loss(embedding)
        mesh = self.probes["mesh"](self.vertex_tokens(code.shape.detach(), tokens["face"][crop]))
        losses |= self._probe_losses("mesh", *mesh[:2], shape[crop], appearance[crop])
        losses |= {
            "shape": 0.1 * mean_squared_mm(code.shape - shape[crop], self.shape_gram),
            "expression": 0.1 * mean_squared_mm(code.expression - batch.expression, self.expression_gram),
            "pose": 5 * (code.pose - batch.pose).square().sum(1).mean(),
            "camera": ((code.camera - batch.camera) / constant(CAMERA_SPREAD, code.camera.device)).square().mean(),
            "code": 0.1 * (code.shape - shape[crop]).square().mean(),
            "unused": 0.1 * (code.texture.square().mean() + code.light.square().mean()),
        }
        return {"loss": sum(losses.values())} | losses

    def _probe_losses(
        self, name: str, predicted_shape: Tensor, predicted_appearance: Tensor, shape: Tensor, appearance: Tensor
    ) -> dict[str, Tensor]:
        return {
            f"{name}_shape": 0.1 * mean_squared_mm(predicted_shape - shape, self.shape_gram),
            f"{name}_code": 0.1 * (predicted_shape - shape).square().mean(),
            f"{name}_look": (predicted_appearance - appearance).square().mean(),
        }

    def _contrastive_loss(self, embedding: Tensor) -> Tensor:
        logits = embedding[0::2] @ embedding[1::2].T / self.temperature
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class FaceStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        options: FaceOptions = self.settings.options
        encoder, model = context.model.encoder, context.model
        if options.vertex_axes:
            encoder.spiral_net.axes = model.config["vertex_axes"] = checked_axes(options.vertex_axes)
        self.photos = options.regressor_photos
        self.camera = Camera(model.face, context.device)
        trainable(encoder)
        tower = encoder.tower
        for unused in (*tower.blocks[tower.taps[-1] :], *_after_blocks(tower)):
            unused.requires_grad_(False)
        self.randomise = options.randomise
        appearance_size = context.validation.appearance.shape[1] + context.validation.still_hair.shape[2]
        # Channels first, its batch norms took a third of the GPU's time.
        regressor = trainable(model.regressor).to(memory_format=torch.channels_last)
        face = model.face.to(context.device)
        self.objective = FaceObjective(encoder, regressor, appearance_size, face, options.temperature).to(
            context.device
        )

    def muon_parameters(self) -> list[nn.Parameter]:
        return parameters_of(self.context.model.encoder.tower.blocks, self.context.model.encoder.abstractor)

    def lr_mults(self) -> dict[nn.Module, float]:
        encoder = self.context.model.encoder
        return dict.fromkeys((encoder.spiral_net, encoder.reducer), MESH_LR_MULT)

    def batch(self, step: int, generator: torch.Generator) -> FaceBatch:
        pool = self.context.pool
        # Without replacement: the other people of the batch are what a person is told apart from.
        order = torch.rand(pool.people, generator=generator, device=generator.device).argsort()
        people = order[: self.settings.batch]
        stills = pool.stills.shape[1]
        first = data.randint(generator, stills, len(people))
        second = (first + 1 + data.randint(generator, stills - 1, len(people))) % stills
        rows, which = people.repeat_interleave(2), torch.stack([first, second], 1).flatten()
        pictures, landmarks = pool.stills[rows, which], pool.still_landmarks[rows, which]
        hair = pool.still_hair[rows, which]
        appearance = torch.cat([pool.appearance[rows], hair], 1)
        crops = reference_crops(pictures, landmarks, generator, self.randomise, hair_colour(hair))

        count = max(1, int(self.photos * len(rows)))
        chosen = slice(None, None, max(1, len(rows) // count))
        crop = torch.arange(len(rows), device=rows.device)[chosen]
        rows, which = rows[chosen], which[chosen]
        photos, framed_landmarks = data.reframe(pictures[chosen], landmarks[chosen], generator, deca.SIZE)
        photos = randomise(photos, framed_landmarks, generator, self.randomise, hair_colour(hair[chosen]))
        photos = degrade(photos.movedim(-1, 1), generator)
        shape, expression = pool.shape[rows], pool.still_expression[rows, which]
        pose = pool.still_pose[rows, which]
        camera = self.camera.fit(shape, expression, pose, framed_landmarks, deca.SIZE)
        no_jaw = torch.zeros_like(pose)
        return FaceBatch(
            crops=crops,
            photos=photos,
            crop=crop,
            shape=pool.shape[people],
            appearance=appearance,
            expression=expression,
            pose=torch.cat([axis_angle(pose), no_jaw], 1),
            camera=camera,
        )

    def validate(self) -> dict[str, float]:
        """Of patches, face tokens and vertex tokens: top-1 retrieval of a person's other photo, variance explained (R²)
        of shape and appearance, and the share of the normalised tokens' variance between people; variance explained by
        the face tokens of randomised photos. And the regressor's shape error.
        """
        pool, objective, metrics = self.context.validation, self.objective, {}
        people = min(100, pool.people)
        shape, gram = pool.shape[:people], objective.shape_gram
        appearance = torch.cat([pool.appearance[:people], pool.still_hair[:people, 0]], 1)
        with evaluating(objective), self.context.autocast():
            codes = [deca.split(objective.regressor(as_photos(pool.stills[:people, k])).float()).shape for k in (0, 1)]
            inputs = [self._probe_inputs(code, k) for k, code in enumerate(codes)]
            for name, tokens in inputs[0].items():
                (predicted_shape, predicted_appearance, embedding), (_, _, other_embedding) = (
                    objective.probes[name](photos[name]) for photos in inputs
                )
                if name in CONTRASTIVE:
                    is_nearest = (embedding @ other_embedding.T).argmax(1) == torch.arange(
                        people, device=embedding.device
                    )
                    metrics[f"{name}_top1_of_{people}"] = is_nearest.float().mean().item()
                metrics[f"{name}_shape"] = variance_explained(predicted_shape, shape, gram)
                metrics[f"{name}_look"] = _explained(predicted_appearance, appearance)
                normalised = F.layer_norm(tokens.float(), tokens.shape[-1:])
                metrics[f"{name}_between"] = (normalised.var(0).sum() / normalised.square().mean(0).sum()).item()
            if not self.randomise.is_off:
                tokens = objective.tokens(self._randomised_crops(people))["face"]
                predicted_shape, predicted_appearance, _ = objective.probes["face"](tokens)
                metrics["randomised_face_shape"] = variance_explained(predicted_shape, shape, gram)
                metrics["randomised_face_look"] = _explained(predicted_appearance, appearance)
        errors = [mean_squared_mm(code - shape, gram).sqrt().item() for code in codes]
        of_mean = mean_squared_mm(shape.mean(0) - shape, gram).sqrt().item()
        return {"shape_mm": sum(errors) / 2, "shape_mm_of_the_mean_person": of_mean} | metrics

    def _randomised_crops(self, people: int) -> Tensor:
        """The first photos of so many people never trained on, as the tower is trained to see them."""
        pool, generator = self.context.validation, self.context.generator(0)
        pictures, landmarks = pool.stills[:people, 0], pool.still_landmarks[:people, 0]
        hair = hair_colour(pool.still_hair[:people, 0])
        return reference_crops(pictures, landmarks, generator, self.randomise, hair)

    def _probe_inputs(self, shape: Tensor, k: int) -> dict[str, Tensor]:
        """Patches, face and vertex tokens of the k-th photos of as many people as there are shape codes (B, 100)."""
        pool = self.context.validation
        pictures, landmarks = pool.stills[: len(shape), k], pool.still_landmarks[: len(shape), k]
        exact = torch.zeros(len(shape), 4, device=shape.device)
        tokens = self.objective.tokens(align(pictures, landmarks, CROP, exact))
        return tokens | {"mesh": self.objective.vertex_tokens(shape, tokens["face"])}

    def sample_grid(self) -> Tensor:
        """Inputs of the tower (crops) and of the regressor (photos)."""
        batch = self.batch(0, self.context.generator(0))
        crops = batch.crops[:12].unflatten(0, (1, -1))
        size = crops.shape[2]
        photos = F.interpolate(batch.photos[:12], (size, size), mode="bilinear").movedim(1, -1)[None]
        if photos.shape[1] < crops.shape[1]:
            return pictures.grid(crops)
        return pictures.grid(torch.cat([crops, photos]))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["face_encoder", "face_model", "transformer"])


def _explained(predicted: Tensor, true: Tensor) -> float:
    """Variance explained (R²) by predictions (N, L): 1 all, 0 as the mean."""
    return (1 - (predicted - true).square().mean() / true.var(0, correction=0).mean()).item()


def _after_blocks(tower: nn.Module) -> list[nn.Module]:
    return [module for module in (tower.norm, tower.head) if module is not None]


def reference_crops(
    pictures: Tensor,
    landmarks: Tensor,
    generator: torch.Generator,
    amount: Randomisation | None = None,
    hair: Tensor | None = None,
) -> Tensor:
    """Reference crops (B, CROP, CROP, 3) of pictures (B, H, W, 3) uint8, placed, worn and damaged as real ones are.

    Args:
        amount: of `randomise`, which is left out by default; hair: (B, 3) 0…1, colour of what falls into the face.
    """
    shifts = data.jitter(generator, len(pictures))
    crops = align(pictures, landmarks, CROP, shifts)
    if amount is not None and not amount.is_off:
        seen = apply(face_crop(landmarks[:, :5], shifts, CROP), landmarks[:, :5])
        crops = randomise(crops, seen, generator, amount, hair)
    return degrade(crops.clamp(0, 1).movedim(-1, 1), generator).movedim(1, -1)


def as_photos(stills: Tensor) -> Tensor:
    """Stills (B, H, W, 3) uint8 → photos (B, 3, 224, 224) 0…1 for the regressor."""
    photos = stills.movedim(-1, 1).float() / 255
    if photos.shape[2:] != (deca.SIZE, deca.SIZE):
        photos = F.interpolate(photos, (deca.SIZE, deca.SIZE), mode="bilinear", antialias=True)
    return photos
