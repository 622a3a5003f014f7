"""Checking tensors against a config, with all differences in one short message."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sized

from ..config import ModelConfig
from ..errors import CheckpointError
from .files import name_text
from .names import CLASSIC, PACKED, SHAPE, Naming, parameters_of
from .stored import stored_shapes

# Every block has four matrices and more. What so few layers lack is listed in no time.
LEAST_IN_ALAYER = 4
FEW_LAYERS = 300

# The dtypes that model weights may have.
FLOATS = ("F32", "BF16", "F16", "F64")
WHOLE = {PACKED: ("I32",), SHAPE: ("I64",)}  # by the end of the name

LAYER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")  # its number in a name

# Rotary tables that old versions of transformers stored with the weights; prenorm recomputes them from the config.
_ROTARY_TABLE = r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

# Ends of names in folders of GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors. Some keep their settings in a file of
# their own, so that config.json does not tell.
_OF_QUANTISED = (
    *(".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map", ".weight_format"),
    *(".weight_scale", ".weight_scale_inv", ".input_scale", ".weight_packed", ".weight_zero_point"),
)


def check_fit(
    config: ModelConfig,
    found: Mapping[str, tuple[str, tuple[int, ...]]],
    *,
    hugging_face: bool,
    source: str,
    kind: str | None = None,
    naming: Naming = CLASSIC,
) -> list[str]:
    """The names of the tensors to use, after checking that `found` (name: dtype, shape) matches the config.

    `hugging_face`: names are Hugging Face's (by `naming`), not prenorm's. `kind`: "int8" or "int4" for quantised
    matrices (None: floats). A tied model may also have an lm_head.weight, to be compared with the embedding.
    Raises CheckpointError listing everything missing, unexpected, of the wrong shape or of the wrong dtype.
    """
    check_layers(config.num_layers, found, source)
    parameters = list(parameters_of(config, kind, naming))
    expected = stored_shapes(parameters) if hugging_face else {one.name: one.shape for one in parameters}
    head = f"{naming.outside['lm_head']}.weight" if hugging_face else "lm_head.weight"
    if config.tie_embeddings and head in found:
        expected[head] = (config.vocab_size, config.d_model)
    ignored = re.compile(f"{_ROTARY_TABLE}|{naming.ignored}")
    used = {name: info for name, info in found.items() if not ignored.fullmatch(name)}
    return check_tensors(expected, used, source)


def check_layers(num_layers: int, found: Sized, source: str) -> None:
    """Raise CheckpointError for more layers than tensors, before a table of a billion layers is built."""
    if num_layers > max(FEW_LAYERS, len(found) // LEAST_IN_ALAYER):
        raise CheckpointError(
            f"{source}: a model of {num_layers} layers needs several tensors per layer, but there are only "
            f"{len(found)}; config and weights are not of the same model."
        )


def check_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[str, tuple[int, ...]]], source: str
) -> list[str]:
    """The names in `found` (name: dtype, shape), after checking that they match `expected` (name: shape).

    Raises CheckpointError listing everything missing, unexpected, of the wrong shape or of the wrong dtype.
    """
    differences = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name_text(name) for name in found if name not in expected],
        "of another shape": [
            f"{name} {shape} instead of {expected[name]}"
            for name, (_, shape) in found.items()
            if name in expected and shape != expected[name]
        ],
        f"of a dtype other than {', '.join(FLOATS)}": [
            f"{name_text(name)} {name_text(dtype)}"
            for name, (dtype, _) in found.items()
            if dtype not in WHOLE.get(name[name.rfind(".") :], FLOATS)
        ],
    }
    if any(differences.values()):
        listed = "; ".join(f"{what}: {_briefly(names)}" for what, names in differences.items() if names)
        quantised = [name for name in differences["unexpected"] if name.endswith(_OF_QUANTISED)]
        hint = f" {quantised[0]} is of a quantised model, and only those of prenorm are supported." if quantised else ""
        raise CheckpointError(
            f"{source}: the tensors must be exactly those of the config, but some are {listed}.{hint}"
        )
    return list(found)


def _briefly(entries: Iterable[str], at_most: int = 50) -> str:
    """Entries that differ in their layer only become one, with the layers that they are of."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        kinds[LAYER.sub("*", entry, count=1)].append(entry)
    listed = [same[0] if len(same) == 1 else f"{kind} ({_layers(same)})" for kind, same in kinds.items()]
    more = [f"and {len(listed) - at_most} more kinds"] if len(listed) > at_most else []
    return ", ".join(listed[:at_most] + more)


def _layers(entries: list[str]) -> str:
    """Layers 0, 3 to 5, 9; how many entries there are where they are of no layer."""
    numbers = {int(match[0]) for entry in entries if (match := LAYER.search(entry))}
    starts = sorted(number for number in numbers if number - 1 not in numbers)
    ends = sorted(number for number in numbers if number + 1 not in numbers)
    runs = [str(start) if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=True)]
    return f"layers {', '.join(runs[:8])}{', ...' if len(runs) > 8 else ''}" if runs else f"{len(entries)} of them"
