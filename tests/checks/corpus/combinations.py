"""Blocks with two faults that sit in different places and do not hide each other."""

import random
from itertools import combinations

from .editing import Made, Style, edited
from .styles import STYLES

PAIRS_PER_STYLE = 6
PLACES = {
    "residual": "post_norm no_norm missing_residual_attention missing_residual_ffn residual_from_normed "
    "doubled_residual ffn_residual_from_input parallel_sublayers shared_norm modifies_input",
    "norm": "layer_norm norm_without_sqrt norm_wrong_mean eps_ignored wrong_eps eps_outside_sqrt norm_weight_missing",
    "rope": "missing_rope rope_in_block rope_on_values rope_on_queries_only rope_theta_ignored rope_wrong_frequency "
    "token_positions_ignored",
    "attention": "causal_off_by_one mask_inverted mask_value_too_small softmax_wrong_dim missing_attention_scale "
    "wrong_attention_scale heads_not_merged missing_output_projection",
    "ffn": "wrong_activation gate_after_product swapped_gate_up",
}
PLACE = {fault: place for place, faults in PLACES.items() for fault in faults.split()}

# The second is not to be seen beside the first.
HIDDEN = {
    ("no_norm", "norm_weight_missing"),  # one weight is not used in either case
    ("no_norm", "eps_ignored"),
    ("no_norm", "wrong_eps"),
    ("no_norm", "eps_outside_sqrt"),
    ("shared_norm", "norm_weight_missing"),
    ("norm_wrong_mean", "eps_ignored"),
}


def _pairs(singles: list[Made], style: Style) -> list[Made]:
    chance = random.Random(style.name)
    candidates = [
        made
        for made in singles
        if made.original == style.right() and made.edits and len(made.example.faults & PLACE.keys()) == 1
    ]
    chance.shuffle(candidates)
    found: list[Made] = []
    used: set[str] = set()
    for first, second in combinations(candidates, 2):
        names = {next(iter(made.example.faults)) for made in (first, second)}
        if len({PLACE[name] for name in names}) < 2 or names & used:
            continue
        if tuple(sorted(names)) in {tuple(sorted(pair)) for pair in HIDDEN}:
            continue
        try:
            edited(style.source, first.edits + second.edits)
        except ValueError:  # both edit the same line
            continue
        used |= names
        found.append(style.both(first, second))
    return found[:PAIRS_PER_STYLE]


FAULTY = [pair for style in STYLES for pair in _pairs(style.FAULTY, style.STYLE)]
