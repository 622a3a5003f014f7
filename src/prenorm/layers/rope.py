"""Rotary position embedding: the cosines and sines of a layer's frequencies at the positions of a call."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..ops.position_checks import check_broadcast, check_positions
from ..ops.rope import rope_angles, rotate, row_lengths
from ..ops.rope_frequencies import attention_factor, rope_frequencies
from ..rope_scaling import RopeScaling
from ..validation import check_flag, check_number, check_size


class RotaryEmbedding(nn.Module):
    """Rotates pairs of features by position * frequency. See `prenorm.functional.rope` for the maths.

    Angles are computed in float64, only for the positions of a call; cosines and sines are rounded once, to float32,
    and not at all for a float64 input. The frequencies are unaffected by what happens to the model (`.to(bfloat16)`, a
    move to the meta device and back), and are not in the state dict.
    """

    frequencies: Tensor

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
        check_flag("interleaved", interleaved)
        self.head_dim, self.max_seq_len, self.theta = head_dim, max_seq_len, theta
        self.interleaved, self.scaling = interleaved, scaling
        self.attention_factor = attention_factor(scaling)
        self.register_buffer("frequencies", self._made_on(torch.empty(0, device=device).device), persistent=False)

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
        check_broadcast(token_positions, x)
        check_positions(token_positions, self.max_seq_len)
        return rotate(x, *self.cos_sin(token_positions, x.dtype), interleaved=self.interleaved)

    @property
    def by_length(self) -> bool:
        """Whether the frequencies depend on the sequence length."""
        return self.scaling is not None and self.scaling.by_length

    def cos_sin(
        self,
        token_positions: Int[Tensor, "*positions seq"],
        dtype: torch.dtype,
        lengths: Int[Tensor, "*of_tokens seq_or_1"] | None = None,
    ) -> tuple[Float[Tensor, "*positions seq half"], Float[Tensor, "*positions seq half"]]:
        """Cosines and sines for (checked) positions, in float32, or in float64 for a float64 input.

        lengths: the sequence length of each token, for frequencies that need it (`by_length`); default: the row's.
        """
        device, frequencies = token_positions.device, self.frequencies
        if frequencies.device != device and device.type != "mps":
            frequencies = self._made_on(device)
        token_positions = token_positions.to(frequencies.device)
        if self.by_length:
            lengths = row_lengths(token_positions) if lengths is None else lengths.to(frequencies.device)
            frequencies = rope_frequencies(self.head_dim, self.theta, self.scaling, lengths)
        angles = rope_angles(token_positions, frequencies)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return cos.to(device, wide), sin.to(device, wide)

    def _made_on(self, device: torch.device) -> Tensor:
        with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training afterwards
            frequencies = rope_frequencies(self.head_dim, self.theta, self.scaling)
            return frequencies if device.type == "mps" else frequencies.to(device)  # MPS has no float64

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        # Follow the module to another device, but never to another dtype, and never copy uninitialised memory
        # (to_empty): the frequencies are recomputed on the new device.
        here = "cpu" if self.frequencies.is_meta else self.frequencies.device  # nothing can be moved from meta
        device = fn(torch.empty(0, device=here)).device
        if device != self.frequencies.device:
            self.frequencies = self._made_on(device)
        return self

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        scaling = "" if self.scaling is None else f", scaling={self.scaling}"
        return (
            f"head_dim={self.head_dim}, max_seq_len={self.max_seq_len}, theta={self.theta:g}, "
            f"interleaved={self.interleaved}{scaling}"
        )
