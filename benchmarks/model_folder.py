"""A model of the workload's size in the published layout, with random weights, for runs from the files on.

Drawing, copying and serialising billions of values takes minutes; cutting them out of a pool and writing them as they
are takes as long as the disk.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fantasyid_core.fusion import mesh_hierarchy
from fantasyid_core.fusion.face_abstractor import FaceAbstractor, published_name
from fantasyid_core.fusion.image_tower import ImageTower
from fantasyid_core.fusion.spiral_net import VertexReducer, VertexSpiralNet
from fantasyid_core.io.layout import write_json
from fantasyid_core.video.autoencoder import build as build_vae

from .workload import Workload, random_topology, random_values, transformer

DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}
DONE = "complete.json"


def write(folder: Path, work: Workload) -> Path:
    """Write it, unless it is there already; returns `folder`."""
    sizes = {"size": work.name}
    if (folder / DONE).is_file() and json.loads((folder / DONE).read_text("utf-8")) == sizes:
        return folder
    from transformers import T5Config, T5EncoderModel

    with torch.device("meta"):
        dit = transformer(work).state_dict()
        vae = build_vae(work.vae).state_dict()
        arguments = {name: value for name, value in work.text_encoder.items() if name != "architectures"}
        text = T5EncoderModel(T5Config(**arguments)).state_dict()
        tower = ImageTower(work.tower).state_dict()
        identity = _identity(work)
    text.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
    _save(folder / "transformer", "diffusion_pytorch_model", dit | identity, work, work.config)
    _save(folder / "vae", "diffusion_pytorch_model", vae, work, work.vae)
    _save(folder / "text_encoder", "model", text, work, work.text_encoder)
    _save(folder / "face_encoder", "image_tower", tower, work)
    (folder / "face_model").mkdir(exist_ok=True)
    mesh_hierarchy.save(random_topology(work), folder / "face_model" / "topology.safetensors")
    write_json(folder / DONE, sizes)
    return folder


def _identity(work: Workload) -> dict[str, Tensor]:
    """The identity encoder's shapes under the published names; of the abstractor what its output needs."""
    abstractor = FaceAbstractor(work.tower_width, **work.abstractor, output_dim=work.tokens[1])
    with torch.device("cpu"):  # the mesh hierarchy is data
        spiral_net = VertexSpiralNet(random_topology(work), list(work.token_widths))
    reducer = VertexReducer(list(work.reducer))
    shapes = {f"face_abstractor.{published_name(k)}": v for k, v in abstractor.state_dict().items()}
    shapes |= {f"vertex_spiral_net.{k}": v for k, v in spiral_net.state_dict().items()}
    return shapes | {f"vertex_reducer.{k}": v for k, v in reducer.state_dict().items()}


def _save(folder: Path, name: str, like: Mapping[str, Tensor], work: Workload, config: dict | None = None) -> None:
    """Random values of these shapes as a safetensors file, one tensor in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        write_json(folder / "config.json", config)
    header, at = {}, 0
    for key, tensor in like.items():
        end = at + tensor.numel() * work.dtype.itemsize
        header[key] = {"dtype": DTYPES[work.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    with (folder / f"{name}.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for key, tensor in like.items():
            file.write(random_values(work, key, tensor).flatten().view(torch.uint8).numpy().data)
