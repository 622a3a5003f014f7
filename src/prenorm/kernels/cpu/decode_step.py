"""One step of decoding, the next tokens of a few rows through a whole model, in one call of C++ (decode_step.h).

A step of a small model is shorter than what Python needs to call its layers one after the other.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...private_torch import computes_now
from ..kernel import Kernel
from ..plain import ORDINARY
from ..quantized_layout import GROUP, ROWS, SCALE
from . import native
from .calls import Function
from .decode_attention import WIDTH
from .header import packer
from .quantized_linear import BITS
from .skinny_linear import MAX_ROWS

DTYPES = {torch.float32: "decode_step_float32", torch.bfloat16: "decode_step_bfloat16"}
DECODE_STEP = Function(
    "DecodeStepCall",
    DTYPES,
    "layers tokens lengths embedding final_norm head_numbers head_scales cos sin logits num_layers rows seq d_model "
    "d_ff vocab num_heads num_kv_heads head_dim slots interleaved bits head_bits angles_stride eps",
)
pack_layer = packer("LayerPointers")
# `make bench-decode`: eight tokens at a time are faster than all of them layer by layer up to here.
MAX_TOKENS = 24


class Sizes(NamedTuple):
    """What the tensors' shapes do not tell."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    interleaved: bool
    eps: float


class Matrix(NamedTuple):
    """A weight (out, in) in the model's dtype; or in integers with their scales, see quantized_linear.py."""

    numbers: Tensor
    scales: Tensor | None = None

    @property
    def bits(self) -> int:
        """8 or 4 for integers, else 0."""
        return 0 if self.scales is None else BITS.get(self.numbers.shape[-1], 0)

    def has(self, shape: tuple[int, int], dtype: torch.dtype, bits: int) -> bool:
        """Whether it is a plain matrix of this shape, of this dtype or these bits."""
        if self.scales is None:
            return bits == 0 and _is_plain(self.numbers, dtype, shape)
        blocks, groups = -(-shape[0] // ROWS), -(-shape[1] // GROUP)
        return (
            bits != 0
            and _is_plain(self.numbers, torch.uint8, (blocks, groups, ROWS * GROUP * bits // 8))
            and _is_plain(self.scales, SCALE, (blocks, groups, ROWS))
        )


class Layer(NamedTuple):
    """The tensors of a block, and the keys and values of its cache (rows, kv_heads, slots + 1, head_dim).

    The token after n others lies in slot n % slots, and sees what is in all slots.
    """

    matrices: tuple[Matrix, ...]  # q, k, v, o, gate, up, down
    norms: tuple[Tensor, Tensor]
    biases: tuple[Tensor | None, ...]  # of q, k, v, o
    head_norms: tuple[Tensor | None, Tensor | None]  # of queries and keys
    cache: tuple[Tensor, Tensor]

    def tensors(self) -> dict[str, Tensor | None]:
        """All of them, by their names in struct LayerPointers."""
        matrices = zip(("q", "k", "v", "o", "gate", "up", "down"), self.matrices, strict=True)
        q_bias, k_bias, v_bias, o_bias = self.biases
        return {
            **{f"{name}_{part}": tensor for name, one in matrices for part, tensor in one._asdict().items()},
            **{"norm1": self.norms[0], "norm2": self.norms[1]},
            **{"q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias, "o_bias": o_bias},
            **{"q_norm": self.head_norms[0], "k_norm": self.head_norms[1]},
            **{"keys": self.cache[0], "values": self.cache[1]},
        }


class Model:
    """The tensors of a model and of its cache, checked once: `fits` says whether the kernel supports them."""

    def __init__(
        self,
        layers: Sequence[Layer],
        embedding: Tensor,
        final_norm: Tensor,
        head: Matrix,
        sizes: Sizes,
    ) -> None:
        self.layers, self.embedding, self.final_norm, self.head = layers, embedding, final_norm, head
        self.sizes = sizes
        self.bits = layers[0].matrices[0].bits
        keys = layers[0].cache[0]
        self.rows, self.slots = (len(keys), keys.shape[2] - 1) if keys.ndim == 4 else (0, 0)
        self.fits = self._fits()
        parts = [layer.tensors() for layer in layers]
        held = (*(tensor for part in parts for tensor in part.values()), embedding, final_norm, *head)
        # So that the memory outlives a parameter that another thread replaces.
        self.storages = [tensor.untyped_storage() for tensor in held if tensor is not None]
        pointers = [{name: 0 if x is None else x.data_ptr() for name, x in part.items()} for part in parts]
        self.table = ctypes.create_string_buffer(b"".join(pack_layer(**part) for part in pointers))

    def _fits(self) -> bool:
        """Whether these are plain tensors of one dtype, of the shapes that their sizes say."""
        d_model, dtype, sizes = len(self.final_norm), self.final_norm.dtype, self.sizes
        return (
            0 < self.rows <= MAX_ROWS
            and sizes.head_dim % WIDTH == 0
            and dtype in DECODE_STEP.available()
            and all(self._has_shapes(layer) for layer in self.layers)
            and _is_plain(self.final_norm, dtype, (d_model,))
            and _is_plain(self.embedding, dtype, (len(self.embedding), d_model))
            and self.head.has((len(self.embedding), d_model), dtype, self.head.bits)
        )

    def _has_shapes(self, layer: Layer) -> bool:
        d_model, dtype, sizes = len(self.final_norm), self.final_norm.dtype, self.sizes
        width, kv_width = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        projections = ((width, d_model), (kv_width, d_model), (kv_width, d_model), (d_model, width))
        d_ff = sizes.d_ff
        matrices = (*projections, (d_ff, d_model), (d_ff, d_model), (d_model, d_ff))
        vectors = (*layer.norms, *layer.biases, *layer.head_norms)
        widths = (d_model, d_model, *(rows for rows, _ in projections), sizes.head_dim, sizes.head_dim)
        cache = (self.rows, sizes.num_kv_heads, self.slots + 1, sizes.head_dim)
        return (
            all(matrix.has(shape, dtype, self.bits) for matrix, shape in zip(layer.matrices, matrices, strict=True))
            and all(v is None or _is_plain(v, dtype, (width,)) for v, width in zip(vectors, widths, strict=True))
            and all(_is_plain(tensor, dtype, cache) for tensor in layer.cache)
        )


def _is_plain(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return (
        type(tensor) in ORDINARY
        and tensor.dtype == dtype
        and tensor.shape == shape
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()  # a view of complex numbers whose memory must be negated
    )


def decode_step(x: Tensor, model: Model, tokens: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The logits (rows, vocab) after the next tokens of each row, whose keys and values are stored.

    x: the embedding matrix. tokens: (rows, seq), int64; with several per row, all must fit into slots that are still
    free. lengths: (rows,), int64, how many tokens each row of the cache holds. cos, sin: float32, of these tokens,
    (seq, head_dim / 2) for all rows or (rows, seq, head_dim / 2).
    Raises IndexError for a token outside the vocabulary; then nothing is stored.
    """
    sizes = model.sizes
    logits = x.new_empty(model.rows, len(x))
    DECODE_STEP.call(
        x.dtype,
        layers=ctypes.addressof(model.table),
        tokens=tokens.data_ptr(),
        lengths=lengths.data_ptr(),
        embedding=model.embedding.data_ptr(),
        final_norm=model.final_norm.data_ptr(),
        head_numbers=model.head.numbers.data_ptr(),
        head_scales=0 if model.head.scales is None else model.head.scales.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        logits=logits.data_ptr(),
        num_layers=len(model.layers),
        rows=tokens.shape[0],
        seq=tokens.shape[1],
        d_model=x.shape[1],
        d_ff=sizes.d_ff,
        vocab=len(x),
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        slots=model.slots,
        interleaved=sizes.interleaved,
        bits=model.bits,
        head_bits=model.head.bits,
        angles_stride=cos.stride(0) if cos.ndim == 3 else 0,
        eps=sizes.eps,
    )
    return logits


def supports(x: Tensor, model: Model, tokens: Tensor, lengths: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether this is eager mode without gradients, and the tensors' shapes agree."""
    angles = (*tokens.shape[2 - (cos.ndim - 1) :], model.sizes.head_dim // 2)
    return (
        computes_now()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and model.fits
        and 0 < tokens.numel() <= MAX_TOKENS
        and _is_plain(tokens, torch.int64, (model.rows, tokens.shape[-1]))
        and _is_plain(lengths, torch.int64, (model.rows,))
        and _is_plain(cos, torch.float32, angles)
        and _is_plain(sin, torch.float32, angles)
    )


KERNEL = Kernel(
    op="decode_step",
    devices=("cpu",),
    dtypes=tuple(DTYPES),
    run=decode_step,
    supports=supports,
    unavailable_reason=native.unavailable_reason,
    in_library=True,
    gain="a token for up to 8 rows, or 24 in all, through a whole model in one call of C++ (make bench-decode)",
    fallback="the layers one after the other, each with its kernels: 1.2 to 1.6 times as long at 110M parameters",
)
