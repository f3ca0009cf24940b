"""Two folders with the same values, stored in 8 bits and in fp16: what the nodes make of them is the same."""

import shutil
from pathlib import Path

import pytest
import torch
from pack.fantasyid_core.io import weights
from pack.fantasyid_core.io.layout import save_part
from pack.nodes.host.options import transformer_of
from pack.nodes.loading import FantasyIDLoadModel
from pack.nodes.reconstruction import FantasyIDReconstruct
from pack.tests.support.in_comfyui import FACE
from pack.tools import pack_weights
from safetensors import safe_open
from torch import Tensor, nn

SEED = torch.Generator().manual_seed(0)
TEXT = torch.randn(1, 226, 32, generator=SEED)
X = torch.randn(1, 32, 3, 16, 24, generator=SEED)


@pytest.fixture(scope="module", autouse=True)
def folders(base, standin) -> tuple[Path, Path]:
    """The stand-in in 8 bits, and the same values in fp16."""
    packed = shutil.copytree(standin, base / "models" / "fantasyid" / "packed")
    for part in pack_weights.PARTS:
        pack_weights.pack_part(packed, part)
    plain = shutil.copytree(packed, packed.with_name("plain"))
    save_part(plain / "transformer", weights.read(packed / "transformer"), None, "diffusion_pytorch_model")
    for path in pack_weights.FILES.values():
        save_part(plain / path.parent, weights.read(packed / path), None, path.stem)
    return packed, plain


def stores_8_bits(folder: Path) -> bool:
    names = []
    for path in (folder / "transformer").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names += file.keys()
    return any(name.endswith(".row_scale") for name in names)


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """To the bit, in the same type."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor.float(), b[name].float()), name


def prediction(model) -> Tensor:
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    return transformer_of(model)(X.to(dtype), torch.tensor([500.0]), TEXT.to(dtype))


def test_the_stand_in_is_packed(folders):
    assert [stores_8_bits(folder) for folder in folders] == [True, False]


@pytest.mark.parametrize("dtype", ["default", "fp8_e4m3fn", "fp32"])
def test_the_model_and_its_encoder_are_the_same(dtype):
    packed, plain = (FantasyIDLoadModel.run(name, dtype).args for name in ("packed", "plain"))
    assert_same(transformer_of(packed[0]), transformer_of(plain[0]))
    assert packed[0].model_size() == plain[0].model_size()
    assert torch.equal(prediction(packed[0]), prediction(plain[0]))
    assert_same(packed[2].loaded().model, plain[2].loaded().model)


def test_the_mesh_is_the_same():
    packed, plain = (FantasyIDReconstruct.run(FACE, name, "as released").args[0] for name in ("packed", "plain"))
    assert torch.equal(packed.vertices, plain.vertices)
