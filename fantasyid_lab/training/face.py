"""Stage face: the identity encoder and the shape regressor, from photos of people whose truth is known.

The tower's patches, the face abstractor's tokens and the vertex tokens are each asked who it is: shape code and look by
regression, and the first two that two photos of a person be alike (InfoNCE). The heads that ask are thrown away. The
diffusion loss alone does not teach the encoder: it was tried (docs/training.md). The regressor learns DECA's code of
photos in many framings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fantasyid_core.fusion.identity import IdentityEncoder
from fantasyid_core.meters.attribute_regressor import degrade
from fantasyid_core.reconstruction import deca
from fantasyid_core.reconstruction.flame import Flame

from .. import nano
from . import data, pictures
from .face_truth import Camera, axis_angle, moves, squared_mm, variance_explained
from .options import FaceOptions
from .stage import Batch, Context, Stage, evaluating, parameters_of, trainable

CAMERA_SPREAD = (2.0, 0.02, 0.02)  # of scale and shift, about a standard deviation
CONTRASTIVE = ("patches", "face")  # whose probes have the contrastive loss
CROP = 112  # px of the crops: as nano's tower reads them, which leaves nothing to resize
MESH_LR_MULT = 0.1  # at the full rate the vertex tokens become a constant (docs/training.md)


class LinearProbe(nn.Module):
    """Linear probe of tokens (B, N, C): shape code, look, and a unit vector for the contrastive loss.

    They are normalised and their mean is taken, as an injection layer reads them that does not look at any of them in
    particular yet: what a line through that mean can tell, every injection layer can.
    """

    def __init__(self, width: int, looks: int):
        super().__init__()
        self.sizes = (100, looks, 64)
        self.layer = nn.Linear(width, sum(self.sizes))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = F.layer_norm(tokens.float(), tokens.shape[-1:]).mean(1)
        shape, look, who = self.layer(seen).float().split(self.sizes, 1)
        return shape, look, F.normalize(who, dim=1)


class FaceObjective(nn.Module):
    """Losses of encoder and regressor; shape errors are squared millimetres over the face model's vertices."""

    def __init__(self, encoder: IdentityEncoder, regressor: nn.Module, looks: int, face: Flame, temperature: float):
        super().__init__()
        self.tower, self.abstractor = encoder.tower, encoder.abstractor
        self.spiral_net, self.reducer = encoder.spiral_net, encoder.reducer
        self.regressor, self.face, self.temperature = regressor, face, temperature
        width, token = encoder.tower.cls_token.shape[-1], encoder.abstractor.proj_out.shape[-1]
        widths = {"patches": width, "face": token, "mesh": token}
        self.probes = nn.ModuleDict({name: LinearProbe(width, looks) for name, width in widths.items()})
        self.register_buffer("shape_moves", moves(face.shape_basis[..., :100]), persistent=False)
        self.register_buffer("expression_moves", moves(face.expression_basis[..., :50]), persistent=False)

    def tokens(self, crops: Tensor) -> dict[str, Tensor]:
        """Crops (B, S, S, 3) → the tower's patches (B, G², D), the face tokens (B, N, K)."""
        # Without the class token: the abstractor does not read it, and what is asked of that stays in it.
        hidden = self.tower.last_hidden_state(self.tower.preprocess(crops))
        return {"patches": hidden[:, 1:], "face": self.abstractor(hidden)}

    def vertex_tokens(self, shape: Tensor, face_tokens: Tensor) -> Tensor:
        """Shape codes (B, 100) and face tokens (B, N, K) → vertex tokens (B, M, K)."""
        return self.reducer(self.spiral_net(self.face.decode(shape), face_tokens))

    def forward(
        self,
        crops: Tensor,
        photos: Tensor,
        crop: Tensor,
        shape: Tensor,
        look: Tensor,
        expression: Tensor,
        pose: Tensor,
        camera: Tensor,
    ) -> dict[str, Tensor]:
        """Crops (2 P, S, S, 3), two of each of P people in a row, and what is true of these people (P, …).

        Photos (B, 3, 224, 224): `crop` (B,) says of which crops they are, and the rest what is true of them.
        """
        shape, look = (x.repeat_interleave(2, 0) for x in (shape, look))
        code = deca.split(self.regressor(photos.contiguous(memory_format=torch.channels_last)).float())
        tokens = self.tokens(crops)
        predictions = {name: self.probes[name](x) for name, x in tokens.items()}
        losses = {}
        for name, (predicted_shape, predicted_look, who) in predictions.items():
            losses |= self._probe_losses(name, predicted_shape, predicted_look, shape, look)
            losses[f"{name}_contrastive"] = self._contrastive_loss(who)
        mesh = self.probes["mesh"](self.vertex_tokens(code.shape.detach(), tokens["face"][crop]))
        losses |= self._probe_losses("mesh", *mesh[:2], shape[crop], look[crop])
        losses |= {
            "shape": 0.1 * squared_mm(code.shape - shape[crop], self.shape_moves),
            "expression": 0.1 * squared_mm(code.expression - expression, self.expression_moves),
            "pose": 5 * (code.pose - pose).square().sum(1).mean(),
            "camera": ((code.camera - camera) / code.camera.new_tensor(CAMERA_SPREAD)).square().mean(),
            "code": 0.1 * (code.shape - shape[crop]).square().mean(),
            "unused": 0.1 * (code.texture.square().mean() + code.light.square().mean()),
        }
        return {"loss": sum(losses.values())} | losses

    def _probe_losses(
        self, name: str, predicted_shape: Tensor, predicted_look: Tensor, shape: Tensor, look: Tensor
    ) -> Batch:
        return {
            f"{name}_shape": 0.1 * squared_mm(predicted_shape - shape, self.shape_moves),
            f"{name}_code": 0.1 * (predicted_shape - shape).square().mean(),
            f"{name}_look": (predicted_look - look).square().mean(),
        }

    def _contrastive_loss(self, who: Tensor) -> Tensor:
        alike = who[0::2] @ who[1::2].T / self.temperature
        right = torch.arange(len(alike), device=alike.device)
        return (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2


class FaceStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        options: FaceOptions = self.settings.options
        encoder, model = context.model.encoder, context.model
        self.photos = options.regressor_photos
        self.camera = Camera(model.face, context.device)
        trainable(encoder)
        tower = encoder.tower
        for unused in (*tower.blocks[tower.taps[-1] :], *_after_blocks(tower)):
            unused.requires_grad_(False)
        looks = context.validation.look.shape[1]
        # Channels first, its batch norms took a third of the GPU's time.
        regressor = trainable(model.regressor).to(memory_format=torch.channels_last)
        face = model.face.to(context.device)
        self.objective = FaceObjective(encoder, regressor, looks, face, options.temperature).to(context.device)

    def muon_parameters(self) -> list[nn.Parameter]:
        return parameters_of(self.context.model.encoder.tower.blocks, self.context.model.encoder.abstractor)

    def lr_mults(self) -> dict[nn.Module, float]:
        encoder = self.context.model.encoder
        return dict.fromkeys((encoder.spiral_net, encoder.reducer), MESH_LR_MULT)

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        pool = self.context.pool
        # Without replacement: the other people of the batch are what a person is told apart from.
        order = torch.rand(pool.people, generator=generator, device=generator.device).argsort()
        people = order[: self.settings.batch]
        stills = pool.stills.shape[1]
        first = data.randint(generator, stills, len(people))
        second = (first + 1 + data.randint(generator, stills - 1, len(people))) % stills
        rows, which = people.repeat_interleave(2), torch.stack([first, second], 1).flatten()
        pictures, landmarks = pool.stills[rows, which], pool.still_landmarks[rows, which]
        crops = aligned_crops(pictures, landmarks, generator)

        count = max(1, int(self.photos * len(rows)))
        chosen = slice(None, None, max(1, len(rows) // count))
        crop = torch.arange(len(rows), device=rows.device)[chosen]
        rows, which = rows[chosen], which[chosen]
        photos, moved = data.framed(pictures[chosen], landmarks[chosen], generator, deca.SIZE)
        photos = degrade(photos.movedim(-1, 1), generator)
        shape, expression = pool.shape[rows], pool.still_expression[rows, which]
        pose = pool.still_pose[rows, which]
        camera = self.camera.fit(shape, expression, pose, moved, deca.SIZE)
        no_jaw = torch.zeros_like(pose)
        return {
            "crops": crops,
            "photos": photos,
            "crop": crop,
            "shape": pool.shape[people],
            "look": pool.look[people],
            "expression": expression,
            "pose": torch.cat([axis_angle(pose), no_jaw], 1),
            "camera": camera,
        }

    def validate(self) -> dict[str, float]:
        """What is known of people by their patches, face tokens and vertex tokens: how many are found again in another
        photo, the share of the variance of shapes and of looks that is explained, and how much of the tokens' own, as
        normalised, lies between people. And how far off the regressor's shapes are.
        """
        pool, objective, found = self.context.validation, self.objective, {}
        people = min(100, pool.people)
        shape, look, moved = pool.shape[:people], pool.look[:people], objective.shape_moves
        with evaluating(objective), self.context.autocast():
            codes = [deca.split(objective.regressor(as_photos(pool.stills[:people, k])).float()).shape for k in (0, 1)]
            seen = [self._seen(code, k) for k, code in enumerate(codes)]
            for name, tokens in seen[0].items():
                (predicted_shape, predicted_look, who), (_, _, again) = (
                    objective.probes[name](photos[name]) for photos in seen
                )
                if name in CONTRASTIVE:
                    right = (who @ again.T).argmax(1) == torch.arange(people, device=who.device)
                    found[f"{name}_top1_of_{people}"] = right.float().mean().item()
                found[f"{name}_shape"] = variance_explained(predicted_shape, shape, moved)
                found[f"{name}_look"] = (
                    1 - (predicted_look - look).square().mean() / look.var(0, correction=0).mean()
                ).item()
                normalised = F.layer_norm(tokens.float(), tokens.shape[-1:])
                found[f"{name}_between"] = (normalised.var(0).sum() / normalised.square().mean(0).sum()).item()
        errors = [squared_mm(code - shape, moved).sqrt().item() for code in codes]
        of_mean = squared_mm(shape.mean(0) - shape, moved).sqrt().item()
        return {"shape_mm": sum(errors) / 2, "shape_mm_of_the_mean_person": of_mean} | found

    def _seen(self, shape: Tensor, k: int) -> dict[str, Tensor]:
        """Patches, face and vertex tokens of the k-th photos of as many people as there are shape codes (B, 100)."""
        pool = self.context.validation
        pictures, landmarks = pool.stills[: len(shape), k], pool.still_landmarks[: len(shape), k]
        exact = torch.zeros(len(shape), 4, device=shape.device)
        tokens = self.objective.tokens(data.aligned(pictures, landmarks, CROP, exact))
        return tokens | {"mesh": self.objective.vertex_tokens(shape, tokens["face"])}

    def sample_grid(self) -> Tensor:
        """Crops as the tower sees them, and photos as the regressor does."""
        batch = self.batch(0, self.context.generator(0))
        crops = batch["crops"][:12].unflatten(0, (1, -1))
        size = crops.shape[2]
        photos = F.interpolate(batch["photos"][:12], (size, size), mode="bilinear").movedim(1, -1)[None]
        if photos.shape[1] < crops.shape[1]:
            return pictures.grid(crops)
        return pictures.grid(torch.cat([crops, photos]))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["face_encoder", "face_model", "transformer"])


def _after_blocks(tower: nn.Module) -> list[nn.Module]:
    return [module for module in (tower.norm, tower.head) if module is not None]


def aligned_crops(pictures: Tensor, landmarks: Tensor, generator: torch.Generator) -> Tensor:
    """Reference crops (B, CROP, CROP, 3) of pictures (B, H, W, 3) uint8, placed and damaged as real ones are."""
    crops = data.aligned(pictures, landmarks, CROP, data.jitter(generator, len(pictures)))
    return degrade(crops.clamp(0, 1).movedim(-1, 1), generator).movedim(1, -1)


def as_photos(stills: Tensor) -> Tensor:
    """Stills (B, H, W, 3) uint8 → photos (B, 3, 224, 224) 0…1 for the regressor."""
    photos = stills.movedim(-1, 1).float() / 255
    if photos.shape[2:] != (deca.SIZE, deca.SIZE):
        photos = F.interpolate(photos, (deca.SIZE, deca.SIZE), mode="bilinear", antialias=True)
    return photos
