"""Attention with padded keys and values equals attention without."""

import pytest
import torch

from fantasyid_core.dit.padded_attention import MULTIPLE, padded_attention, padded_attention_plain

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))]


def draw(length: int, device: str, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return [scale * torch.randn(2, length, 3, 64, generator=generator).to(device, dtype).transpose(1, 2) for _ in "qkv"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("length", [MULTIPLE - 1, MULTIPLE, MULTIPLE + 1, 700])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_padding_changes_nothing(device, length, scale):
    q, k, v = draw(length, device, scale)
    exact = padded_attention_plain(q.double(), k.double(), v.double())
    twin = padded_attention_plain(q, k, v)
    ours = padded_attention(q, k, v)
    assert ours.shape == twin.shape
    assert ours.dtype == twin.dtype
    errors = [((x.double() - exact).norm() / exact.norm()).item() for x in (ours, twin)]
    assert errors[0] <= 2 * errors[1] + 1e-6
