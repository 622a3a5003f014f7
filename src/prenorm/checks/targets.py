"""What a target fixes among the conventions; without one every choice is as good as the other."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The conventions of one family of models. None leaves a choice open."""

    pairing: str | None = None
    direction: int | None = None
    causal: bool | None = None
    biases: frozenset[str] | None = None  # of q k v o gate up down
    qk_norm: bool | None = None
    tiled: bool | None = None
    upcast_whole_norm: bool = False  # the weight is applied before the result is rounded
    needs_positions: bool = False  # forward takes token_positions


NO_BIAS: frozenset[str] = frozenset()

TARGETS = {
    "paper": Target(
        pairing="interleaved",
        direction=1,
        causal=False,
        biases=NO_BIAS,
        qk_norm=False,
        tiled=False,
        upcast_whole_norm=True,
        needs_positions=True,
    ),
    "llama": Target(pairing="half", direction=1, causal=True, biases=NO_BIAS, qk_norm=False, tiled=False),
    "qwen2": Target(pairing="half", direction=1, causal=True, biases=frozenset("qkv"), qk_norm=False, tiled=False),
    "qwen3": Target(pairing="half", direction=1, causal=True, biases=NO_BIAS, qk_norm=True, tiled=False),
    "gpt-neox": Target(pairing="half", direction=1, causal=True),
    "causal": Target(causal=True),
}
"""The names of --target."""
