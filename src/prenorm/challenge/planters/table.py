"""All planters, by the id of the fault that they plant."""

from collections.abc import Callable, Iterator

from . import attention, feedforward, norm, residual, rope
from .code import Code, Edit

Planter = Callable[[Code], Iterator[list[Edit]]]

PLANTERS: dict[str, tuple[Planter, ...]] = {
    "missing_residual_attention": (residual.missing_residual_attention,),
    "missing_residual_ffn": (residual.missing_residual_ffn,),
    "doubled_residual": (residual.doubled_residual,),
    "residual_detached": (residual.residual_detached,),
    "residual_from_normed": (residual.residual_from_normed,),
    "ffn_residual_from_input": (residual.ffn_residual_from_input,),
    "parallel_sublayers": (residual.parallel_sublayers,),
    "post_norm": (residual.post_norm,),
    "no_norm": (residual.no_norm,),
    "shared_norm": (residual.shared_norm,),
    "modifies_input": (residual.modifies_input,),
    "gradient_missing": (residual.gradient_missing,),
    "norm_without_sqrt": (norm.norm_without_sqrt,),
    "eps_outside_sqrt": (norm.eps_outside_sqrt,),
    "wrong_eps": (norm.wrong_eps,),
    "eps_ignored": (residual.eps_ignored,),
    "norm_wrong_mean": (norm.norm_wrong_mean,),
    "norm_over_sequence": (norm.norm_over_sequence,),
    "layer_norm": (norm.layer_norm,),
    "norm_weight_missing": (norm.norm_weight_missing,),
    "norm_without_upcast": (norm.norm_without_upcast,),
    "missing_rope": (rope.missing_rope,),
    "rope_on_queries_only": (rope.rope_on_queries_only,),
    "rope_on_values": (rope.rope_on_values,),
    "positions_off_by_one": (rope.positions_off_by_one,),
    "rope_wrong_direction": (rope.rope_wrong_direction,),
    "rope_half_split": (rope.rope_half_split,),
    "rope_theta_ignored": (residual.rope_theta_ignored, rope.rope_theta_constant),
    "rope_wrong_frequency": (rope.rope_wrong_frequency,),
    "token_positions_ignored": (residual.token_positions_ignored,),
    "missing_attention_scale": (attention.missing_attention_scale,),
    "wrong_attention_scale": (attention.wrong_attention_scale,),
    "softmax_wrong_dim": (attention.softmax_wrong_dim,),
    "causal_mask": (attention.causal_mask,),
    "wrong_head_split": (attention.wrong_head_split,),
    "heads_not_merged": (attention.heads_not_merged,),
    "missing_output_projection": (attention.missing_output_projection,),
    "unexpected_bias": (attention.unexpected_bias,),
    "wrong_activation": (feedforward.wrong_activation,),
    "gate_after_product": (feedforward.gate_after_product,),
    "swapped_gate_up": (feedforward.swapped_gate_up,),
}


def candidates(code: Code, fault: str) -> Iterator[str]:
    """The file with a fault planted, once for every possible place; each text once."""
    seen = set()
    for planter in PLANTERS[fault]:
        for edits in planter(code):
            text = code.edited(edits)
            if text is not None and text not in seen:
                seen.add(text)
                yield text
