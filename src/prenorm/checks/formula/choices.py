"""What published models do on purpose: it has the name of a fault, but counts only under a target of another design."""

import math

from .gate_names import swapped
from .parameters import Pieces
from .sharing import sharing
from .spec import Spec

PUBLISHED = frozenset(
    {"silu", "gelu", "tanh-gelu", "quick-gelu", "relu", "relu squared", "elu", "selu", "mish", "leaky relu", "relu6"}
)
"""Activations that are used on purpose. Others look like a mistake: none at all, or a sigmoid without its factor."""


def is_free(id: str, reading: Pieces) -> bool:
    """Whether no target says what is right, because it hangs on a name that no design has."""
    return id == "swapped_gate_up" and swapped(reading) != "surely"


def is_choice(id: str, spec: Spec, reading: Pieces) -> bool:
    """Whether a published model does what this finding says, in both sublayers.

    LayerNorm in both places (GPT-2; with the unbiased deviation, the Annotated Transformer), a feed-forward without a
    gate or with another activation (GPT-2, Gemma, nanochat), the norms after both sublayers (the 2017 paper, OLMo 2),
    both sublayers side by side (GPT-J, GPT-NeoX), norms without weights (OLMo, nanochat), and any scale of scores with
    normalised queries and keys, or capped (Gemma 2, 3). Two of queries, keys and values of one projection (Reformer).
    """
    match id:
        case "layer_norm":
            kinds = {spec.norm1, spec.norm2} - {"none", "gain"}
            return kinds in ({"layer"}, {"layer_unbiased"})
        case "wrong_activation":
            plain = spec.gating == "plain" or "gate" not in reading
            return spec.end2 == "no" and spec.activation in PUBLISHED and (plain or spec.gating in ("gate", "product"))
        case "post_norm":
            return spec.post == "12" and not spec.pre_too
        case "parallel_sublayers":
            return True
        case "norm_weight_missing":
            norms = [reading.get("norm1"), reading.get("norm2")]
            alike = all(one is None for one in norms) or all(one is not None and one.is_one_number for one in norms)
            return alike and spec.weight1 == spec.weight2
        case "missing_attention_scale" | "wrong_attention_scale":
            return (spec.qk_norm != "none" or bool(spec.softcap != math.inf)) and not spec.scaled_after
        case "shared_projection":
            return len(sharing(reading, "qkv")) == 2 and not sharing(reading, ("gate", "up"))
        case "swapped_gate_up":
            return True  # w1, w2 and w3 are numbered in more than one way
    return False
