"""A small stand-in for the published model: random weights in the published layout.

It shows that files load, graphs run and errors read well. It has learned nothing: its videos are noise. Tests use it,
and `python run.py demo` where no real model is there.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.fusion.mesh_hierarchy import Topology
from fantasyid_core.io.layout import save_part, write_json
from fantasyid_core.sampling.schedule import RELEASE_SCHEDULE

from .dummy_head import head

NOTICE = "Random stand-in weights: for trying the nodes out only. The videos are noise, whoever is in the photo."
WIDTH, HEIGHT, FRAMES = 192, 128, 25
LANDMARKS = ((-0.03, 0.04, 0.07), (0.03, 0.04, 0.07), (0, 0, 0.12), (-0.025, -0.03, 0.08), (0.025, -0.03, 0.08))
"""Where the stand-in's head has eyes, nose and mouth, metres."""

DIM, TOKENS, TEXT = 32, 64, 32
TRANSFORMER = {
    "_class_name": "IDTransformer3DModel",
    "num_attention_heads": 2,
    "attention_head_dim": DIM // 2,
    "in_channels": 32,
    "out_channels": 16,
    "num_layers": 4,
    "time_embed_dim": 32,
    "text_embed_dim": TEXT,
    "sample_width": WIDTH // 8,
    "sample_height": HEIGHT // 8,
    "sample_frames": FRAMES,
    "use_rotary_positional_embeddings": True,
    "use_learned_positional_embeddings": True,
    "is_train_face": True,
    "is_kps": False,
    "cross_attn_interval": 2,
    "layer_attention_head_dim": 16,
    "face_queries": 4,
}
VAE = {
    "_class_name": "AutoencoderKLCogVideoX",
    "down_block_types": ["CogVideoXDownBlock3D"] * 4,
    "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "block_out_channels": [8, 8, 8, 8],
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.7,
}
T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": TEXT,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "vocab_size": 32128,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
}
TOWER = {"width": 32, "depth": 6, "grid": 4, "patch": 14, "head_dim": 16, "mlp": 64, "out": 16}


def write(folder: Path, seed: int = 0) -> Path:
    """Write the stand-in into `folder` (made if missing) and return it. The same seed writes the same tensors."""
    generator = torch.Generator().manual_seed(seed)
    mesh = head()
    save_part(folder / "transformer", _transformer(mesh, generator), TRANSFORMER, "diffusion_pytorch_model", shards=2)
    save_part(folder / "vae", _vae(generator), VAE, "diffusion_pytorch_model")
    save_part(folder / "text_encoder", _t5(generator), T5, "model", shards=2)
    write_json(folder / "scheduler" / "scheduler_config.json", RELEASE_SCHEDULE)
    save_part(folder / "face_encoder", _tower(generator), None, "image_tower")
    save_part(folder / "face_model", _flame(mesh, generator), None, "generic_model")
    save_part(folder / "face_model", _deca(generator), None, "deca_model")
    mesh_hierarchy.save(mesh, folder / "face_model" / "topology.safetensors")
    (folder / "README.txt").write_text(NOTICE + "\n")
    return folder


def _fill(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    """Random tensors that keep activations near 1: matrices by fan-in, norm weights near 1, biases near 0."""
    tensors = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            x = x / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var"):
            x = 1 + 0.1 * x.abs()
        elif name.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        tensors[name] = x
    return tensors


def _shapes(module: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(x.shape) for name, x in module.state_dict().items() if x.is_floating_point()}


def _transformer(mesh: Topology, generator: torch.Generator) -> dict[str, Tensor]:
    """DiT, injection layers and identity encoder under the published names, dead abstractor layers included."""
    from fantasyid_core.dit.config import InjectionSizes, TransformerConfig
    from fantasyid_core.dit.transformer import FantasyIDTransformer
    from fantasyid_core.fusion import face_abstractor
    from fantasyid_core.fusion.spiral_net import VertexReducer, VertexSpiralNet

    from . import reference

    model = FantasyIDTransformer(TransformerConfig.of(TRANSFORMER), InjectionSizes(2, TOKENS, 32))
    abstractor = face_abstractor.FaceAbstractor(
        dim=TOWER["width"], width=16, depth=2, patches=TOWER["grid"] ** 2, queries=4, output_dim=TOKENS
    )
    shapes = _shapes(model)
    for layer in range(4):  # two mappings of two layers each: the first mapping's are dead, as in the release
        for name, shape in _shapes(abstractor).items():
            shapes["face_abstractor." + face_abstractor.published_name(name, layer, layer // 2)] = shape
    shapes |= _shapes(VertexSpiralNet(mesh, [TOKENS, 32, 16], depth=2), "vertex_spiral_net.")
    shapes |= _shapes(VertexReducer([(16, 32, 5), (32, TOKENS, 3)]), "vertex_reducer.")
    tensors = _fill(shapes, generator)
    tensors["patch_embed.pos_embedding"] = reference.positions(TRANSFORMER)
    return tensors


def _vae(generator: torch.Generator) -> dict[str, Tensor]:
    from fantasyid_core.video import autoencoder

    return _fill(_shapes(autoencoder.build(VAE)), generator)


def _t5(generator: torch.Generator) -> dict[str, Tensor]:
    inner, wide = T5["num_heads"] * T5["d_kv"], T5["d_ff"]
    shapes = {"shared.weight": (T5["vocab_size"], TEXT), "encoder.final_layer_norm.weight": (TEXT,)}
    for i in range(T5["num_layers"]):
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, TEXT) for name in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o.weight": (TEXT, inner), f"{attention}.layer_norm.weight": (TEXT,)}
        shapes |= {f"{feed_forward}.DenseReluDense.wi_{j}.weight": (wide, TEXT) for j in (0, 1)}
        shapes |= {
            f"{feed_forward}.DenseReluDense.wo.weight": (TEXT, wide),
            f"{feed_forward}.layer_norm.weight": (TEXT,),
        }
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    shapes[bias] = (T5["relative_attention_num_buckets"], T5["num_heads"])
    return _fill(shapes, generator)


def _tower(generator: torch.Generator) -> dict[str, Tensor]:
    t = TOWER
    width, patches, mlp = t["width"], t["grid"] ** 2, t["mlp"]
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, patches + 1, width),
        "patch_embed.proj.weight": (width, 3, t["patch"], t["patch"]),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (t["out"], width),
        "head.bias": (t["out"],),
    }
    for i in range(t["depth"]):
        attention, feed_forward = f"blocks.{i}.attn", f"blocks.{i}.mlp"
        shapes |= {f"{attention}.{name}.weight": (width, width) for name in ("q_proj", "k_proj", "v_proj", "proj")}
        shapes |= {f"{attention}.{name}": (width,) for name in ("q_bias", "v_bias", "proj.bias")}
        shapes |= {f"{feed_forward}.{name}.weight": (mlp, width) for name in ("w1", "w2")}
        shapes |= {f"{feed_forward}.{name}.bias": (mlp,) for name in ("w1", "w2")}
        shapes |= {f"{feed_forward}.w3.weight": (width, mlp), f"{feed_forward}.w3.bias": (width,)}
        norms = {f"blocks.{i}.norm1": width, f"blocks.{i}.norm2": width}
        norms |= {f"{attention}.inner_attn_ln": width, f"{feed_forward}.ffn_ln": mlp}
        shapes |= {f"{name}.{kind}": (size,) for name, size in norms.items() for kind in ("weight", "bias")}
    tensors = _fill(shapes, generator)
    rope = torch.zeros(patches, t["head_dim"])  # the tower constructs its own; only the head width is read from it
    return tensors | {"rope.freqs_cos": rope, "rope.freqs_sin": rope.clone()}


def _flame(mesh: Topology, generator: torch.Generator) -> dict[str, Tensor]:
    """A face model on the stand-in's mesh: smooth random shapes and expressions, one joint tree as FLAME's."""
    points = mesh.template / mesh.template.abs().amax(0)
    smooth = torch.stack([points**0, points, points**2, points.roll(1, 1) * points], 1).flatten(1)  # (V, 12)
    smooth = smooth - smooth.mean(0)

    def basis(count: int, size: float) -> Tensor:
        return size * torch.einsum("vs,sxk->vxk", smooth, torch.randn(smooth.shape[1], 3, count, generator=generator))

    joints = torch.tensor([[0, -1.0, -0.3], [0, -0.8, -0.2], [0, -0.4, 0.1], [-0.3, 0.2, 0.7], [0.3, 0.2, 0.7]])
    nearness = torch.softmax(-8 * torch.cdist(joints, points), 1)
    return {
        "v_template": mesh.template,
        "f": mesh.faces[0],
        "shapedirs": basis(400, 1e-3),
        "posedirs": basis(36, 1e-4),
        "J_regressor": nearness,
        "weights": torch.softmax(-4 * torch.cdist(points, joints), 1),
        "kintree_table": torch.tensor([[-1, 0, 1, 1, 1], [0, 1, 2, 3, 4]]),
        "landmarks": torch.cdist(torch.tensor(LANDMARKS), mesh.template).argmin(1),
    }


def _deca(generator: torch.Generator) -> dict[str, Tensor]:
    """DECA's regressor with four stages of one narrow block each."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.conv1.weight": (8, 3, 7, 7)}
    norms = {"encoder.bn1": 8}
    channels = 8
    for stage in range(1, 5):
        block = f"encoder.layer{stage}.0"
        shapes |= {f"{block}.conv1.weight": (8, channels, 1, 1), f"{block}.conv2.weight": (8, 8, 3, 3)}
        shapes |= {f"{block}.conv3.weight": (16, 8, 1, 1), f"{block}.downsample.0.weight": (16, channels, 1, 1)}
        norms |= {f"{block}.bn1": 8, f"{block}.bn2": 8, f"{block}.bn3": 16, f"{block}.downsample.1": 16}
        channels = 16
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{name}.{part}": (size,) for name, size in norms.items() for part in parts}
    shapes |= {
        "layers.0.weight": (32, 16),
        "layers.0.bias": (32,),
        "layers.2.weight": (236, 32),
        "layers.2.bias": (236,),
    }
    counts = {f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.long) for name in norms}
    return _fill(shapes, generator) | counts
