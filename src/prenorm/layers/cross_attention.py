"""Multi-head attention from one sequence to another, as in the 2017 paper."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ShapeError
from ..ops.attention import scaled_dot_product_attention
from ..ops.heads import merge_heads, split_heads
from ..validation import attention_sizes, check_dropout, check_flag
from .linear import Linear


class MultiHeadAttention(nn.Module):
    """Queries from one sequence, keys and values from another, attention in each head, and the output projection.

    All four projections have biases. `dropout` drops attention weights, in training. causal=True needs no mask and is
    aligned to the end: the last query attends to every key, the one before it to all but the last, and so on.
    Raises ConfigError for invalid sizes. Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = attention_sizes(d_model, num_heads, None, None, rotary=False)[1]
        check_dropout(dropout)
        check_flag("causal", causal)
        self.d_model, self.num_heads, self.dropout, self.causal = d_model, num_heads, dropout, causal
        self.q_proj = Linear(d_model, d_model, bias=True, device=device, dtype=dtype)
        self.k_proj = Linear(d_model, d_model, bias=True, device=device, dtype=dtype)
        self.v_proj = Linear(d_model, d_model, bias=True, device=device, dtype=dtype)
        self.o_proj = Linear(d_model, d_model, bias=True, device=device, dtype=dtype)

    def forward(
        self,
        query: Float[Tensor, "*batch q_seq {self.d_model}"],
        key: Float[Tensor, "*batch kv_seq {self.d_model}"],
        value: Float[Tensor, "*batch kv_seq {self.d_model}"],
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
    ) -> Float[Tensor, "*batch q_seq {self.d_model}"]:
        """Attention of query to key and value. Lengths may differ, leading dims must not.

        mask: boolean, True = may attend, (q, kv) or the dims of the scores (..., heads or 1, q or 1, kv). A query that
        may attend to nothing gets zeros before the output projection. Raises ShapeError.
        """
        return self.attend(query, *self.project(key, value), mask)

    def project(
        self, key: Float[Tensor, "*batch kv_seq {self.d_model}"], value: Float[Tensor, "*batch kv_seq {self.d_model}"]
    ) -> tuple[Float[Tensor, "*batch heads kv_seq head_dim"], Float[Tensor, "*batch heads kv_seq head_dim"]]:
        """The projected keys and values, which `attend` takes and may reuse."""
        self._check(key, value)
        return split_heads(self.k_proj(key), self.head_dim), split_heads(self.v_proj(value), self.head_dim)

    def attend(
        self,
        query: Float[Tensor, "*batch q_seq {self.d_model}"],
        keys: Float[Tensor, "*batch heads kv_seq head_dim"],
        values: Float[Tensor, "*batch heads kv_seq head_dim"],
        mask: Bool[Tensor, "*mask_batch q_or_1 kv_seq"] | None = None,
    ) -> Float[Tensor, "*batch q_seq {self.d_model}"]:
        """`forward` with keys and values already projected."""
        self._check(query)
        if query.shape[:-2] != keys.shape[:-3]:
            raise ShapeError(
                "query and key must have the same leading dims, but those of the query are "
                f"{tuple(query.shape[:-2])} and those of the key {tuple(keys.shape[:-3])}."
            )
        q, dropout = split_heads(self.q_proj(query), self.head_dim), self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(q, keys, values, mask, causal=self.causal, dropout=dropout)
        return self.o_proj(merge_heads(attended))

    def _check(self, *inputs: Tensor) -> None:
        for x in inputs:
            if x.ndim < 2 or x.shape[-1] != self.d_model or x.shape[:-1] != inputs[0].shape[:-1]:
                shapes = " and ".join(str(tuple(one.shape)) for one in inputs)
                raise ShapeError(
                    f"query, key and value must be (..., seq, d_model) with d_model = {self.d_model}, key and value "
                    f"with the same seq, but got {shapes}."
                )
