"""Linear maps whose weights are integers of 8 or 4 bits, with a scale for each group of 32."""

import math

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from ..errors import ConfigError, PrenormError
from ..kernels.quantized_layout import GROUP as GROUP
from ..kernels.quantized_layout import QUAD, ROWS
from ..kernels.quantized_layout import SCALE as SCALE
from . import backends

KINDS = {"int8": 8, "int4": 4}  # what a weight can become, and its bits
LARGEST = 127  # of what is rounded to 8 bits
MOST = 2.0**127  # the largest weight that is rounded: half of what float32 holds, so that number x scale is finite
TINY = 2.0**-100  # numbers of a group that has none as large become 0: 1 / such a number may be infinite


def quantized_linear(
    x: Float[Tensor, "*batch in_features"],
    weight: UInt8[Tensor, "blocks groups bytes"],
    scale: Float[Tensor, "blocks groups 16"],
    bias: Float[Tensor, " out_features"] | None = None,
    *,
    out_features: int,
) -> Float[Tensor, "*batch out_features"]:
    """y = round_rows(x) W^T + b, where weight and scale are W as `pack` gives it; y has the dtype of x.

    x is rounded to 8 bits, each group of 32 by itself: what one token gives cannot change another's. Products of
    integers are exact; scales and sums of groups are float32 or wider.
    Raises PrenormError where x needs gradients. Source: Dettmers et al. 2022, arXiv:2208.07339, section 2 (absmax).
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise PrenormError(
            "quantised weights cannot be trained, and no gradients flow through them; train the model, then call "
            "quantize() on it, and use it under torch.no_grad() or with inputs that need no gradient."
        )
    if kernel := backends.choose("quantized_linear", x, weight, scale, bias, out_features):
        result: Tensor = kernel(x, weight, scale, bias, out_features)
        return result
    wide = torch.promote_types(x.dtype, torch.float32)
    matrix = dequantize(*unpack(weight, scale, (out_features, x.shape[-1]))).to(wide)
    with torch.autocast(x.device.type, enabled=False):
        return torch.nn.functional.linear(round_rows(x), matrix, None if bias is None else bias.to(wide)).to(x.dtype)


def round_rows(x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch in_features"]:
    """x with each group of 32 rounded to multiples of its largest absolute value / 127, in float32 or wider.

    A group that holds NaN or infinity becomes NaN.
    """
    groups = _in_groups(x.to(torch.promote_types(x.dtype, torch.float32)))
    most = groups.abs().amax(-1, keepdim=True)
    numbers = (groups * torch.where(most < TINY, 0, most.reciprocal() * LARGEST)).round()
    return (numbers * (most / LARGEST)).flatten(-2)[..., : x.shape[-1]]


def quantize(
    weight: Float[Tensor, "out_features in_features"], kind: str
) -> tuple[Int8[Tensor, "out_features in_features"], Float[Tensor, "out_features groups"]]:
    """Integers and the bfloat16 scales of their groups, so that numbers x scale is close to the weight.

    int8: numbers from -127 to 127, the scale is the largest absolute value / 127. int4: from -8 to 7, the scale is the
    one of several, around the one that just holds the largest value, whose squared error is least.
    Raises ConfigError for other kinds.
    """
    bits = bits_of(kind)
    out_features, in_features = weight.shape
    numbers = torch.empty(out_features, in_features, dtype=torch.int8, device=weight.device)
    scale = torch.empty(out_features, -(-in_features // GROUP), dtype=SCALE, device=weight.device)
    step = max(1, 2**20 // max(1, in_features))  # rows whose intermediate results stay in a processor's cache
    for start in range(0, out_features, step):
        rows = slice(start, start + step)
        groups = _in_groups(weight[rows].detach().float())
        found = _scale_int8(groups) if bits == 8 else _scale_int4(groups)
        scale[rows] = found[..., 0]
        numbers[rows] = _rounded(groups, found, bits).flatten(-2)[:, :in_features].to(torch.int8)
    return numbers, scale


def bits_of(kind: str) -> int:
    """8 or 4. Raises ConfigError for what is neither "int8" nor "int4"."""
    if kind not in KINDS:
        raise ConfigError(f"weights become {' or '.join(KINDS)}, not {kind!r}.")
    return KINDS[kind]


def dequantize(
    numbers: Int8[Tensor, "out_features in_features"], scale: Float[Tensor, "out_features groups"]
) -> Float[Tensor, "out_features in_features"]:
    """The weight that the numbers stand for, in float32, which holds it exactly."""
    return numbers.float() * scale.float().repeat_interleave(GROUP, 1)[:, : numbers.shape[1]]


def pack(
    numbers: Int8[Tensor, "out_features in_features"], scale: Float[Tensor, "out_features groups"], kind: str
) -> tuple[UInt8[Tensor, "blocks groups bytes"], Float[Tensor, "blocks groups 16"]]:
    """Numbers and scales as kernels read them: one after the other, in blocks of 16 rows.

    Of a block's group come the first 4 numbers of each of the 16 rows, then the next 4 of each, and so on: what one
    instruction multiplies with 4 numbers of x. They are stored without a sign, with 128 (int8) or 8 (int4) added. int4:
    a byte has a number of the group's first half below, that 16 further on above. What is missing at the edges is 0.
    """
    bits = bits_of(kind)
    blocks, groups = -(-numbers.shape[0] // ROWS), scale.shape[1]
    whole = numbers.new_zeros(blocks * ROWS, groups * GROUP)
    whole[: numbers.shape[0], : numbers.shape[1]] = numbers
    stored = (whole.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    stored = stored.view(blocks, ROWS, groups, GROUP // QUAD, QUAD).permute(0, 2, 3, 1, 4)
    if bits == 4:
        lower, upper = stored.chunk(2, 2)
        stored = lower | upper << 4
    scales = scale.new_zeros(blocks * ROWS, groups)
    scales[: scale.shape[0]] = scale
    return stored.flatten(2).contiguous(), scales.view(blocks, ROWS, groups).transpose(1, 2).contiguous()


def unpack(
    weight: UInt8[Tensor, "blocks groups bytes"], scale: Float[Tensor, "blocks groups 16"], shape: tuple[int, int]
) -> tuple[Int8[Tensor, "out_features in_features"], Float[Tensor, "out_features groups"]]:
    """The numbers and scales that were packed. shape: of the numbers."""
    out_features, in_features = shape
    blocks, groups, _ = weight.shape
    bits = 8 * weight.shape[2] // (ROWS * GROUP)
    stored = weight.view(blocks, groups, -1, ROWS, QUAD)
    if bits == 4:
        stored = torch.cat([stored & 15, stored >> 4], 2)
    numbers = (stored.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    numbers = numbers.permute(0, 3, 1, 2, 4).reshape(blocks * ROWS, groups * GROUP)
    scales = scale.transpose(1, 2).reshape(blocks * ROWS, groups)
    return numbers[:out_features, :in_features], scales[:out_features]


def packed_shapes(shape: tuple[int, int], kind: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The shapes of weight and scale that a weight of this shape is packed into."""
    blocks, groups = math.ceil(shape[0] / ROWS), math.ceil(shape[1] / GROUP)
    return (blocks, groups, ROWS * GROUP * bits_of(kind) // 8), (blocks, groups, ROWS)


def _in_groups(x: Tensor) -> Tensor:
    """(..., features) as (..., groups, 32), with zeros at the end."""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))


def _rounded(groups: Tensor, scale: Tensor, bits: int) -> Tensor:
    least, most = (-LARGEST, LARGEST) if bits == 8 else (-8, 7)
    wide = scale.float()
    return torch.where(wide == 0, 0, groups / wide).round_().clamp_(least, most)


def _scale_int8(groups: Tensor) -> Tensor:
    """The next bfloat16 that is not below largest / 127: the largest number is never cut off."""
    wanted = groups.abs().amax(-1, keepdim=True) / LARGEST
    bits = wanted.view(torch.int32)  # bfloat16 is the upper half of a float32
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32).to(SCALE)


def _scale_int4(groups: Tensor) -> Tensor:
    """The best of several: the value of largest size becomes -8, or a bit more or less than that."""
    place = groups.abs().argmax(-1, keepdim=True)
    extreme = groups.gather(-1, place)
    # Errors are compared in a unit near the largest value, a power of two: squares of 1e20 or 1e-30 have no float32.
    unit = -torch.frexp(extreme).exponent.clamp(-100, 100)
    best, least = torch.zeros_like(extreme, dtype=SCALE), torch.full_like(extreme, math.inf)
    for steps in INT4_STEPS:
        scale = (extreme / steps).to(SCALE)
        error = (_rounded(groups, scale, 4) * scale.float() - groups).ldexp_(unit).square_().sum(-1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


# How many steps the value of largest size is away from zero; negative ones make it a negative number.
INT4_STEPS = (-8.0, -7.5, -8.5, -7.0, -9.0, -6.5, 7.0, 7.5, 6.5, 8.0)
