"""One step of decoding, a token for each of a few rows through a whole model, in one call of C++ (decode_step.cpp).

A step of a small model is shorter than what Python needs to call its layers one after the other.
"""

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..plain import ORDINARY, computes_now
from . import native
from .few_rows import MOST_ROWS
from .one_query import WIDTH

DTYPES = {torch.float32: "decode_step_float32", torch.bfloat16: "decode_step_bfloat16"}
OPTIONAL = (4, 5, 6, 7, 8, 10)  # of a layer's weights: biases, and the norms of queries and keys
# struct DecodeStepCall: layers, tokens, places, embedding, final_norm, head, cos, sin, logits, eleven sizes, eps
pack = struct.Struct("9P11qd").pack
NO_MEMORY, NO_SUCH_TOKEN = 1, 2


class Sizes(NamedTuple):
    """What the tensors of a model do not say by themselves."""

    heads: int
    groups: int  # heads of keys and values
    head_dim: int
    d_ff: int
    interleaved: bool
    eps: float


class Model:
    """The tensors of a model and of its cache, looked at once: `fits` says whether the kernel can work with them.

    layers: of each, norm1, q, k, v, their biases, the norms of queries and keys, o, its bias, norm2, gate, up, down,
    and the keys and values of its cache (rows, groups, slots + 1, head_dim); None for what there is not. The token
    after n others lies in slot n % slots, and sees what is in all slots. cos, sin: (max_seq_len, head_dim / 2),
    float32.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Tensor | None]],
        embedding: Tensor,
        final_norm: Tensor,
        head: Tensor,
        cos: Tensor,
        sin: Tensor,
        sizes: Sizes,
    ) -> None:
        self.layers, self.embedding, self.final_norm, self.head = layers, embedding, final_norm, head
        self.cos, self.sin, self.sizes = cos, sin, sizes
        keys = layers[0][-1]
        self.rows, self.slots = (0, 0) if keys is None or keys.ndim != 4 else (len(keys), keys.shape[2] - 1)
        self.fits = self._fits()
        pointers = [None if tensor is None else tensor.data_ptr() for layer in layers for tensor in layer]
        self.table = (ctypes.c_void_p * len(pointers))(*pointers)

    def _fits(self) -> bool:
        """Whether these are plain tensors of one dtype, of the shapes that their sizes say."""
        d_model, dtype, sizes = len(self.final_norm), self.final_norm.dtype, self.sizes
        expected = (*_shapes(d_model, sizes), *[(self.rows, sizes.groups, self.slots + 1, sizes.head_dim)] * 2)
        half = (len(self.cos), sizes.head_dim // 2)
        return (
            0 < self.rows <= MOST_ROWS
            and sizes.head_dim % WIDTH == 0
            and dtype in _functions()
            and all(
                (tensor is None and i in OPTIONAL) or _is_plain(tensor, dtype, expected[i])
                for layer in self.layers
                for i, tensor in enumerate(layer)
            )
            and _is_plain(self.final_norm, dtype, (d_model,))
            and _is_plain(self.embedding, dtype, (len(self.embedding), d_model))
            and _is_plain(self.head, dtype, self.embedding.shape)
            and _is_plain(self.cos, torch.float32, half)
            and _is_plain(self.sin, torch.float32, half)
        )


def _shapes(d_model: int, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """The shapes of a layer's weights."""
    heads, groups = sizes.heads * sizes.head_dim, sizes.groups * sizes.head_dim
    attention = ((heads, d_model), (groups, d_model), (groups, d_model), (heads,), (groups,), (groups,))
    norms, output = ((sizes.head_dim,), (sizes.head_dim,)), ((d_model, heads), (d_model,))
    feed_forward = ((d_model,), (sizes.d_ff, d_model), (sizes.d_ff, d_model), (d_model, sizes.d_ff))
    return ((d_model,), *attention, *norms, *output, *feed_forward)


def _is_plain(tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return (
        tensor is not None
        and type(tensor) in ORDINARY
        and tensor.dtype == dtype
        and tensor.shape == shape
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()  # a view of complex numbers: what lies in memory is to be negated
    )


def decode_step(head: Tensor, model: Model, tokens: Tensor, places: Tensor) -> Tensor:
    """The logits (rows, vocab) of one token for each row; its keys and values are stored.

    head: that of the model. tokens: (rows,), int64. places: (rows,), how many tokens each row holds, int64.
    Raises IndexError for a token outside the vocabulary; then nothing is stored.
    """
    sizes = model.sizes
    logits = head.new_empty(model.rows, len(head))
    call = pack(
        ctypes.addressof(model.table),
        tokens.data_ptr(),
        places.data_ptr(),
        model.embedding.data_ptr(),
        model.final_norm.data_ptr(),
        head.data_ptr(),
        model.cos.data_ptr(),
        model.sin.data_ptr(),
        logits.data_ptr(),
        len(model.layers),
        model.rows,
        head.shape[1],
        sizes.d_ff,
        len(head),
        sizes.heads,
        sizes.groups,
        sizes.head_dim,
        model.slots,
        sizes.interleaved,
        torch.get_num_threads(),
        sizes.eps,
    )
    wrong = _functions()[head.dtype](call)
    if wrong == NO_SUCH_TOKEN:
        raise IndexError
    if wrong == NO_MEMORY:
        raise MemoryError
    return logits


def suits(head: Tensor, model: Model, tokens: Tensor, places: Tensor) -> bool:
    """Whether it can be computed now, without gradients, and the tensors fit together."""
    return (
        computes_now()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and model.fits
        and _is_plain(tokens, torch.int64, (model.rows,))
        and _is_plain(places, torch.int64, (model.rows,))
    )


@functools.cache
def _functions() -> dict[torch.dtype, Callable[[bytes], int]]:
    """By dtype. Nothing where there is no library."""
    return native.functions(DTYPES)
