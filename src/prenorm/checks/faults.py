"""Every fault that has a name: what it means, and how to fix it.

The correct block is h = x + attention(norm1(x)); y = h + swiglu(norm2(h)), with RMSNorm, and RoPE on queries and keys.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One way in which a block can be wrong, and its fix."""

    meaning: str
    mend: str


CONVENTIONS = frozenset(
    {
        "causal_mask",
        "rope_half_split",
        "rope_interleaved",
        "unexpected_bias",
        "missing_bias",
        "unexpected_qk_norm",
        "missing_qk_norm",
        "rope_wrong_direction",
        "gqa_tiled_instead_of_repeated",
        "leading_dims",
    }
)
"""Faults only under a target that fixes them; otherwise they are reported as conventions.

But keys or values that are tiled alone, without the other, are always a fault.
"""

CRASHES = frozenset({"import_error", "constructor_error", "forward_error", "timeout", "internal_error"})
"""Faults that leave no numbers to judge."""

FAULTS = {
    # The residual lines.
    "post_norm": Fault(
        "the norms are on the residual path, after the sums: y = norm(x + attention(x))",
        "normalise the input of each sublayer and leave the sums alone: x + attention(norm1(x))",
    ),
    "no_norm": Fault("a sublayer reads its input without a norm", "give it norm1(x), or norm2(h) for the feed-forward"),
    "missing_residual_attention": Fault("attention's input is not added to its output", "h = x + attention(norm1(x))"),
    "missing_residual_ffn": Fault("the feed-forward's input is not added to its output", "y = h + ffn(norm2(h))"),
    "residual_from_normed": Fault(
        "the residual adds the normalised input instead of the input itself",
        "keep x, and normalise only what the sublayer reads: x + sublayer(norm(x))",
    ),
    "residual_detached": Fault(
        "the numbers are right, but no gradient flows along the residual", "add x itself, without detach() or .data"
    ),
    "doubled_residual": Fault(
        "the residual is added twice",
        "add it once: either `x += f(x)` or `x = x + f(x)`, not both",
    ),
    "ffn_residual_from_input": Fault(
        "the second residual adds the block's input x instead of h, so attention's output is lost from the stream",
        "y = h + ffn(norm2(h)), with h from the first residual",
    ),
    "parallel_sublayers": Fault(
        "the feed-forward reads the block's input x instead of h = x + attention(norm1(x))",
        "first h = x + attention(norm1(x)), then h + ffn(norm2(h))",
    ),
    "shared_norm": Fault("both sublayers share one norm weight", "create two norms, norm1 and norm2"),
    "norm_created_each_call": Fault(
        "forward creates a new norm in every call, so its weight is neither trained nor saved",
        "create the norms in the constructor, as attributes",
    ),
    # The norm.
    "layer_norm": Fault(
        "the norm subtracts the mean (LayerNorm)",
        "RMSNorm: weight * x / sqrt(mean(x^2) + eps), without subtracting the mean",
    ),
    "norm_without_sqrt": Fault("the norm divides by the mean square instead of its root", "x * rsqrt(mean(x^2) + eps)"),
    "norm_over_sequence": Fault(
        "the norm takes its mean over the tokens of the sequence",
        "take the mean over the last axis only: mean(-1, keepdim=True)",
    ),
    "norm_wrong_mean": Fault(
        "the norm divides by something other than the root mean square",
        "divide by sqrt(mean(x^2) + eps), the mean over d_model",
    ),
    "norm_without_upcast": Fault(
        "in low precision the norm is computed in the input's dtype",
        "x.float() first, and .to(x.dtype) last",
    ),
    "eps_ignored": Fault("the constructor's eps does not reach the norm", "pass eps to both norms"),
    "wrong_eps": Fault("the norm uses a different eps from the one it was given", "add eps unchanged to mean(x^2)"),
    "eps_outside_sqrt": Fault("eps is added to the root instead of under it", "x / sqrt(mean(x^2) + eps)"),
    "norm_weight_init": Fault(
        "a norm's weight is not initialised to one",
        "nn.Parameter(torch.ones(d_model)); zeros only for a norm that multiplies by 1 + weight",
    ),
    "norm_weight_missing": Fault(
        "the norm has no weight, or does not use it", "multiply by a parameter of size d_model, initialised to one"
    ),
    # Rotary positions.
    "missing_rope": Fault("positions have no effect: nothing is rotated", "rotate queries and keys by their positions"),
    "rope_in_block": Fault(
        "the rotation is applied to the residual stream, before the projections",
        "rotate queries and keys of each head, inside attention",
    ),
    "rope_on_values": Fault("values are rotated", "rotate queries and keys only"),
    "rope_on_queries_only": Fault(
        "only queries or only keys are rotated, so scores do not depend on relative position",
        "rotate both, with the same tables",
    ),
    "rope_half_split": Fault(
        "dimensions i and i + head_dim/2 are paired", "pair dimensions 2i and 2i+1 (the paper's order)"
    ),
    "rope_interleaved": Fault(
        "dimensions 2i and 2i+1 are paired", "pair dimensions i and i + head_dim/2 (the order of Hugging Face folders)"
    ),
    "rope_wrong_direction": Fault(
        "vectors are rotated by minus the angle", "(x1 cos - x2 sin, x1 sin + x2 cos) rotates by plus the angle"
    ),
    "rope_over_heads": Fault(
        "the rotation uses the wrong axis: the head's index instead of the position, or d_model instead of head_dim",
        "split into heads first; angles come from the token's position, frequencies from head_dim",
    ),
    "rope_bf16_tables": Fault(
        "cos and sin, or the angles, are rounded to low precision",
        "compute angles, cos and sin in float32 or wider, and do not round them",
    ),
    "rope_theta_ignored": Fault("the constructor's rope_theta has no effect", "pass rope_theta to the tables"),
    "rope_wrong_frequency": Fault(
        "the frequencies are not theta^(-2i/head_dim)", "theta ** -(arange(0, head_dim, 2) / head_dim)"
    ),
    "rope_not_a_rotation": Fault(
        "pairs are not rotated: a sign is wrong, cos and sin are exchanged, or both dimensions have different angles",
        "(x1 cos - x2 sin, x1 sin + x2 cos): exactly one sine term is subtracted, and both dimensions have one angle",
    ),
    "token_positions_ignored": Fault(
        "token_positions have no effect", "look up cos and sin at token_positions instead of 0, 1, 2, ..."
    ),
    "positions_off_by_one": Fault(
        "queries or keys are rotated by a neighbouring position",
        "rotate both by the token's own position, counted from 0",
    ),
    # Attention.
    "causal_mask": Fault("a token attends only to itself and earlier ones", "remove the causal mask"),
    "causal_off_by_one": Fault(
        "the causal mask is off by one", "a token attends to itself and everything before it: key <= query"
    ),
    "mask_inverted": Fault("the mask is inverted", "True means may attend; fill with -inf where it is False"),
    "mask_ignored": Fault("the mask (or causal=True) has no effect", "apply it to the scores, before the softmax"),
    "mask_value_too_small": Fault(
        "masked scores get a finite value, so masked tokens are attended to where other scores are lower",
        "fill with -inf before the softmax",
    ),
    "softmax_wrong_dim": Fault(
        "the softmax does not run over the keys", "softmax(scores, dim=-1), scores (..., query, key)"
    ),
    "softmax_overflows": Fault(
        "large scores make the outputs NaN or infinite",
        "use torch.softmax, or subtract each row's maximum before exp; leave masked scores out of the maximum",
    ),
    "missing_softmax": Fault("attention weights are not the softmax of the scores", "softmax(scores, dim=-1) @ v"),
    "mask_after_softmax": Fault(
        "the mask is applied after the softmax, so weights do not sum to 1",
        "fill the scores with -inf where a query may not attend, then take the softmax",
    ),
    "missing_attention_scale": Fault("scores are not divided by sqrt(head_dim)", "scores / sqrt(head_dim)"),
    "wrong_attention_scale": Fault(
        "scores are scaled by something other than 1/sqrt(head_dim)", "scores / sqrt(head_dim)"
    ),
    "wrong_head_split": Fault(
        "the projections are split into heads along the wrong axes",
        "view(batch, seq, heads, head_dim), then transpose(1, 2)",
    ),
    "heads_not_merged": Fault(
        "the heads' outputs are not concatenated before the output projection",
        "transpose(1, 2), then reshape(batch, seq, heads * head_dim)",
    ),
    "gqa_tiled_instead_of_repeated": Fault(
        "query head h reads key-value head h mod num_kv_heads",
        "it reads h // (num_heads / num_kv_heads): repeat_interleave",
    ),
    "shared_projection": Fault(
        "several of queries, keys and values, or gate and up, are computed with the same weight",
        "give each a projection of its own: q_proj(x), k_proj(x), v_proj(x), gate_proj(x), up_proj(x)",
    ),
    "missing_output_projection": Fault(
        "there is no output projection after the heads are concatenated", "o_proj(concatenated heads)"
    ),
    # The feed-forward, and biases.
    "d_ff_ignored": Fault(
        "the feed-forward does not have the width d_ff that the constructor was given",
        "pass d_ff unchanged: Linear(d_model, d_ff)",
    ),
    "wrong_activation": Fault(
        "the feed-forward is not down(silu(gate(x)) * up(x))", "SwiGLU: down(silu(gate(x)) * up(x))"
    ),
    "gate_after_product": Fault("silu is applied to the product gate * up", "silu(gate(x)) * up(x)"),
    "swapped_gate_up": Fault(
        "going by the names, silu is applied to up (or w3), and not to the gate (or w1)",
        "silu(gate(x)) * up(x)",
    ),
    "missing_bias": Fault("queries, keys and values have no biases", "bias=True on q, k and v, as in the target"),
    "unexpected_qk_norm": Fault("queries and keys are normalised in each head", "remove the norms of q and k"),
    "missing_qk_norm": Fault(
        "queries and keys are not normalised in each head", "an RMSNorm over head_dim for q and one for k, before RoPE"
    ),
    "unexpected_bias": Fault("a projection has a bias", "bias=False"),
    # How it behaves.
    "leading_dims": Fault(
        "(seq, d_model) or two batch dimensions raise an error, or give wrong numbers",
        "write shapes as x.shape[:-2] or (..., seq, d_model)",
    ),
    "modifies_input": Fault("forward changes the caller's x", "x = x + ..., never x += ... on the argument"),
    "not_deterministic": Fault(
        "in eval mode the same input gives different outputs", "draw no random numbers in eval mode"
    ),
    "dropout_in_eval": Fault(
        "dropout is active in eval mode", "nn.Dropout, or F.dropout(x, p, training=self.training)"
    ),
    "wrong_dtype": Fault(
        "in another dtype forward raises, or its output does not have the input's dtype",
        "convert every result back to the input's dtype",
    ),
    "wrong_device_buffer": Fault(
        "a tensor is on another device than the block, after it was moved or built with device=",
        "register tables as buffers, make tensors in forward with device=x.device, and use the constructor's device",
    ),
    "weights_uninitialised": Fault(
        "a weight is left uninitialised: torch.empty, and nothing fills it",
        "initialise it in the constructor, for example nn.init.trunc_normal_(weight, std=(2 / (d_in + d_out)) ** 0.5)",
    ),
    "weight_init_scale": Fault(
        "weights are initialised with a scale that hardly trains",
        "draw them around zero with a standard deviation of some 1/sqrt(d_in), or (2 / (d_in + d_out)) ** 0.5",
    ),
    "backward_error": Fault("backward raises", "see the error"),
    "gradient_missing": Fault(
        "a weight, or x, gets no gradient",
        "no detach(), .data, .item() or no_grad on the way; weights are nn.Parameter",
    ),
    "gradient_wrong": Fault(
        "the output is right and its gradient is not", "check detach() and hand-written backward functions"
    ),
    "sequence_length_fixed": Fault(
        "it runs only for some sequence lengths up to max_seq_len",
        "take the length from x, and slice tables and masks to it",
    ),
    "wrong_at_some_lengths": Fault(
        "the numbers are right for most shapes, but wrong where two sizes happen to be equal",
        "give tables, masks and positions every axis that they are broadcast against, as in cos[None, None]",
    ),
    "batch_of_one": Fault(
        "a batch of one sequence fails, or loses its dimension",
        "squeeze() drops every axis of size 1; pass the one that is meant",
    ),
    "batch_coupled": Fault(
        "a sequence's output depends on the others in its batch", "do not reduce over the batch axis"
    ),
    "retains_state": Fault(
        "an earlier call changes the result of a later one", "do not store anything from a call in the module"
    ),
    # There are no numbers to judge.
    "import_error": Fault("the file cannot be imported", "see the error"),
    "constructor_error": Fault(
        "the constructor raises",
        "see the error; a function make(d_model, num_heads, d_ff) that builds the block can be checked too",
    ),
    "forward_error": Fault("forward raises, or does not return a tensor of x's shape", "see the error"),
    "arguments_unknown": Fault(
        "how to build or call the block could not be inferred, so it was not judged",
        "give the expression that builds it as --build, and the one that calls it as --call",
    ),
    "internal_error": Fault(
        "the checker itself failed; the block is not to blame",
        "please report it with the file and the evidence",
    ),
    "timeout": Fault("the time limit was reached", "look for an endless loop, or raise --timeout"),
    "unreadable": Fault(
        "its parameters could not be matched to the weights of a block, so its numbers were not judged",
        "keep every weight in a parameter of its own, or several stacked in one, not computed from other parameters",
    ),
    "unexplained": Fault(
        "the numbers match no block that the checker knows, correct or faulty",
        "compare the step that the evidence names with the formula",
    ),
}
