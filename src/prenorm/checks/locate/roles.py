"""What a part of a learner's code is for: norm, rope, attention, ffn, split or merge."""

import re

NAMES = {
    "norm": r"norm|rms|(^|_)ln(_|\d|$)",
    "rope": r"rope|rotar|rotat|^_?turn|freq|sinus|phase|^angle|posit(?!ion_?wise)|^pos$",
    "attention": r"attn|attention|attend|(^|_)sa$|multihead|^mha|^head$",
    "ffn": r"mlp|ffn|ffwd|feed|glu|(^|_)ff(_|$)",
    "split": r"split|heads$",
    "merge": r"join|merge|combine",
}
"""What a module, a class or a function is for, by its name. The first that fits: `attention_norm` is a norm."""
OPERATIONS = {
    "norm": r"rsqrt|rms_norm|layer_norm|vector_norm|mean\(.*(sqrt|\*\* -?0\.5|pow\(-?0\.5)"
    r"|(pow\(2\)|square\(|\*\* ?2).*(mean|sum|amax)\(|(mean|sum)\(.*(\*\* ?2|square)",
    "rope": r"\bcos|\bsin|view_as_complex|polar\(",
    "attention": r"softmax|scaled_dot_product|masked_fill",
    "ffn": r"silu\b|sigmoid|[gr]elu\b|SiLU",
}
"""The same by what is computed."""


def role_of(name: str) -> str | None:
    """What a name says; None if nothing."""
    name = name.lower()
    if "drop" in name:
        return None
    return next((role for role, pattern in NAMES.items() if re.search(pattern, name)), None)
