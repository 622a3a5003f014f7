"""The targets: which conventions each fixes. Without a target, every convention is accepted."""

import dataclasses
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
    llama_design: bool = False  # RMSNorm with weights, SwiGLU, RoPE, norms before sublayers, one after the other
    leading_dims: bool = False  # any number of batch dimensions
    mask_true_attends: bool = False
    needs_positions: bool = False  # forward takes token_positions


NO_BIAS: frozenset[str] = frozenset()
LLAMA = Target(pairing="half", direction=1, causal=True, biases=NO_BIAS, qk_norm=False, tiled=False, llama_design=True)
ORIGINAL = dataclasses.replace(LLAMA, pairing="interleaved")
"""As in Meta's code; Hugging Face's folders of the same models pair dimensions in the other order."""

TARGETS = {
    "paper": Target(
        pairing="interleaved",
        direction=1,
        causal=False,
        biases=NO_BIAS,
        qk_norm=False,
        tiled=False,
        llama_design=True,
        leading_dims=True,
        mask_true_attends=True,
        needs_positions=True,
    ),
    "cs336": ORIGINAL,
    "llama-original": ORIGINAL,
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, biases=frozenset("qkv")),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True),
    "gpt-neox": Target(pairing="half", direction=1, causal=True),
    "causal": Target(causal=True),
}
"""The names of --target."""
