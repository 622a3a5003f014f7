"""Translates the explanation of a block's numbers into faults and conventions."""

import itertools
import math
from collections.abc import Iterator, Sequence

from ..formula.gate_names import swapped
from ..formula.parameters import GATE, Pieces
from ..formula.sharing import sharing
from ..formula.spec import Number, Spec
from ..formula.variants import ACTIVATIONS, NO_SOFTMAX, UNBRACKETED
from ..search.explanation import Explanation
from ..targets import Target

NORMS = {
    "none": ("no_norm", "reads its input without a norm"),
    "gain": ("no_norm", "multiplies by its weight and normalises nothing"),
    "layer": ("layer_norm", "subtracts the mean"),
    "no_sqrt": ("norm_without_sqrt", "divides by mean(x^2)"),
    "mean(x^2)^2": ("norm_without_sqrt", "divides by mean(x^2)"),
    "multiplied": ("norm_wrong_mean", "multiplies by the root mean square, which should divide"),
    "layer_unbiased": ("layer_norm", "subtracts the mean and divides by the unbiased standard deviation"),
    "layer_no_sqrt": ("norm_without_sqrt", "subtracts the mean and divides by the variance"),
    "layer_unbiased_no_sqrt": ("norm_without_sqrt", "subtracts the mean and divides by the unbiased variance"),
    **{kind: ("norm_wrong_mean", f"is {kind}: parentheses around x - mean are missing") for kind in UNBRACKETED},
    "sequence": ("norm_over_sequence", "takes its mean over the sequence"),
    "all": ("norm_over_sequence", "takes its mean over the sequence and the width"),
    "batch": ("batch_coupled", "takes its mean over the batch"),
}
MASKS = {
    "strict": ("causal_off_by_one", "a token does not attend to itself (key < query)"),
    "next": ("causal_off_by_one", "a token attends to the next one (key <= query + 1)"),
    "future": ("mask_inverted", "a token attends to itself and to what comes after it"),
    "future_strict": ("mask_inverted", "a token attends only to what comes after it"),
}
ORDERS = ("2i and 2i+1", "i and i + head_dim/2")
OF_ROLES = {"q": "queries", "k": "keys", "v": "values"}
FILLED = {"replacing": "get {:g}", "adding": "get {:+g}, which is added", "multiplying": "get 0 by multiplication"}
TURNED = {
    "the other way": "queries and keys are rotated in opposite directions, so scores depend on the sum of positions",
    "both sines with one sign": "both sines have the same sign{alone}, so lengths change",
    "cos and sin exchanged": "cos and sin are exchanged for queries or keys alone",
    "cos and sin exchanged in the first": "cos and sin are exchanged in the first dimension of each pair{alone}",
    "cos and sin exchanged in the second": "cos and sin are exchanged in the second dimension of each pair{alone}",
    "cos in place of sin": "cos stands in place of sin, too{alone}",
    "sin in place of cos": "sin stands in place of cos, too{alone}",
    "the first overwritten": "of each pair the first dimension is overwritten before the second is made of it{alone}",
    "the second overwritten": "of each pair the second dimension is overwritten before the first is made of it{alone}",
}
LOOSE = 1e6
"""If a masked score is filled with less than this (in magnitude), other scores can be lower."""


def filled(fill: float, by: str) -> str:
    """What masked scores get, in words."""
    boolean = ", as where a boolean mask is added (True is 1)" if (abs(fill), by) == (1.0, "adding") else ""
    return FILLED[by].format(fill) + boolean


def faults(explanation: Explanation) -> dict[str, str]:
    """The faults in an explanation that no target allows: id and evidence, of every place that has it."""
    spec, reading = explanation.spec, explanation.reading
    parts = (_residuals(spec), _norms(spec, reading), _rotation(spec), _attention(spec, reading))
    found: dict[str, str] = {}
    for id, evidence in itertools.chain(*parts, _feed_forward(spec, reading)):
        found[id] = f"{found[id]} and {evidence}" if id in found else evidence
    return found


def _residuals(spec: Spec) -> Iterator[tuple[str, str]]:
    if spec.post:
        which = {"1": "norm1 follows", "2": "norm2 follows", "12": "each norm follows"}[spec.post]
        yield "post_norm", f"{which} its {'sublayer, before the sum' if spec.before_sum else 'sum'}"
    for which, kind, part in (("1", spec.residual1, "attention"), ("2", spec.residual2, "feed-forward")):
        if kind == "none":
            yield (
                ("missing_residual_attention" if which == "1" else "missing_residual_ffn"),
                f"nothing is added to the output of {part}",
            )
        elif kind == "normed":
            yield "residual_from_normed", f"the normalised input is added to the output of {part}"
        elif kind == "doubled":
            yield "doubled_residual", f"the residual of {part} is added twice"
    if spec.residual2 == "both":
        yield "doubled_residual", "y = x + h + ffn(norm2(h)): the block's input is added again, although h contains it"
    if spec.residual2 == "attention":
        yield "missing_residual_ffn", "y = attention(norm1(x)) + ffn(norm2(h)), where h belongs in place of attention"
    if spec.residual2 == "input":
        yield "ffn_residual_from_input", "y = x + ffn(norm2(h))"
    if spec.parallel != "no":
        norm = "norm2" if spec.parallel == "own" else "norm1"
        yield "parallel_sublayers", f"the feed-forward reads {norm}(x)"


def _norms(spec: Spec, reading: Pieces) -> Iterator[tuple[str, str]]:
    kinds = {"norm1": spec.norm1, "norm2": spec.norm2}
    for name, kind in kinds.items():
        if kind != "rms":
            id, what = NORMS.get(kind, ("norm_wrong_mean", f"divides by sqrt({kind})"))
            yield id, f"{name} {what}"
    for name, kind, weight in (("norm1", spec.norm1, spec.weight1), ("norm2", spec.norm2, spec.weight2)):
        if kind not in ("none", "gain") and (weight == "none" or name not in reading):
            yield "norm_weight_missing", f"{name} has no weight"
        elif kind not in ("none", "gain") and reading[name].is_one_number:
            yield "norm_weight_missing", f"{name} has one number in place of a weight for each dimension"
    shared = "norm1" in reading and reading["norm1"] == reading.get("norm2")
    if shared and "none" not in (*kinds.values(), spec.weight1, spec.weight2) and spec.parallel == "no":
        yield "shared_norm", "both norms use the same weight"


def _rotation(spec: Spec) -> Iterator[tuple[str, str]]:
    on = spec.rope_on
    if spec.rope_input != "no":
        where = {
            "x": "the stream x itself",
            "normed": "norm1(x)",
            "before_norm": "the input of norm1",
            "qk": "the input of the query and key projections",
        }[spec.rope_input]
        yield "rope_in_block", f"{where} is rotated"
    elif not on and not spec.alibi:
        yield "missing_rope", "positions have no effect"
    if "v" in on:
        yield "rope_on_values", "values are rotated"
    if ("q" in on) != ("k" in on):
        yield "rope_on_queries_only", f"only {'queries' if 'q' in on else 'keys'} are rotated"
    if on == "v":
        yield "missing_rope", "queries and keys are not rotated"
    if not on and spec.rope_input == "no":
        return
    if spec.rope_axis == "width":
        yield "rope_over_heads", "the rotation runs over d_model, before heads are split"
    if spec.frequencies and not _falling(spec.frequencies):
        yield "rope_wrong_frequency", f"the frequencies of the pairs are {_shown(spec.frequencies)}"
    elif spec.frequency != "standard":
        yield "rope_wrong_frequency", f"frequencies are {spec.frequency}"
    if spec.turn != "rotation":
        which = {"q": "queries", "k": "keys"}.get(spec.turn_of, "")
        id = "rope_wrong_direction" if spec.turn == "the other way" else "rope_not_a_rotation"
        yield id, TURNED[spec.turn].format(alone=f" for {which} alone" if which else "")
    if spec.mixed:
        own, other = ORDERS if spec.pairing == "interleaved" else ORDERS[::-1]
        yield "rope_not_a_rotation", f"dimensions {own} are paired, and cos and sin are laid out for pairs of {other}"
    if spec.tables != "exact":
        yield "rope_bf16_tables", f"there are {spec.tables}"
    for what, shift in (("queries", spec.query_shift), ("keys", spec.key_shift)):
        if shift != "no":
            yield "positions_off_by_one", f"{what} are rotated by another position: {shift}"


def _falling(frequencies: Sequence[Number]) -> bool:
    """Whether they start at one and decrease, as for any theta, and for the stretched ones of Llama 3 and YaRN."""
    turns = [float(one) for one in frequencies]
    return abs(turns[0] - 1) < 1e-3 and all(a > b > 0 for a, b in itertools.pairwise(turns))


def _shown(frequencies: Sequence[Number]) -> str:
    return ", ".join(f"{one:.3g}" for one in frequencies)


def _attention(spec: Spec, reading: Pieces) -> Iterator[tuple[str, str]]:
    if spec.mask in MASKS:
        yield MASKS[spec.mask]
    if spec.masked_after:
        yield "mask_after_softmax", "the weights are masked, so their sum is less than 1"
    elif (
        spec.mask != "none"
        and spec.softmax not in ("none", "heads")
        and (spec.fill_by == "multiplying" or abs(spec.fill) < LOOSE)
    ):
        yield "mask_value_too_small", f"masked scores {filled(spec.fill, spec.fill_by)}"
    if spec.softmax in NO_SOFTMAX:
        yield "missing_softmax", f"weights are {'' if spec.softmax == 'none' else spec.softmax + ' of '}the scores"
    elif spec.softmax != "keys":
        yield "softmax_wrong_dim", f"the softmax runs over {spec.softmax}"
    if spec.scaled_after:
        yield "wrong_attention_scale", "the scale is applied to the weights, after the softmax"
    elif spec.split == "never":
        pass  # its heads have other sizes
    elif spec.scale == "1":
        yield "missing_attention_scale", "scores are not scaled"
    elif spec.factor != 1:
        yield "wrong_attention_scale", f"scores are {spec.factor:.4g} times as large as scores / sqrt(head_dim)"
    elif spec.scale != "1/sqrt(head_dim)":
        yield "wrong_attention_scale", f"scores are scaled by {spec.scale}"
    if spec.split != "standard":
        how = {
            "flat": "are reshaped to (heads, seq, head_dim) without a transpose",
            "flat_dims": "are reshaped from (d_model, seq) without a transpose back",
            "never": "are never split: there is one head of size d_model",
        }.get(spec.split, "are split as (head_dim, heads)")
        yield "wrong_head_split", f"{', '.join(spec.split_of)} {how}"
    elif spec.merge != "standard" or ("o" in reading and _repeats(reading["o"].places)):
        yield "heads_not_merged", "heads are joined without a transpose back"
    if together := sharing(reading, "qkv"):
        yield "shared_projection", f"{' and '.join(OF_ROLES[role] for role in together)} have one projection"
    if spec.tiled and spec.tiled_of != "kv":
        what = "keys" if spec.tiled_of == "k" else "values"
        yield "gqa_tiled_instead_of_repeated", f"the {what} alone are tiled: a query reads keys and values of two heads"
    if spec.output == "none" or "o" not in reading:
        yield "missing_output_projection", "attention returns the concatenated heads"


def _repeats(places: tuple[int, ...] | None) -> bool:
    """Whether an output projection is as wide as one head, so that all heads share it."""
    return places is not None and len(set(places)) < len(places)


def _feed_forward(spec: Spec, reading: Pieces) -> Iterator[tuple[str, str]]:
    act = spec.activation if spec.activation != "no" else "(no activation)"
    activated = spec.end2 != "no" and spec.end2 in ACTIVATIONS
    end = f", and its output, after the last projection, goes through {spec.end2}" if activated else ""
    for which, last in (("attention", spec.end1), ("the feed-forward", "no" if activated else spec.end2)):
        if last != "no":  # no fault of the list
            yield "unexplained", f"the output of {which}, after its last projection, goes through {last}"
    if sharing(reading, ("gate", "up")):
        yield "shared_projection", "gate and up have one projection"
    if spec.gating == "product":
        yield "gate_after_product", f"the activation is applied to gate * up: {act}"
    elif spec.gating != "gate" or "gate" not in reading:
        what = {
            "both": f"{act}(gate) * {act}(up)",
            "sum": f"{act}(gate) + up",
            "up squared": "sigmoid(gate) * up * up",
        }.get(spec.gating, f"{act}(up(x)), without a gate")
        yield "wrong_activation", f"the feed-forward is down({what}){end}"
    elif act != "silu":
        yield "wrong_activation", f"the activation is {act}: down({act}(gate) * up){end}"
    elif end:
        yield "wrong_activation", f"the feed-forward is down(silu(gate) * up){end}"
    if spec.gating == "product" and (act != "silu" or end):
        yield "wrong_activation", f"the activation is {act}{end}"
    if spec.gating == "gate" and swapped(reading) != "no":
        gate, up = (reading[name].parameters[0] for name in ("gate", "up"))
        yield "swapped_gate_up", f"silu is applied to {gate}, and {up} multiplies it"


def conventions(explanation: Explanation) -> dict[str, object]:
    """The choices that are not faults without a target."""
    spec, reading = explanation.spec, explanation.reading
    rotated = bool(spec.rope_on) or spec.rope_input != "no"
    pairing = {"interleaved": "interleaved", "half": "half-split"}[spec.pairing]
    said: dict[str, object] = {
        "rope_pairing": pairing if rotated and explanation.pairing_seen else None,
        "rope_direction": spec.direction if rotated else None,
        "causal": spec.mask in ("causal", "strict", "next"),
        "biases": [name for name in ("q", "k", "v", "o", "gate", "up", "down") if name + "_bias" in reading],
        "qk_norm": spec.qk_norm != "none",
        "norm_weight": "1 + weight" if spec.plus_one else "weight",
    }
    if spec.frequencies:
        said["rope_frequencies"] = _shown(spec.frequencies)
    elif spec.theta != Spec().theta:
        said["rope_theta"] = spec.theta
    if spec.rotary_fraction != 1:
        said["rotary_fraction"] = spec.rotary_fraction
    if spec.alibi:
        said["positions"] = "ALiBi: scores fall with distance"
    if spec.softcap != math.inf:
        said["score_softcap"] = spec.softcap
    if spec.branch != 1:
        said["branch_scale"] = spec.branch
    if spec.sandwich:
        said["sandwich_norms"] = True
    if spec.attention_gate != "no" and GATE in reading:
        where = f"{spec.attention_gate} its output projection"
        said["attention_gate"] = f"a sigmoid of the input multiplies attention {where}"
    if spec.layer_scale:
        said["layer_scale"] = "a weight for each dimension multiplies the sublayers' outputs"
    return said


def against_target(explanation: Explanation, target: Target) -> Iterator[tuple[str, str]]:
    """Where the block's conventions differ from the target's: id and evidence."""
    spec, said = explanation.spec, conventions(explanation)
    if target.pairing not in (None, spec.pairing) and said["rope_pairing"] is not None:
        yield ("rope_half_split" if spec.pairing == "half" else "rope_interleaved"), f"pairs are {said['rope_pairing']}"
    if target.direction not in (None, spec.direction) and said["rope_direction"] is not None:
        yield "rope_wrong_direction", "vectors are rotated by minus the angle"
    if target.causal is False and said["causal"]:
        yield "causal_mask", "a token does not attend to later ones"
    if target.causal and spec.mask == "none":
        yield "mask_ignored", "a token attends to later ones, which the target forbids"
    biases = {name for name in ("q", "k", "v", "o", "gate", "up", "down") if name + "_bias" in explanation.reading}
    if target.biases is not None:
        if extra := sorted(biases - target.biases):
            yield "unexpected_bias", f"there is a bias on {', '.join(extra)}"
        if lacking := sorted(target.biases - biases):
            yield "missing_bias", f"there is no bias on {', '.join(lacking)}"
    if target.qk_norm is not None and target.qk_norm != (spec.qk_norm == "before_rope"):
        yield ("missing_qk_norm" if target.qk_norm else "unexpected_qk_norm"), f"qk-norm: {spec.qk_norm}"
