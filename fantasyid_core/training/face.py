"""Stage face: the image tower and the shape regressor, from photos of people whose truth is known.

The tower learns who is in a crop: shape code and look by regression, and two photos of a person to be alike (InfoNCE);
the heads that it learns with are thrown away. The regressor learns DECA's code of photos in many framings.

Options: `temperature` of InfoNCE; `regressor_photos`, how many of the batch's photos it sees.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import deca, nano
from ..evaluation.judge import degrade
from ..flame import Flame
from ..people.head import load as load_head
from ..people.head import rotation
from . import data, sheets
from .pool import Pool
from .stage import Batch, Context, Stage, evaluating, trainable

CAMERA_SPREAD = (2.0, 0.02, 0.02)  # of scale and shift, about a standard deviation
CROP = 128  # px of the crops that the tower's preprocessing starts from


class Heads(nn.Module):
    """What the tower's fifth hidden state is asked: shape code, look, and a vector that tells people apart.

    Of its patches: the face abstractor does not read the class token, and what is asked of that stays in it.
    """

    def __init__(self, width: int, looks: int):
        super().__init__()
        self.sizes = (100, looks, 64)
        self.layers = nn.Sequential(nn.Linear(2 * width, 256), nn.SiLU(), nn.Linear(256, sum(self.sizes)))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        patches = hidden[:, 1:]
        pooled = torch.cat([patches.mean(1), patches.amax(1)], 1)
        shape, look, who = self.layers(pooled).float().split(self.sizes, 1)
        return shape, look, F.normalize(who, dim=1)


class FaceObjective(nn.Module):
    """Losses of tower and regressor; shape errors are squared millimetres over the face model's vertices."""

    def __init__(self, tower: nn.Module, regressor: nn.Module, heads: Heads, face: Flame, temperature: float):
        super().__init__()
        self.tower, self.regressor, self.heads = tower, regressor, heads
        self.temperature = temperature
        self.register_buffer("shape_moves", moves(face.shape_basis[..., :100]), persistent=False)
        self.register_buffer("expression_moves", moves(face.expression_basis[..., :50]), persistent=False)

    def forward(
        self,
        crops: Tensor,
        photos: Tensor,
        shape: Tensor,
        look: Tensor,
        photo_shape: Tensor,
        expression: Tensor,
        pose: Tensor,
        camera: Tensor,
    ) -> dict[str, Tensor]:
        """Crops (2 P, S, S, 3), two of each of P people in a row; photos (B, 3, 224, 224); their truths (P or B, …)."""
        told_shape, told_look, who = self.heads(self.tower.last_hidden_state(self.tower.preprocess(crops)))
        twice = shape.repeat_interleave(2, 0)
        tower_shape = squared_mm(told_shape - twice, self.shape_moves)
        tower_look = (told_look - look.repeat_interleave(2, 0)).square().mean()
        first, second = who[0::2], who[1::2]
        alike = first @ second.T / self.temperature
        right = torch.arange(len(alike), device=alike.device)
        contrast = (F.cross_entropy(alike, right) + F.cross_entropy(alike.T, right)) / 2

        code = deca.split(self.regressor(photos).float())
        regressor_shape = squared_mm(code.shape - photo_shape, self.shape_moves)
        regressor_expression = squared_mm(code.expression - expression, self.expression_moves)
        regressor_pose = (code.pose - pose).square().sum(1).mean()
        regressor_camera = ((code.camera - camera) / code.camera.new_tensor(CAMERA_SPREAD)).square().mean()
        unused = code.texture.square().mean() + code.light.square().mean()
        plain = (told_shape - twice).square().mean() + (code.shape - photo_shape).square().mean()
        loss = (
            0.1 * tower_shape
            + tower_look
            + contrast
            + 0.1 * regressor_shape
            + 0.1 * regressor_expression
            + 5 * regressor_pose
            + regressor_camera
            + 0.1 * plain
            + 0.1 * unused
        )
        return {
            "loss": loss,
            "tower_shape": tower_shape,
            "tower_look": tower_look,
            "contrast": contrast,
            "shape": regressor_shape,
            "expression": regressor_expression,
            "pose": regressor_pose,
            "camera": regressor_camera,
        }


def moves(basis: Tensor) -> Tensor:
    """Basis (V, 3, K), metres → (K, K): c · moves · c is the mean square of how far a vertex moves, mm²."""
    flat = basis.flatten(0, 1) * 1000
    return flat.T @ flat / len(basis)


def squared_mm(difference: Tensor, moved: Tensor) -> Tensor:
    """Codes (B, K) → mean square of the vertices' distances, mm²."""
    return ((difference @ moved) * difference).sum(1).mean()


def axis_angle(turn: Tensor) -> Tensor:
    """Degrees of yaw, pitch and roll (B, 3), as `people` has them → axis-angle (B, 3), radians."""
    matrix = rotation(turn)
    cosine = ((matrix.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)
    angle = torch.acos(cosine)
    axis = torch.stack(
        [
            matrix[:, 2, 1] - matrix[:, 1, 2],
            matrix[:, 0, 2] - matrix[:, 2, 0],
            matrix[:, 1, 0] - matrix[:, 0, 1],
        ],
        1,
    )
    return axis / (2 * torch.sin(angle).clamp(min=1e-4))[:, None] * angle[:, None]  # no turn: axis is zero


class Camera:
    """True weak perspective cameras of photos, in DECA's convention, for the face model's pose about its root joint."""

    def __init__(self, face: Flame, device: torch.device):
        head = load_head(str(device))
        root = face.joint_regressor[0].to(device)
        self._template = head.template[head.landmarks]
        self._shape, self._expression = (b[head.landmarks] for b in (head.shape_basis, head.expression_basis))
        self._root = root @ face.template.to(device)
        self._root_moves = torch.einsum("v,vdk->dk", root, face.shape_basis[..., :100].to(device))

    def fit(self, shape: Tensor, expression: Tensor, pose: Tensor, landmarks: Tensor, size: int) -> Tensor:
        """Codes (B, …), pose (B, 3) degrees and landmarks (B, 68, 2) px → scale s and shift t (B, 3): least squares of
        s · (x + t) against the landmarks in −1…1 of the picture, y up."""
        points = self._template + torch.einsum("vdk,bk->bvd", self._shape, shape)
        points = points + torch.einsum("vdk,bk->bvd", self._expression, expression)
        root = (self._root + shape @ self._root_moves.T)[:, None]
        turned = ((points - root) @ rotation(pose).mT + root)[..., :2]
        seen = (2 * landmarks + 1) / size - 1
        seen = torch.stack([seen[..., 0], -seen[..., 1]], -1)
        middle, seen_middle = turned.mean(1, keepdim=True), seen.mean(1, keepdim=True)
        scale = ((turned - middle) * (seen - seen_middle)).sum((1, 2)) / (turned - middle).square().sum((1, 2))
        shift = (seen_middle / scale[:, None, None] - middle)[:, 0]
        return torch.cat([scale[:, None], shift], 1)


class FaceStage(Stage):
    """See the module."""

    def __init__(self, context: Context):
        super().__init__(context)
        options = {"temperature": 0.07, "regressor_photos": 1.0} | dict(self.settings.options)
        model, width = context.model, context.model.encoder.tower.cls_token.shape[-1]
        self.photos = options["regressor_photos"]
        self.camera = Camera(model.face, context.device)
        trainable(model.encoder.tower)
        tower = model.encoder.tower
        for unused in (*tower.blocks[tower.taps[-1] :], *_after_blocks(tower)):
            unused.requires_grad_(False)
        self.heads = Heads(width, context.validation.look.shape[1]).to(context.device)
        self.objective = FaceObjective(
            model.encoder.tower,
            trainable(model.regressor),
            self.heads,
            model.face.to(context.device),
            options["temperature"],
        ).to(context.device)

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
            "shape": pool.shape[people],
            "look": pool.look[people],
            "photo_shape": shape,
            "expression": expression,
            "pose": torch.cat([axis_angle(pose), no_jaw], 1),
            "camera": camera,
        }

    def validate(self) -> dict[str, float]:
        pool, objective = self.context.validation, self.objective
        people = min(100, pool.people)
        with evaluating(objective), self.context.autocast():
            who = [self.heads(self._hidden(pool, people, k))[2] for k in (0, 1)]
            codes = [
                deca.split(objective.regressor(as_photos(pool.stills[:people, k])).float()).shape for k in range(2)
            ]
            errors = [squared_mm(code - pool.shape[:people], objective.shape_moves).sqrt().item() for code in codes]
            mean = pool.shape[:people].mean(0, keepdim=True)
            of_mean = squared_mm(mean - pool.shape[:people], objective.shape_moves).sqrt().item()
        found = (who[0] @ who[1].T).argmax(1) == torch.arange(people, device=who[0].device)
        return {
            "shape_mm": sum(errors) / 2,
            "shape_mm_of_the_mean_person": of_mean,
            f"top1_of_{people}": found.float().mean().item(),
        }

    def _hidden(self, pool: Pool, people: int, k: int) -> Tensor:
        crops = data.aligned(
            pool.stills[:people, k],
            pool.still_landmarks[:people, k],
            CROP,
            torch.zeros(people, 4, device=self.context.device),
        )
        tower = self.context.model.encoder.tower
        return tower.last_hidden_state(tower.preprocess(crops))

    def sheet(self) -> Tensor:
        """Crops as the tower sees them, and photos as the regressor does."""
        batch = self.batch(0, self.context.generator(0))
        crops = batch["crops"][:12].unflatten(0, (1, -1))
        size = crops.shape[2]
        photos = F.interpolate(batch["photos"][:12], (size, size), mode="bilinear").movedim(1, -1)[None]
        if photos.shape[1] < crops.shape[1]:
            return sheets.grid(crops)
        return sheets.grid(torch.cat([crops, photos]))

    def export(self) -> None:
        nano.write(self.context.model, self.context.model_folder, ["face_encoder", "face_model"])


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
