"""Rotary position embedding with its table of cosines and sines."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import RopeScaling, check_number, check_size
from ..errors import ConfigError
from ..ops.ranges import check_positions
from ..ops.rope import rope_angles, rope_frequencies, rotate


class RotaryEmbedding(nn.Module):
    """Turns pairs of features by position * frequency; the blocks of one model hold the same object.

    The table is (max_seq_len, head_dim / 2), twice, in float32 whatever the dtype of the model: `.to(bfloat16)`
    leaves it alone, and it is no part of the state dict. A float64 input gets float64 cosines and sines.
    See `prenorm.functional.rope` for the maths.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        head_dim: int,
        max_seq_len: int,
        theta: float = 10000.0,
        interleaved: bool = True,
        scaling: RopeScaling | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_size("head_dim", head_dim)
        check_size("max_seq_len", max_seq_len)
        check_number("theta", theta, above=0.0)
        if head_dim % 2:
            raise ConfigError(
                f"head_dim must be even, because rotary embedding turns pairs, but it is {head_dim}; "
                f"head_dim={head_dim + 1} would do."
            )
        self.head_dim, self.max_seq_len, self.theta = head_dim, max_seq_len, theta
        self.interleaved, self.scaling = interleaved, scaling
        self.register_buffer("cos", None, persistent=False)
        self.register_buffer("sin", None, persistent=False)
        self.place_tables(torch.empty(0, device=device).device)

    def forward(
        self,
        x: Float[Tensor, "*batch seq {self.head_dim}"],
        token_positions: Int[Tensor, "*positions seq"] | None = None,
    ) -> Float[Tensor, "*batch seq {self.head_dim}"]:
        """Rotate x. token_positions broadcast against its leading dims and default to 0 .. seq-1.

        Raises RangeError for positions outside [0, max_seq_len).
        """
        if token_positions is None:
            token_positions = torch.arange(x.shape[-2], device=x.device)
        check_positions(token_positions, self.max_seq_len)
        return rotate(x, *self.cos_sin(token_positions, x.dtype), interleaved=self.interleaved)

    def cos_sin(
        self, token_positions: Int[Tensor, "*positions seq"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "*positions seq half"], Float[Tensor, "*positions seq half"]]:
        """Cosines and sines for (checked) positions, in float32, or in float64 for a float64 input."""
        if dtype == torch.float64:
            frequencies = rope_frequencies(self.head_dim, self.theta, self.scaling)
            angles = rope_angles(token_positions, frequencies.to(token_positions.device))
            return angles.cos(), angles.sin()
        if self.cos.device != token_positions.device:
            self.place_tables(token_positions.device)
        places = token_positions.long()  # a uint8 index would be read as a mask
        return self.cos[places], self.sin[places]

    def place_tables(self, device: torch.device) -> None:
        """Make the tables on `device`: angles in float64 on the CPU, then rounded once to float32."""
        # A table made under inference mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            source = "meta" if device.type == "meta" else "cpu"
            places = torch.arange(self.max_seq_len, device=source)
            frequencies = rope_frequencies(self.head_dim, self.theta, self.scaling).to(source)
            angles = rope_angles(places, frequencies)
            self.cos, self.sin = angles.cos().float().to(device), angles.sin().float().to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        # Follow the module to another device, but never to another dtype, and never by copying uninitialised memory
        # (to_empty): the tables are made anew where the module goes.
        here = "cpu" if self.cos.is_meta else self.cos.device  # nothing can be moved from the meta device
        device = fn(torch.empty(0, device=here)).device
        if device != self.cos.device:
            self.place_tables(device)
        return self

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        scaling = "" if self.scaling is None else f", scaling={self.scaling}"
        return (
            f"head_dim={self.head_dim}, max_seq_len={self.max_seq_len}, theta={self.theta:g}, "
            f"interleaved={self.interleaved}{scaling}"
        )
