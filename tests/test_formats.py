"""The number-format codecs against ml_dtypes, torch's own types and exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from anychip.errors import InputError
from anychip.ops import formats

HARD = [
    0.0,
    -0.0,
    1e-45,
    -1e-45,
    2.0**-126,
    2.0**-149,
    3.4e38,
    -3.4e38,
    448.0,
    464.0,
    6.0,
    5.0,
    0.25,
    1e-4,
    2.0**-9,
]


def reals(count: int = 200_000) -> torch.Tensor:
    """Values over 12 decades, every mid-point of E2M1 and its neighbours, and the hard cases."""
    torch.manual_seed(7)
    x = torch.randn(count) * 10.0 ** torch.randint(-6, 6, (count,))
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0])
    ties = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    return torch.cat([x, ties, -ties, torch.tensor(HARD)])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, any NaN equal to any NaN."""
    nan = a.isnan()
    return torch.equal(nan, b.isnan()) and torch.equal(a[~nan].view(torch.int32), b[~nan].view(torch.int32))


def from_numpy(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def test_every_e4m3_code_decodes_as_in_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    ours = formats.decode_e4m3(torch.from_numpy(codes).view(torch.float8_e4m3fn))
    assert same_bits(ours, from_numpy(codes.view(ml_dtypes.float8_e4m3fn)))


def test_every_e8m0_code_decodes_as_in_ml_dtypes_and_torch() -> None:
    codes = np.arange(256, dtype=np.uint8)
    ours = formats.decode_e8m0(torch.from_numpy(codes))
    assert same_bits(ours, from_numpy(codes.view(ml_dtypes.float8_e8m0fnu)))
    assert same_bits(ours, torch.from_numpy(codes).view(torch.float8_e8m0fnu).float())


def test_every_e2m1_code_decodes_as_in_ml_dtypes() -> None:
    codes = np.arange(16, dtype=np.uint8)
    assert same_bits(
        formats.decode_e2m1(torch.from_numpy(codes)), from_numpy(codes.view(ml_dtypes.float4_e2m1fn))
    )


def test_e8m0_codes_survive_a_round_trip() -> None:
    exponents = torch.arange(-127, 128, dtype=torch.int32)
    codes = formats.encode_e8m0(exponents)
    assert codes.view(torch.uint8).tolist() == list(range(255))
    assert torch.equal(formats.decode_e8m0(codes).double(), torch.pow(2.0, exponents.double()))


def test_every_e4m3_value_midpoint_and_neighbour_encodes_as_in_ml_dtypes() -> None:
    values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (values[1:] + values[:-1]) / 2
    x = torch.cat(
        [values, middle, torch.nextafter(middle, middle * 2), torch.nextafter(middle, middle * 0), reals()]
    )
    x = torch.cat([x, -x]).clamp(-464, 464)
    theirs = x.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(formats.encode_e4m3(x).view(torch.uint8).numpy(), theirs)


def test_e4m3_saturates_and_keeps_nan() -> None:
    x = torch.tensor([465.0, 1e30, torch.inf, -torch.inf, torch.nan])
    assert formats.encode_e4m3(x).view(torch.uint8).tolist()[:4] == [0x7E, 0x7E, 0x7E, 0xFE]
    assert formats.encode_e4m3(x)[4].float().isnan()


def test_e2m1_encodes_as_in_ml_dtypes_ties_signs_and_saturation_included() -> None:
    x = reals()
    theirs = x.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    assert np.array_equal(formats.encode_e2m1(x).numpy(), theirs)


def test_e2m1_packs_the_even_index_into_the_low_nibble() -> None:
    packed = formats.pack_e2m1(torch.tensor([[1, 15, 0, 8]], dtype=torch.uint8))
    assert packed.dtype is torch.int8 and packed.tolist() == [[-15, -128]]
    every = torch.arange(256, dtype=torch.uint8).view(torch.int8)
    assert torch.equal(formats.pack_e2m1(formats.unpack_e2m1(every)), every)


@pytest.mark.parametrize("limit", [448.0, 6.0])
def test_the_scale_exponent_is_exact_at_and_next_to_every_power_of_two(limit: float) -> None:
    edge = limit * torch.pow(2.0, torch.arange(-130, 119).double()).float()
    amax = torch.cat(
        [edge, torch.nextafter(edge, edge * 0), torch.nextafter(edge, edge * 2), reals(500).abs()]
    )
    amax = amax[(amax > 0) & amax.isfinite()]
    for value, k in zip(amax.tolist(), formats.ceil_log2_ratio(amax, limit).tolist(), strict=True):
        ratio = Fraction(value) / Fraction(limit)
        assert Fraction(2) ** (k - 1) < ratio <= Fraction(2) ** k


def test_fp8_blocks_match_a_block_by_block_reference_at_uneven_edges() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 300) * torch.logspace(-8, 3, 300)
    codes, scale = formats.quantize_fp8(x)
    assert codes.shape == x.shape and scale.shape == (2, 3) and scale.dtype is torch.float8_e8m0fnu
    for i in range(2):
        for j in range(3):
            part = np.s_[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            s = np.float32(2.0) ** np.ceil(np.log2(np.float64(max(x[part].abs().max().item(), 1e-4)) / 448))
            assert scale[i, j].float().item() == s
            theirs = (x[part].numpy() / s).astype(ml_dtypes.float8_e4m3fn)
            assert np.array_equal(codes[part].view(torch.uint8).numpy(), theirs.view(np.uint8))


@pytest.mark.parametrize("columns", [64, 128])
def test_fp8_activation_blocks_run_along_the_last_dimension(columns: int) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 5, 256)
    codes, scale = formats.quantize_fp8(x, (1, columns))
    assert scale.shape == (3, 5, 256 // columns)
    flat = formats.quantize_fp8(x.view(-1, columns), (1, columns))
    assert torch.equal(codes.view(torch.uint8).flatten(), flat.codes.view(torch.uint8).flatten())
    assert (formats.dequantize_fp8(codes, scale, (1, columns)) - x).abs().max() <= x.abs().max() / 16


def test_fp4_blocks_match_ml_dtypes() -> None:
    torch.manual_seed(3)
    x = torch.randn(64, 96) * torch.logspace(-6, 4, 96)
    packed, scale = formats.quantize_fp4(x)
    assert packed.shape == (64, 48) and packed.dtype is torch.int8 and scale.shape == (64, 3)
    amax = x.view(64, 3, 32).abs().amax(-1).double().numpy()
    assert np.array_equal(scale.float().numpy(), 2.0 ** np.ceil(np.log2(amax / 6)))
    grid = x.view(64, 3, 32).numpy() / scale.float().numpy()[..., None]
    theirs = (
        torch.from_numpy(grid.astype(ml_dtypes.float4_e2m1fn).astype(np.float32)) * scale.float()[..., None]
    )
    assert same_bits(formats.dequantize_fp4(packed, scale), theirs.view(64, 96))


def test_blocks_of_zeros_use_the_floor_scales() -> None:
    zero = torch.zeros(128, 128)
    assert formats.quantize_fp8(zero).scale.float().item() == 2.0**-22  # 2^ceil(log2(1e-4 / 448))
    assert (formats.quantize_fp4(zero).scale.float() == 2.0**-126).all()


def test_a_block_with_nan_or_inf_reads_back_as_nan_and_its_neighbour_does_not() -> None:
    x = torch.ones(1, 64)
    x[0, 5] = torch.nan
    x[0, 40] = 3.0
    assert formats.dequantize_fp4(*formats.quantize_fp4(x))[0].isnan().sum() == 32
    x[0, 5] = torch.inf
    assert formats.dequantize_fp8(*formats.quantize_fp8(x, (1, 32)), (1, 32))[0].isnan().sum() == 32


def test_bytes_survive_a_round_trip_only_with_the_scale_that_was_read() -> None:
    torch.manual_seed(4)
    x = torch.randn(256, 512)
    x[:128, :128].clamp_(-1.7, 1.7)[0, 0] = (
        225 / 128
    )  # scale 2^-7: the largest code rounds to 224, half of 448
    for first, read, write in (
        (formats.quantize_fp8(x), formats.dequantize_fp8, formats.quantize_fp8),
        (formats.quantize_fp4(x), formats.dequantize_fp4, formats.quantize_fp4),
    ):
        value = read(*first)
        again, derived = write(value, scale=first.scale), write(value)
        assert all(
            torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(first, again, strict=True)
        )
        assert same_bits(read(*derived), value)  # the values need no memory of the scale ...
        assert not torch.equal(
            derived.scale.view(torch.uint8), first.scale.view(torch.uint8)
        )  # ... the bytes do


def test_a_remembered_scale_that_no_longer_fits_gives_way_to_the_rule() -> None:
    torch.manual_seed(5)
    x = torch.randn(128, 256)
    first = formats.quantize_fp8(x)
    trained = formats.dequantize_fp8(*first)
    trained[:, :128] += 0.01
    got = formats.quantize_fp8(trained, scale=first.scale)
    assert torch.equal(
        got.codes.view(torch.uint8)[:, :128], formats.quantize_fp8(trained).codes.view(torch.uint8)[:, :128]
    )
    assert torch.equal(got.codes.view(torch.uint8)[:, 128:], first.codes.view(torch.uint8)[:, 128:])


def test_fp4_refuses_rows_that_are_no_multiple_of_32() -> None:
    with pytest.raises(InputError, match="multiple of 32 values; these have 40"):
        formats.quantize_fp4(torch.zeros(2, 40))


def test_fp4_fits_into_fp8_without_loss() -> None:
    every = torch.arange(16, dtype=torch.uint8)
    values = formats.decode_e2m1(every)
    for shift in range(-6, 7):  # the publisher's MAX_OFFSET_BITS
        assert same_bits(formats.decode_e4m3(formats.encode_e4m3(values * 2.0**shift)), values * 2.0**shift)


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32", "hf32"])
def test_rounding_is_to_nearest_even(name: str) -> None:
    bits = {"bf16": 7, "fp16": 10, "tf32": 10, "hf32": 11}[name]
    x = reals(2000)
    x = x[(x.abs() >= 2.0**-14) & (x.abs() < 2.0**15)]  # fp16's normal range; the others have fp32's
    one = torch.tensor([1 + (2 * k + 1) * 2.0 ** -(bits + 1) for k in range(8)])  # exact ties
    for value, got in zip(
        torch.cat([x, one]).tolist(), formats.round_to(torch.cat([x, one]), name).tolist(), strict=True
    ):
        step = Fraction(2) ** (int(np.floor(np.log2(abs(value)))) - bits)
        assert Fraction(got) == round(Fraction(value) / step) * step  # Fraction rounds ties to even


@pytest.mark.parametrize("name", ["tf32", "hf32", "bf16", "fp16"])
def test_rounding_keeps_nan_inf_and_the_sign_of_zero_and_overflows_to_inf(name: str) -> None:
    odd_nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF], dtype=torch.int32).view(torch.float32)
    assert formats.round_to(odd_nans, name).isnan().all()
    x = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, torch.finfo(torch.float32).max])
    assert formats.round_to(x, name).tolist() == [torch.inf, -torch.inf, 0.0, 0.0, torch.inf]
    assert formats.round_to(x, name).signbit().tolist() == [False, True, False, True, False]


def test_rounding_rounds_fp32_denormals_too() -> None:
    x = torch.tensor([0x00000FFF, 0x00001001, 0x00003000], dtype=torch.int32).view(torch.float32)
    assert formats.round_to(x, "tf32").view(torch.int32).tolist() == [0, 0x2000, 0x4000]


def test_rounding_bf16_agrees_with_ml_dtypes() -> None:
    x = reals(50_000)
    assert same_bits(formats.round_to(x, "bf16"), from_numpy(x.numpy().astype(ml_dtypes.bfloat16)))


def test_gradients_pass_straight_through() -> None:
    x = torch.linspace(-2, 2, 128).requires_grad_()
    weight = torch.linspace(0.1, 0.7, 128)  # not representable in bf16: the gradient must not be rounded
    for name in ("bf16", "tf32"):
        assert torch.equal(torch.autograd.grad((formats.round_to(x, name) * weight).sum(), x)[0], weight)
    for fake in (formats.fake_quantize_fp8, formats.fake_quantize_fp4):
        assert torch.equal(torch.autograd.grad((fake(x) * weight).sum(), x)[0], weight)


def test_fake_quantisation_is_what_reads_back() -> None:
    torch.manual_seed(6)
    x = torch.randn(4, 128, dtype=torch.bfloat16)
    assert torch.equal(formats.fake_quantize_fp4(x).float(), formats.dequantize_fp4(*formats.quantize_fp4(x)))
    block = formats.FP8_ACTIVATION_BLOCK
    assert torch.equal(
        formats.fake_quantize_fp8(x).float(), formats.dequantize_fp8(*formats.quantize_fp8(x, block), block)
    )


def test_an_unknown_rounding_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="no rounding to 'bf61'.*Did you mean 'bf16'"):
        formats.round_to(torch.zeros(1), "bf61")
