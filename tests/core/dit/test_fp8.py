"""Products with 8-bit operands: the error is the format's, the twin is what the hardware computes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fantasyid_core.dit import fp8
from fantasyid_core.dit.fp8 import (
    dequantise,
    fp8_matmul,
    fp8_matmul_eager,
    quantise_weight,
    rowwise_scaled_mm,
    tensorwise_scaled_mm,
)
from fantasyid_core.dit.injection import Injection, InjectionRun
from fantasyid_core.dit.kernels import FLOAT8, RowwiseFp8, quantise_rows, quantise_rows_eager
from fantasyid_core.dit.transformer import FantasyIDTransformer, from_published
from fantasyid_core.fusion.checkpoint import split_published
from fantasyid_core.io.weights import read, read_config
from fantasyid_lab import dummy_model as standin_weights

SUPPORTED = torch.cuda.is_available() and fp8.missing(torch.device("cuda")) is None
FP8_CARD = pytest.mark.skipif(not SUPPORTED, reason="no card with 8-bit products")
HALF_A_STEP = 2.0**-4  # three bits of mantissa


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(exponent=st.floats(-30, 30), rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_every_value_within_range_keeps_three_bits(exponent, rows, columns, seed):
    x = draw(rows, columns, seed=seed) * 10**exponent
    values, scales = quantise_rows(x)
    assert values.dtype == FLOAT8
    assert torch.equal(scales.log2(), scales.log2().round())
    largest = values.float().abs().amax(-1)
    assert (largest <= 256).all()
    error = (dequantise(RowwiseFp8(values, scales), torch.float32) - x).abs()
    assert (error <= x.abs() * HALF_A_STEP + scales * 2.0**-10).all()  # the format's smallest step is 2⁻⁹


def test_rows_of_zeros_stay_zeros():
    assert dequantise(quantise_rows(torch.zeros(2, 8)), torch.float32).eq(0).all()


def test_what_was_stored_in_the_format_comes_out_as_it_was():
    stored = (0.05 * draw(6, 32)).to(FLOAT8)
    again = quantise_rows(stored.to(torch.bfloat16))
    assert torch.equal(dequantise(again, torch.float32), stored.float())
    assert quantise_weight(stored).values is stored


def test_a_product_is_as_near_as_its_operands():
    x, weight, bias = draw(2, 50, 256), draw(64, 256, seed=1), draw(64, seed=2)
    ours = fp8_matmul(quantise_rows(x), quantise_weight(weight), bias, torch.float32)
    exact = torch.nn.functional.linear(x, weight, bias)
    assert 1e-3 < ((ours - exact).norm() / exact.norm()) < 0.05


@pytest.fixture
def model(standin) -> FantasyIDTransformer:
    return from_published(read_config(standin / "transformer"), split_published(read(standin / "transformer")))


@torch.no_grad()
def test_a_block_in_8_bits_stays_near_the_exact_one(model):
    image_rotary_emb = model.rotary_embedding(3, 16, 24, "cpu")
    latents, text = draw(2, 3, 32, 16, 24), draw(2, 226, 32, seed=1)
    run = InjectionRun([Injection(draw(20, standin_weights.TOKENS, seed=2))])
    inputs = dict(image_rotary_emb=image_rotary_emb, injector=run)

    def in_8_bits(index, block, hidden_states, encoder_hidden_states, temb, image_rotary_emb):
        return block(hidden_states, encoder_hidden_states, temb, image_rotary_emb, fp8=True)

    exact = model(latents, text, torch.tensor([500, 500]), **inputs)
    ours = model(latents, text, torch.tensor([500, 500]), **inputs, run_block=in_8_bits)
    assert 1e-4 < ((ours - exact).norm() / exact.norm()) < 0.1


@torch.no_grad()
@pytest.mark.parametrize("in_8_bits", [True, False])
@pytest.mark.parametrize("layer", ["attn1.to_q", "ff.net.0.proj", "ff.net.2"])
def test_an_adapter_in_a_layer_s_place_is_called(model, in_8_bits, layer):
    """Adapters of other packs replace a layer's `forward`, PEFT replaces the layer."""
    block, called = model.transformer_blocks[0], []
    linear = block.get_submodule(layer)
    linear.forward = lambda x: called.append(x.dtype) or torch.nn.functional.linear(x, linear.weight, linear.bias)
    dim = block.attn1.to_q.in_features
    block(draw(1, 6, dim), draw(1, 3, dim), draw(1, block.norm1.linear.in_features), fp8=in_8_bits)
    assert called == [torch.float32]


@pytest.mark.parametrize("multiply", [rowwise_scaled_mm, tensorwise_scaled_mm])
@pytest.mark.parametrize("bias", [draw(32, seed=2).bfloat16(), None])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=FP8_CARD)])
def test_both_ways_of_scaling_multiply_as_the_twin(multiply, bias, device):
    if multiply is rowwise_scaled_mm and not fp8._has_rowwise_scales(torch.device(device)):
        pytest.skip(f"this PyTorch has no matmul with row-wise scales on {device}")
    x, weight = quantise_rows(draw(48, 64).to(device) * 30), quantise_weight(draw(32, 64, seed=1).to(device) / 50)
    bias = bias if bias is None else bias.to(device)
    exact = fp8_matmul_eager(x, weight, bias, torch.float64)
    assert ((multiply(x, weight, bias).double() - exact).norm() / exact.norm()) < 5e-3


@FP8_CARD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_card_multiplies_as_the_twin(dtype, bias):
    x, weight = (
        RowwiseFp8(*quantise_rows_eager(draw(3, 100, 512).cuda())),
        quantise_weight(draw(256, 512, seed=1).cuda()),
    )
    bias = draw(256, seed=2).cuda().to(dtype) if bias else None
    exact = fp8_matmul_eager(x, weight, bias, torch.float64)
    theirs = fp8_matmul(x, weight, bias, dtype)
    assert ((theirs.double() - exact).norm() / exact.norm()) < 5e-3


@FP8_CARD
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_card_quantises_as_the_twin(dtype):
    x = draw(3, 100, 3072).cuda().to(dtype)
    for ours, reference in zip(quantise_rows(x), quantise_rows_eager(x), strict=True):
        assert torch.equal(ours.float(), reference.float())


def test_a_cpu_has_no_8_bit_products():
    assert "'cpu'" in fp8.missing(torch.device("cpu"))
