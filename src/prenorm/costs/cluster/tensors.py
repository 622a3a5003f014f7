"""The parameters of a block and of what stands around the blocks, and what of them a rank has.

Tensor parallelism splits matrices as distributed/tensor_parallel.py does, FSDP2 every tensor along its first dim, or
along its second where distributed/data_parallel.py says so. Counted is the first rank, which has the fullest shards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

from ...distributed.layout import Layout
from ..architecture import Architecture

Split = Literal["rows", "columns", "none"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A tensor of `rows` rows, a vector having rows of one number, and what tensor parallelism splits of it."""

    rows: int
    columns: int
    split: Split
    is_matrix: bool = True
    is_norm: bool = False

    def held(self, tp: int) -> int:
        """Numbers of a tensor-parallel rank."""
        rows, columns = self._part(tp)
        return rows * columns

    def gathered(self, layout: Layout) -> int:
        """Numbers that FSDP2 gathers for a tensor-parallel rank: shards are padded to one size."""
        return self.sharded(layout) * layout.fsdp

    def sharded(self, layout: Layout) -> int:
        """Numbers of a rank: its shard, padded."""
        rows, columns = self._part(layout.tp)
        if layout.fsdp == 1:
            return rows * columns
        uneven = self.rows % (layout.tp * layout.fsdp)
        if layout.tp > 1 and self.is_matrix and self.split == "rows" and uneven and self.columns % layout.fsdp == 0:
            return rows * (columns // layout.fsdp)
        return -(-rows // layout.fsdp) * columns

    def _part(self, tp: int) -> tuple[int, int]:
        rows, columns = self.rows, self.columns
        return (-(-rows // tp) if self.split == "rows" else rows, columns // tp if self.split == "columns" else columns)


@lru_cache
def block_parameters(model: Architecture, tp: int) -> tuple[Parameter, ...]:
    """The parameters of a block, in the order of its forward pass.

    tp: ranks; where they are more than the key heads, each has keys and values whole.
    """
    kv: Split = "none" if model.num_kv_heads % tp else "rows"
    d, norms = model.d_model, block_norms(model)
    first, others, of_heads = norms[0], norms[1 : model.norms], norms[model.norms :]
    return (
        *first,
        *_linear(model.query_width, d, "rows", bias=model.qkv_bias),
        *_linear(model.kv_width, d, kv, bias=model.qkv_bias),
        *_linear(model.kv_width, d, kv, bias=model.qkv_bias),
        *_linear(d, model.query_width, "columns", bias=model.o_bias),
        *chain(*of_heads, *others),
        *(one for _ in range(1 + model.gated) for one in _linear(model.d_ff, d, "rows", bias=model.ffn_bias)),
        *_linear(d, model.d_ff, "columns", bias=model.ffn_bias),
    )


def block_norms(model: Architecture) -> list[list[Parameter]]:
    """The parameters of each norm of a block: those of the stream, and then those of queries and keys, if it has them.

    The latter are the same for all heads wherever tensor parallelism is possible.
    """
    norms = [[_vector(model.d_model)] * model.norm_vectors] * model.norms
    if model.qk_norm == "per_head":
        return [*norms, *([_vector(model.head_dim)] * heads for heads in (model.num_heads, model.num_kv_heads))]
    sizes = {"": (), "shared": (model.head_dim,) * 2}.get(model.qk_norm, (model.query_width, model.kv_width))
    return [*norms, *([_vector(size)] * model.norm_vectors for size in sizes)]


def first_parameters(model: Architecture) -> list[Parameter]:
    """What stands before the blocks: the embedding, and learned positions."""
    positions = [Parameter(model.max_seq_len, model.d_model, "none")] if model.learned_positions else []
    return [Parameter(model.vocab_size, model.d_model, "rows"), *positions]


def last_parameters(model: Architecture) -> list[Parameter]:
    """What stands after the blocks: the norm, and a head of its own."""
    head = [] if model.tie_embeddings else [Parameter(model.vocab_size, model.d_model, "rows")]
    return [*[_vector(model.d_model)] * model.norm_vectors, *head]


def _linear(rows: int, columns: int, split: Split, *, bias: bool) -> Iterator[Parameter]:
    yield Parameter(rows, columns, split)
    if bias:
        yield Parameter(rows, 1, "rows" if split == "rows" else "none", is_matrix=False)


def _vector(size: int) -> Parameter:
    return Parameter(size, 1, "none", is_matrix=False, is_norm=True)
