"""The role of a part of a learner's code: norm, rope, attention, ffn, split or merge."""

import re

NAMES = {
    "norm": r"norm|rms|(^|_)ln(_|\d|$)",
    "rope": r"rope|rotar|rotat|^_?turn|freq|sinus|phase|^angle|posit(?!ion_?wise)|^pos$",
    "attention": r"attn|attention|attend|(^|_)sa$|multihead|mha|sdpa|^head$",
    "ffn": r"mlp|ffn|ffwd|feed|glu|(^|_)ff(_|$)",
    "split": r"split|heads$",
    "merge": r"join|merge|combine",
}
"""The role of a module, class or function by its name. The first match counts: `attention_norm` is a norm."""
OPERATIONS = {
    "norm": r"rsqrt|(?<!self\.)\b(rms_norm|layer_norm)\(|vector_norm|mean\(.*(sqrt|\*\* -?0\.5|pow\(-?0\.5)"
    r"|(pow\(2\)|square\(|\*\* ?2).*(mean|sum|amax)\(|(mean|sum)\(.*(\*\* ?2|square)",
    "rope": r"\bcos|\bsin|view_as_complex|polar\(",
    "attention": r"softmax|scaled_dot_product|masked_fill",
    "ffn": r"silu\b|sigmoid|[gr]elu\b|SiLU",
}
"""The same by what it computes."""


def role_of(name: str) -> str | None:
    """The role that a name suggests; None if it suggests none."""
    name = name.lower()
    if "drop" in name:
        return None
    return next((role for role, pattern in NAMES.items() if re.search(pattern, name)), None)
