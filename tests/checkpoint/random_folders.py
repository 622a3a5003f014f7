"""Folders that transformers' classes and other public tools might have left, drawn by a seed: a small random model of
a family, every key of whose config class may have any value, and what a tool changes afterwards.

python -m tests.checkpoint.random_folders FAMILY SEED: what became of one, as a line of JSON; also all, and 0-19.
"""

import copy
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm import TransformerLM
from prenorm.checkpoint.layouts import LAYOUTS, OURS
from prenorm.errors import CheckpointError

from .random_configs import draw
from .random_tools import CONFIG, TOOLS, WEIGHTS, Folder

FAMILIES = [model_type for model_type in LAYOUTS if model_type != OURS]
SEQ = 90  # beyond most of the windows, original contexts and lengths that are drawn
ROUNDING = 1e-3  # far above it, which sharp attention makes large here, and far below other maths


@dataclass
class Outcome:
    """What became of one folder: "same", "different", "refused", "ours alone" or "no witness", and why."""

    what: str
    why: str
    fields: dict[str, Any]


def outcome_of(model_type: str, seed: int, root: Path) -> Outcome:
    """Open a random folder with both, and compare."""
    chance = random.Random(f"{model_type} {seed}")
    fields = draw(model_type, chance)
    try:
        folder = _saved(fields, seed, root / f"{model_type}-{seed}")
    except Exception as error:  # a class that takes no such config, or cannot run it, is no witness
        return Outcome("no witness", f"{type(error).__name__}: {error}", fields)
    changes = chance.sample(TOOLS, chance.choice((0, 1, 1, 2, 3)))
    for change in changes:
        change(folder, chance)
    folder.write()
    said = {**folder.fields, "tools": [change.__name__ for change in changes]}
    ids = torch.randint(3, 31, (1, SEQ), generator=torch.Generator().manual_seed(seed))
    try:
        ours = TransformerLM.from_pretrained(folder.path, dtype=torch.float32)
    except CheckpointError as error:
        _, trouble = _theirs(folder.path, ids[:, : fields.get("n_positions")])
        return Outcome("no witness" if trouble else "refused", str(error), said)
    ids = ids[:, : ours.config.max_seq_len]
    theirs, trouble = _theirs(folder.path, ids)
    if theirs is None:
        return Outcome("ours alone", trouble, said)
    problems = list(_compared(ours, theirs, ids, root / f"{model_type}-{seed}-again"))
    return Outcome("different" if problems else "same", "; ".join(problems), said)


def _saved(fields: dict[str, Any], seed: int, path: Path) -> Folder:
    """Transformers' folder of a model with random weights. Raises whatever its classes raise."""
    config = AutoConfig.for_model(**copy.deepcopy(fields))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    one_plus = "gemma" in fields["model_type"] or fields["model_type"] == "nemotron"  # norms multiply by 1 + weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scales = re.search(r"(norm|norms\.\d+|ln_\w)\.weight$", name) is not None and not one_plus
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + scales)
        model(torch.tensor([[3, 4, 5]]))
    model.save_pretrained(path)
    return Folder(path, json.loads((path / CONFIG).read_text()), load_file(path / WEIGHTS))


def _theirs(folder: Path, ids: Tensor) -> tuple[tuple[Tensor, Any] | None, str]:
    """Their logits and ids that end a text; or None, and why theirs is no witness."""
    try:
        model, loaded = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
        )
        others = {what: [name for name in names if "inv_freq" not in name] for what, names in loaded.items()}
        if any(others.values()):
            return None, f"it reports {others}"
        with torch.no_grad():
            logits = model.eval()(ids, use_cache=False).logits
        return ((logits, model.generation_config.eos_token_id), "") if logits.isfinite().all() else (None, "not finite")
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def _compared(ours: TransformerLM, theirs: tuple[Tensor, Any], ids: Tensor, again: Path) -> Iterator[str]:
    """Each difference, in a few words."""
    wanted, ends = theirs
    with torch.no_grad():
        if not (far := _far(ours(ids), wanted)) <= ROUNDING:
            yield f"logits differ by {far:.2g}"
        wide = copy.deepcopy(ours).double()
        cache = wide.make_cache(1, ids.shape[1])
        parts = [wide(part, cache=cache) for part in (ids[:, :60], *ids[:, 60:].split(1, dim=1))]
        if not _far(torch.cat(parts, 1), wide(ids)) <= 1e-9:
            yield "a cache changes the logits"
    if {*ours.eos_token_ids} != {*(ends if isinstance(ends, list) else [] if ends is None else [ends])}:
        yield f"a text ends at {ours.eos_token_ids}, theirs at {ends}"
    ours.save_pretrained(again)
    if TransformerLM.from_pretrained(again).config != ours.config:
        yield "saved again, the config is another"
    saved, trouble = _theirs(again, ids)
    if saved is None:
        yield f"saved again, theirs does not open it: {trouble}"
    elif not _far(saved[0], wanted) <= ROUNDING:
        yield "saved again, their logits are others"


def _far(logits: Tensor, wanted: Tensor) -> float:
    """The largest difference over the largest logit."""
    return ((logits - wanted).abs().max() / wanted.abs().max()).item()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        first, _, last = sys.argv[2].partition("-")
        for seed in range(int(first), int(last or first) + 1):
            for family in FAMILIES if sys.argv[1] == "all" else [sys.argv[1]]:
                print(json.dumps([family, seed, *vars(outcome_of(family, seed, Path(root))).values()]), flush=True)
