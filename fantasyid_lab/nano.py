"""FantasyID-nano: the 5B's modules at small widths, in the published layout, for 25 frames of 160 × 160 pixels.

It is trained on synthetic people (`training`, `people`). Its text encoder reads bytes (`bytes_text`), its mesh
hierarchy and face model are those of the synthetic people's head.
"""

import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fantasyid_core.dit import byte_tokens
from fantasyid_core.errors import WeightsMissingError
from fantasyid_core.fusion import checkpoint, mesh_hierarchy
from fantasyid_core.fusion.face_abstractor import FaceAbstractor, published_name
from fantasyid_core.fusion.identity import IdentityEncoder, build_encoder
from fantasyid_core.fusion.image_tower import ImageTower, TowerSizes, rotary
from fantasyid_core.fusion.spiral_net import VertexReducer, VertexSpiralNet
from fantasyid_core.io import weights
from fantasyid_core.io.layout import locate, save_part, write_json
from fantasyid_core.reconstruction import flame
from fantasyid_core.reconstruction.deca import CODE_SIZES, Regressor, RegressorSizes, load_regressor
from fantasyid_core.sampling.schedule import RELEASE_SCHEDULE
from fantasyid_core.video import autoencoder

if TYPE_CHECKING:
    from transformers import T5EncoderModel

    from fantasyid_core.dit.transformer import FantasyIDTransformer

FRAMES, HEIGHT, WIDTH = 25, 160, 160
SHIPPED = Path(__file__).resolve().parent.parent / "models" / "FantasyID-nano"
PARTS = ("scheduler", "vae", "text_encoder", "transformer", "face_encoder", "face_model")
SHARD_BYTES = 14 << 20  # a file of the repository stays below 16 MiB
LARGE, LARGE_SHARD_BYTES = 1 << 30, 5 << 30  # what is not for the repository


@dataclass(frozen=True)
class Sizes:
    """Widths and depths; the dictionaries are the parts' `config.json`.

    Attributes:
        abstractor: arguments of `FaceAbstractor` beside those that follow from the tower.
        token_widths: of the spiral network, from K, the identity tokens' width, down.
        spiral_depth: its transformer layers.
        reducer: channels in and out and kernel of each block.
        injection_width: heads × head width of the injection layers.
    """

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    tower: TowerSizes
    abstractor: Mapping[str, int]
    token_widths: tuple[int, ...]
    spiral_depth: int
    reducer: tuple[tuple[int, int, int], ...]
    injection_width: int
    regressor: RegressorSizes


def _transformer_config(heads: int, head_dim: int, layers: int, time: int, text: int, inner: int, queries: int) -> dict:
    return {
        "_class_name": "IDTransformer3DModel",
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "in_channels": 32,
        "out_channels": 16,
        "num_layers": layers,
        "time_embed_dim": time,
        "text_embed_dim": text,
        "sample_width": WIDTH // 8,
        "sample_height": HEIGHT // 8,
        "sample_frames": FRAMES,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": False,
        "is_train_face": True,
        "is_kps": False,
        "cross_attn_interval": 1,
        "layer_attention_head_dim": inner,
        "face_queries": queries,
        # Metres to the 0…1 that the depth encoding resolves: a head is 0.24 m deep (release: 0.5).
        "vertex_depth_scale": 4.0,
        # Whether the reference crop goes in as first latent frame (release: true).
        "first_frame_condition": False,
        "sampling_defaults": {"steps": 20, "guidance": 4.0, "scheduler": "ddim", "guide_identity": True},
    }


def _vae_config(channels: tuple[int, ...], groups: int) -> dict:
    return {
        "_class_name": "AutoencoderKLCogVideoX",
        "down_block_types": ["CogVideoXDownBlock3D"] * 4,
        "up_block_types": ["CogVideoXUpBlock3D"] * 4,
        "block_out_channels": list(channels),
        "latent_channels": 16,
        "layers_per_block": 1,
        "norm_num_groups": groups,
        "scaling_factor": 0.7,
    }


def _text_config(width: int, hidden: int, layers: int, heads: int) -> dict:
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "d_model": width,
        "d_kv": width // heads,
        "d_ff": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "vocab_size": byte_tokens.VOCABULARY,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.0,
        "pad_token_id": byte_tokens.PAD,
        "eos_token_id": byte_tokens.END,
    }


NANO = Sizes(
    transformer=_transformer_config(heads=6, head_dim=64, layers=7, time=64, text=192, inner=64, queries=36),
    vae=_vae_config((32, 64, 128, 128), groups=8),
    text=_text_config(width=192, hidden=512, layers=3, heads=3),
    tower=TowerSizes(width=320, depth=6, grid=8, patch=14, head_dim=64, mlp=640, out=16),
    abstractor={"width": 192, "depth": 2, "queries": 36},
    token_widths=(256, 96),
    spiral_depth=3,
    reducer=((96, 96, 5), (96, 128, 5), (128, 256, 5)),
    injection_width=256,
    regressor=RegressorSizes(32, ((32, 96, 2), (48, 160, 2), (80, 256, 2), (112, 384, 2)), 256),
)
TINY = Sizes(  # for tests
    transformer=_transformer_config(heads=2, head_dim=16, layers=2, time=16, text=16, inner=16, queries=4),
    vae=_vae_config((8, 8, 8, 8), groups=2),
    text=_text_config(width=16, hidden=32, layers=1, heads=2),
    tower=TowerSizes(width=32, depth=6, grid=4, patch=14, head_dim=16, mlp=32, out=8),
    abstractor={"width": 16, "depth": 1, "queries": 4},
    token_widths=(32, 16),
    spiral_depth=1,
    reducer=((16, 32, 5), (32, 32, 3)),
    injection_width=16,
    regressor=RegressorSizes(8, ((8, 16, 1), (8, 16, 1), (8, 16, 1), (8, 16, 1)), 32),
)


@dataclass(eq=False)
class Nano:
    """All parts of a small model, float32 unless loaded otherwise.

    Attributes:
        face: the face model, whose vertices the spiral network takes.
        face_folder: the `face_model/` that mesh hierarchy and face model come from.
        tokenizer_folder: where the vocabulary of the text encoder lies; `None`: it reads bytes.
    """

    vae: autoencoder.Autoencoder
    text: "T5EncoderModel"
    transformer: "FantasyIDTransformer"
    encoder: IdentityEncoder
    regressor: Regressor
    face: flame.Flame
    face_folder: Path
    config: dict[str, Any]
    """The transformer's `config.json`."""
    tokenizer_folder: Path | None = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that have weights, by name."""
        names = ("vae", "text", "transformer", "encoder", "regressor")
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str) -> "Nano":
        """Everything on a device; returns itself."""
        for module in self.modules.values():
            module.to(device)
        self.face = self.face.to(device)
        return self


def build(face_folder: Path = SHIPPED / "face_model", sizes: Sizes = NANO, seed: int = 0) -> Nano:
    """An untrained model on the mesh hierarchy and the face model of a `face_model/` folder, on the CPU.

    Identity injection, the DiT's blocks and its output begin at zero, so that training starts from the identity map.

    Raises:
        WeightsMissingError, WeightsError, MeshError: the folder's files are missing or damaged.
    """
    from transformers import T5Config, T5EncoderModel

    from fantasyid_core.dit.config import InjectionSizes, TransformerConfig
    from fantasyid_core.dit.transformer import FantasyIDTransformer

    mesh = mesh_hierarchy.load(face_folder / "topology.safetensors")
    face = flame.load(face_folder / "generic_model.safetensors")
    config, token_dim, tower = dict(sizes.transformer), sizes.token_widths[0], sizes.tower
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        injections = len(range(0, config["num_layers"], config["cross_attn_interval"]))
        transformer = FantasyIDTransformer(
            TransformerConfig.of(config), InjectionSizes(injections, token_dim, sizes.injection_width)
        )
        encoder = IdentityEncoder(
            _tower(tower),
            FaceAbstractor(dim=tower.width, patches=tower.grid**2, output_dim=token_dim, **dict(sizes.abstractor)),
            VertexSpiralNet(
                mesh,
                list(sizes.token_widths),
                sizes.spiral_depth,
                config["vertex_depth_scale"],
                axes=config.get("vertex_axes", "z"),
            ),
            VertexReducer(list(sizes.reducer)),
        )
        model = Nano(
            vae=autoencoder.build(sizes.vae),
            text=T5EncoderModel(T5Config(**_arguments(sizes.text))),
            transformer=transformer,
            encoder=encoder,
            regressor=Regressor(sizes.regressor),
            face=face,
            face_folder=face_folder,
            config=config,
        )
        _initialise(model)
    return model


def read(folder: Path, large: torch.dtype = torch.float32) -> Nano:
    """A model folder in the published layout, the 5B's too → its parts in float32 on the CPU, gradients off.

    Args:
        large: dtype of the DiT and the text encoder, for those that fill the memory.

    Raises:
        WeightsMissingError, WeightsError, MeshError: files are missing or damaged.
    """
    from fantasyid_core.dit.transformer import from_published

    files = locate(folder)
    config = weights.read_config(files.transformer)
    published = checkpoint.split_published(weights.read(files.transformer))
    if not published.has_identity:
        raise WeightsMissingError(
            f"{files.transformer} is a plain CogVideoX: it holds no identity modules. Expected FantasyID's transformer."
        )
    tower = ImageTower.from_state_dict(weights.read(files.tower))
    mesh = mesh_hierarchy.load(files.topology)
    with weights.configured("CogVideoX autoencoder"):
        vae = autoencoder.build(weights.read_config(files.vae))
    text = _read_text_encoder(files.text_encoder)
    weights.load_into(vae, weights.read(files.vae), what="autoencoder")
    model = Nano(
        vae=vae,
        text=text,
        transformer=from_published(config, published),
        encoder=build_encoder(published, tower, mesh, config),
        regressor=load_regressor(files.regressor),
        face=flame.load(files.face_model),
        face_folder=folder / "face_model",
        config=config,
        tokenizer_folder=None if text.config.vocab_size == byte_tokens.VOCABULARY else folder / "tokenizer",
    )
    for name, module in model.modules.items():
        module.to(large if name in ("text", "transformer") else torch.float32).eval().requires_grad_(False)
    return model


def _read_text_encoder(folder: Path) -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    with weights.configured("T5 text encoder"), torch.device("meta"):
        text = T5EncoderModel(T5Config(**_arguments(weights.read_config(folder))))
    tensors = weights.read(folder)
    shared = {"encoder.embed_tokens.weight": tensors["shared.weight"]} if "shared.weight" in tensors else {}
    weights.load_into(text, tensors | shared, what="text encoder")
    text.encoder.embed_tokens.weight = text.shared.weight  # one tensor under two names
    return text


def write(model: Nano, folder: Path, parts: Collection[str] = PARTS) -> Path:
    """Write parts of a model in the published layout, in fp16, no file above 16 MiB; returns `folder`.

    A DiT in bfloat16 stays so, and parts of more than a gigabyte come in files of 5.

    Raises:
        SaveError: the disk refuses a file.
    """
    half = torch.float16
    if "scheduler" in parts:
        write_json(folder / "scheduler" / "scheduler_config.json", RELEASE_SCHEDULE)
    if "vae" in parts:
        config = {"_class_name": "AutoencoderKLCogVideoX"} | model.vae.config.published()
        save_part(folder / "vae", model.vae.state_dict(), config, "diffusion_pytorch_model", shards=shards, dtype=half)
    if "text_encoder" in parts:
        tensors = {name: x for name, x in model.text.state_dict().items() if name != "encoder.embed_tokens.weight"}
        config = model.text.config
        config = {name: getattr(config, name) for name in _text_config(8, 8, 1, 1) if hasattr(config, name)}
        save_part(folder / "text_encoder", tensors, config, "model", shards=shards, dtype=half)
    if "transformer" in parts:
        dtype = torch.bfloat16 if model.transformer.proj_out.weight.dtype == torch.bfloat16 else half
        tensors = published_tensors(model)
        save_part(folder / "transformer", tensors, model.config, "diffusion_pytorch_model", shards=shards, dtype=dtype)
    if "face_encoder" in parts:
        save_part(folder / "face_encoder", model.encoder.tower.state_dict(), None, "image_tower", dtype=half)
    if "face_model" in parts:
        save_part(folder / "face_model", model.regressor.state_dict(), None, "deca_model", dtype=half)
        for name in ("topology.safetensors", "generic_model.safetensors"):
            if not (folder / "face_model" / name).exists():
                shutil.copyfile(model.face_folder / name, folder / "face_model" / name)
    return folder


def published_tensors(model: Nano) -> dict[str, Tensor]:
    """The transformer's state dict under the published names: DiT, injection layers and identity encoder."""
    encoder = model.encoder
    abstractor = {f"face_abstractor.{published_name(k)}": v for k, v in encoder.abstractor.state_dict().items()}
    spiral_net = {f"vertex_spiral_net.{k}": v for k, v in encoder.spiral_net.state_dict().items()}
    reducer = {f"vertex_reducer.{k}": v for k, v in encoder.reducer.state_dict().items()}
    return model.transformer.state_dict() | abstractor | spiral_net | reducer


def shards(size: int) -> int:
    """How many files a part of so many bytes comes in."""
    return max(1, math.ceil(size / (SHARD_BYTES if size < LARGE else LARGE_SHARD_BYTES)))


def _arguments(config: Mapping) -> dict:
    return {name: value for name, value in config.items() if not name.startswith("_") and name != "architectures"}


def _tower(sizes: TowerSizes) -> ImageTower:
    tower = ImageTower(sizes)
    tower.rope.freqs_cos, tower.rope.freqs_sin = rotary(sizes.grid**2, sizes.head_dim)
    return tower


@torch.no_grad()
def _initialise(model: Nano) -> None:
    """What the modules' own constructors leave at PyTorch's defaults or at zero."""
    dit, encoder = model.transformer, model.encoder
    for module in (*dit.modules(), *encoder.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    closed = [dit.norm_out.linear, dit.proj_out, *(layer.to_out for layer in dit.layer_attention)]
    closed += [norm.linear for block in dit.transformer_blocks for norm in (block.norm1, block.norm2)]
    for module in closed:
        nn.init.zeros_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    tower, abstractor = encoder.tower, encoder.abstractor
    for parameter in (tower.cls_token, tower.pos_embed, abstractor.pos_emb):
        nn.init.normal_(parameter, std=0.02)
    for unread in (*tower.blocks[tower.taps[-1] :], tower.norm, tower.head):
        for parameter in unread.parameters():
            nn.init.zeros_(parameter)  # stays so, and takes no room in a compressed history
    nn.init.normal_(abstractor.proj_out, std=abstractor.proj_out.shape[0] ** -0.5)
    nn.init.normal_(encoder.spiral_net.vtx_query, std=0.5)
    for module in model.regressor.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(model.regressor.layers[2].weight, std=0.01)
    nn.init.zeros_(model.regressor.layers[2].bias)
    scale = sum(CODE_SIZES[:4])  # of the camera: a photo of head and shoulders, 0.4 m wide, is seen from −1 to 1
    model.regressor.layers[2].bias.data[scale] = 5.0
    # The base model sees zeros for image latents; where it later sees an image, it starts from ignoring it.
    nn.init.zeros_(dit.patch_embed.proj.weight[:, dit.config.in_channels // 2 :])
