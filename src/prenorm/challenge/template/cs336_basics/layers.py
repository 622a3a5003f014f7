"""A pre-norm Transformer block, to be built by you.

Fill in whatever raises NotImplementedError, from the top down: each class may use those above it. Only torch is needed,
and everything has to be in this file. A part that your block does not use may stay as it is, or go.
Names of attributes and parameters are yours; class names and signatures are not.
"""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T: a matrix product and nothing more, without a bias.

    The weight has the shape (out_features, in_features). x may have any number of leading dimensions.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        raise NotImplementedError


class RMSNorm(nn.Module):
    """Divide each vector by its root mean square, then scale each feature by a learned weight.

    y = weight * x / sqrt(mean(x^2) + eps), the mean over the last dimension only. The weight begins as ones.
    Squares of half-precision numbers overflow early: compute in float32, and give back what came in.
    """

    def __init__(
        self, d_model: int, eps: float = 1e-6, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) to the same shape and dtype."""
        raise NotImplementedError


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), where silu(z) = z * sigmoid(z): three matrices, no bias.

    gate and up lead from d_model to d_ff, down leads back. d_ff is taken as it is given.
    """

    def __init__(
        self, d_model: int, d_ff: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) to (..., d_model)."""
        raise NotImplementedError


class RotaryEmbedding(nn.Module):
    """Turn features 2i and 2i+1 of the token at position p together, by the angle p * theta^(-2i / head_dim).

    (a, b) becomes (a cos - b sin, a sin + b cos). Cosines and sines can be made once, for all max_seq_len positions;
    they are not learned.
    """

    def __init__(
        self, head_dim: int, max_seq_len: int, theta: float = 10000.0, device: torch.device | None = None
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """x (..., seq, head_dim), rotated. token_positions (seq,): where each token stands; None: 0, 1, 2, ..."""
        raise NotImplementedError


class SelfAttention(nn.Module):
    """Every token gathers from all tokens what matters to it: multi-head attention, not causal, with rotary positions.

    Queries, keys and values are three matrix products of x, cut into num_heads pieces of d_model / num_heads features.
    Queries and keys are rotated, values are not. In each head: softmax(q k^T / sqrt(head_dim)) v. The heads' results
    are put side by side again and go through one more matrix product. No biases.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        max_seq_len: int = 2048,
        rope_theta: float = 10000.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """(..., seq, d_model) to the same shape."""
        raise NotImplementedError


class TransformerBlock(nn.Module):
    """Two sublayers on a residual stream, each reading it through a norm of its own.

    h = x + attention(norm1(x))
    y = h + feed_forward(norm2(h))

    d_model: features of a token. num_heads: divides d_model. d_ff: features inside the feed-forward.
    max_seq_len: positions that can occur. rope_theta: base of the rotation's frequencies. eps: that of both norms.
    device, dtype: where the parameters are made, and as what.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        max_seq_len: int = 2048,
        rope_theta: float = 10000.0,
        eps: float = 1e-6,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, x: Tensor, token_positions: Tensor | None = None) -> Tensor:
        """(..., seq, d_model) to the same shape, for any leading dimensions, and without changing x.

        token_positions (seq,) reach the rotation and nothing else.
        """
        raise NotImplementedError
