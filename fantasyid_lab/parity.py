"""`python -m fantasyid_lab.parity DIR`: recompute the numbers that the release produced and print how far off we are.

DIR holds deterministic weights' recipe and the release's outputs, as tests/fixtures/parity does (see its README). Exit
code 1 when any relative error ‖ours − theirs‖ / ‖theirs‖ exceeds 1e-4, or an output is not recomputed.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fantasyid_core.dit.config import RELEASE_GRID
from fantasyid_core.dit.injection import Injection, InjectionRun
from fantasyid_core.dit.transformer import FantasyIDTransformer, from_published
from fantasyid_core.errors import FantasyIDError
from fantasyid_core.fusion.checkpoint import Published, split_published
from fantasyid_core.fusion.face_abstractor import FaceAbstractor
from fantasyid_core.fusion.image_tower import ImageTower
from fantasyid_core.fusion.mesh_hierarchy import Topology
from fantasyid_core.fusion.mesh_hierarchy import load as load_topology
from fantasyid_core.fusion.spiral_net import VertexReducer, VertexSpiralNet
from fantasyid_core.reconstruction.deca import Regressor
from fantasyid_core.reconstruction.flame import load as load_flame
from fantasyid_core.reconstruction.mesh_files import read_ply
from fantasyid_core.sampling.pipeline import Conditions, Guidance, encode_first_frame, sample
from fantasyid_core.video import autoencoder
from fantasyid_lab import reference

LIMIT = 1e-4
MESH = "transform.pkl"  # FLAME's, so it may be missing: the release's own vertex tokens are then an input, no output


@dataclass(frozen=True)
class Row:
    """One output: its name, its shape and the relative error."""

    name: str
    shape: tuple[int, ...]
    error: float


class Fixtures:
    """A folder shaped like tests/fixtures/parity, and the modules that its weights describe."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "recipe.py").is_file() or not (folder / "meta.json").is_file():
            raise FantasyIDError(f"{folder} holds no parity fixtures: recipe.py and meta.json were expected in it.")
        self.meta = json.loads((folder / "meta.json").read_text())
        self.recipe = _import(folder / "recipe.py")

    def outputs(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / name)

    def json(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.from_numpy(self.recipe.draw(name, shape))

    def state(self, manifest: str, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
        """The tensors of a manifest as the recipe fills them."""
        tensors = {}
        for name, shape in self.json(manifest).items():
            if name.endswith("num_batches_tracked"):
                tensors[name] = torch.zeros((), dtype=torch.long)
            elif not any(part in name for part in skip):
                tensors[name] = torch.from_numpy(np.asarray(self.recipe.fill_value(name, shape), np.float32))
        return tensors

    @cached_property
    def published(self) -> Published:
        return split_published(self.state("state_dict_manifest_2layers.json", skip=("patch_embed.pos_embedding",)))

    def transformer(self, interval: int) -> FantasyIDTransformer:
        config = self.json("transformer_config.json") | {"cross_attn_interval": interval}
        published = self.published
        layers = config["num_layers"] // interval
        attention = {k: v for k, v in published.layer_attention.items() if int(k.split(".")[0]) < layers}
        positions = {"patch_embed.pos_embedding": reference.positions(config)}
        return from_published(config, _replace(published, dit=published.dit | positions, layer_attention=attention))

    @cached_property
    def topology(self) -> Topology:
        return load_topology(self.folder / MESH)

    @cached_property
    def vertices(self) -> Tensor:
        return read_ply(self.folder / self.meta["vertices"])[0]

    @cached_property
    def face_tokens(self) -> Tensor:
        hidden = self.draw("input:id_vit_hidden.4", (1, 577, 1024))
        return FaceAbstractor.from_published(self.published.face_abstractor)(hidden)

    @cached_property
    def vertex_descriptor(self) -> Tensor:
        net = VertexSpiralNet.from_published(self.published.vertex_spiral_net, self.topology)
        return net(self.vertices[None], self.face_tokens)

    @cached_property
    def has_mesh(self) -> bool:
        return (self.folder / MESH).is_file()

    @cached_property
    def vertex_tokens(self) -> Tensor:
        if not self.has_mesh:
            return self.outputs("official_outputs.safetensors")["vertex_tokens"]
        return VertexReducer.from_published(self.published.vertex_reducer)(self.vertex_descriptor)

    @cached_property
    def tokens(self) -> Tensor:
        return torch.cat([self.face_tokens, self.vertex_tokens], 1)


def identity_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """Face tokens; with the mesh also vertex descriptor (every 16th row) and vertex tokens."""
    yield "face_tokens", fixtures.face_tokens
    if not fixtures.has_mesh:
        return
    yield "vertex_descriptor", fixtures.vertex_descriptor[:, ::16]
    yield "vertex_tokens", fixtures.vertex_tokens


def transformer_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """Injection layers, and one forward of the whole transformer at both intervals."""
    model = fixtures.transformer(interval=1)
    hidden = fixtures.draw("input:layer_attention_latents", (2, 72, 3072))
    for i, layer in enumerate(model.layer_attention):
        yield f"layer_attention_{i}", layer(hidden, layer.keys_values(fixtures.tokens))
    latents = fixtures.draw("input:hidden_states", (2, 3, 32, 8, 12))
    text = fixtures.draw("input:encoder_hidden_states", (2, 16, 4096))
    for interval in (1, 2):
        model = fixtures.transformer(interval)
        rotary = model.rotary_embedding(3, 8, 12, "cpu")
        run = InjectionRun([Injection(fixtures.tokens[0])])
        yield (
            f"transformer_output_interval{interval}",
            model(latents, text, torch.full((2,), 500), image_rotary_emb=rotary, injector=run),
        )


def pipeline_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """The sampling loop: image encode, guidance, DPM scheduler, all drawing from one generator."""
    meta = fixtures.meta
    vae = autoencoder.build(fixtures.json("vae_config.json"))
    fixtures.recipe.fill_module(vae)
    model = fixtures.transformer(interval=1)
    pixels = np.clip(80 * np.abs(fixtures.recipe.draw("input:image", (64, 96, 3))), 0, 255).astype(np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    generator = torch.Generator().manual_seed(meta["seed"])
    conditions = Conditions(
        text=fixtures.draw("input:prompt_embeds", (1, 16, 4096)),
        negative_text=fixtures.draw("input:negative_prompt_embeds", (1, 16, 4096)),
        image=encode_first_frame(vae, image, 3, generator),
        tokens=fixtures.tokens,
    )
    yield (
        "pipeline_latents",
        sample(
            model,
            fixtures.draw("input:latents", (1, 3, 16, 8, 12)),
            conditions,
            Guidance(meta["guidance"]),
            steps=meta["steps"],
            generator=generator,
            schedule=fixtures.json("scheduler_config.json"),
            image_rotary_emb=model.rotary_embedding(3, 8, 12, "cpu", grid=RELEASE_GRID),
        ),
    )


def deca_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """DECA's regressor on a drawn image, and, where they are there, on the photo and FLAME in both modes."""
    from fantasyid_core.images import load_photo
    from fantasyid_core.reconstruction.deca_input import squeeze

    regressor = Regressor.from_state_dict(fixtures.state("deca_encoder_manifest.json"))
    yield "encoder_code_for_draw_image", regressor(fixtures.draw("deca:image", (2, 3, 224, 224)).sigmoid())
    if "photo" in fixtures.meta:
        photo = load_photo(fixtures.folder / fixtures.meta["photo"])
        yield "encoder_code_for_photo_resized_224", regressor(squeeze(photo))
    if not fixtures.has_mesh:
        return
    code = fixtures.draw("deca:code", (1, 236))
    shape, expression, pose = code[:, :100], code[:, 150:200], 0.2 * code[:, 200:206]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generic_model.pkl"
        fixtures.recipe.write_flame_pickle(path, fixtures.topology.template.numpy(), fixtures.topology.faces[0].numpy())
        flame = load_flame(path)
    yield "flame_vertices_shape_expression_pose", flame.decode(shape, expression, pose)[0]
    yield "flame_vertices_shape_only", flame.decode(shape)[0]


def tower_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """First and fifth hidden state (every 8th token) and the pooled output of the image tower."""
    tower = ImageTower.from_state_dict(fixtures.state("eva_visual_manifest.json", skip=("rope",)))
    hidden, pooled = tower(fixtures.draw("eva:image", (1, 3, 336, 336)))
    yield "hidden_0", hidden[0][:, ::8]
    yield "hidden_4", hidden[4][:, ::8]
    yield "pooled", pooled


def spiral_outputs(fixtures: Fixtures) -> Iterator[tuple[str, Tensor]]:
    """Vertex spirals of the two finest levels, in OpenMesh's order."""
    for level, name in enumerate(("level0_5023", "level1_1256")):
        yield name, fixtures.topology.spirals[level]


Group = Callable[[Fixtures], Iterator[tuple[str, Tensor]]]
GROUPS: dict[str, tuple[Group, ...]] = {
    "official_outputs.safetensors": (identity_outputs, transformer_outputs, pipeline_outputs),
    "deca_outputs.safetensors": (deca_outputs,),
    "eva_outputs.safetensors": (tower_outputs,),
}


@torch.no_grad()
def compare(fixtures: Fixtures) -> list[Row]:
    """Recompute every output there is. One that nothing here recomputes gets an infinite error."""
    folder, rows = fixtures.folder, []
    for file, groups in GROUPS.items():
        if not (folder / file).is_file():
            continue
        theirs = fixtures.outputs(file)
        if not fixtures.has_mesh:
            theirs.pop("vertex_tokens", None)
        ours = {name: tensor for group in groups for name, tensor in group(fixtures)}
        rows += [Row(name, tuple(x.shape), relative_error(ours.get(name), x)) for name, x in theirs.items()]
    order = folder / "openmesh_spirals_len9.npz"
    if order.is_file():
        theirs = {name: torch.from_numpy(x.astype(np.int64)) for name, x in np.load(order).items()}
        ours = dict(spiral_outputs(fixtures))
        rows += [Row(name, tuple(x.shape), relative_error(ours.get(name), x)) for name, x in theirs.items()]
    return rows


def relative_error(ours: Tensor | None, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖ in float64; infinite where shapes differ or ours is missing or not finite."""
    if ours is None or ours.shape != theirs.shape:
        return float("inf")
    ours, theirs = ours.double(), theirs.double()
    error = ((ours - theirs).norm() / theirs.norm()).item()
    return error if error == error else float("inf")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fantasyid_lab.parity", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder shaped like tests/fixtures/parity")
    try:
        fixtures = Fixtures(parser.parse_args(arguments).folder)
        print(fixtures.published.report)
        rows = compare(fixtures)
    except FantasyIDError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'output':40} {'shape':20} {'relative error':>14}")
    for row in rows:
        verdict = "" if row.error <= LIMIT else f"  above {LIMIT:g}"
        print(f"{row.name:40} {'×'.join(map(str, row.shape)):20} {row.error:14.2e}{verdict}")
    worst = max((row.error for row in rows), default=float("inf"))
    print(f"{len(rows)} outputs, worst {worst:.2e}, limit {LIMIT:g}")
    return 0 if worst <= LIMIT else 1


def _import(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(published: Published, **parts: dict[str, Tensor]) -> Published:
    return Published(**{name: parts.get(name, getattr(published, name)) for name in Published.__dataclass_fields__})


if __name__ == "__main__":
    sys.exit(main())
