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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prenorm import TransformerLM
from prenorm.checkpoint.layouts import LAYOUTS, OURS
from prenorm.errors import CheckpointError

from .families import FULL, SLIDING

FAMILIES = [model_type for model_type in LAYOUTS if model_type != OURS]
SEQ = 90  # beyond most of the windows, original contexts and lengths that are drawn
ROUNDING = 1e-3  # far above it, which sharp attention makes large here, and far below other maths
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"


@dataclass
class Folder:
    """A folder, as the tools change it one after another."""

    path: Path
    fields: dict[str, Any]
    weights: dict[str, Tensor]
    shards: int = 1
    index: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Config and weights to the disk, in place of what transformers wrote."""
        (self.path / WEIGHTS).unlink()
        (self.path / CONFIG).write_text(json.dumps(self.fields, indent=2))
        if self.shards == 1:
            save_file(self.weights, self.path / WEIGHTS, {"format": "pt"})
            return
        where = {name: f"part.{number % self.shards}.safetensors" for number, name in enumerate(self.weights)}
        for file in set(where.values()):
            of_file = {name: tensor for name, tensor in self.weights.items() if where[name] == file}
            save_file(of_file, self.path / file, {"format": "pt"})
        (self.path / INDEX).write_text(json.dumps({**self.index, "weight_map": where}))


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


# The config


ABSENT = object()
ACTIVATIONS = ["silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "gelu_python_tanh"]
ACTIVATIONS += ["quick_gelu", "relu", "relu2", "sigmoid", "tanh", "mish", "linear", "leaky_relu", "gelu_10", "relu6"]
OWN = {  # GPT-2's names
    **{"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    **{"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"},
}


def draw(model_type: str, chance: random.Random) -> dict[str, Any]:
    """The config.json of a small model: any key of the config class, at any value that a person might give."""
    heads, layers = chance.choice([1, 2, 3, 4, 4]), chance.choice([1, 2, 3, 4])
    head_dim = chance.choice([4, 6, 8, 8, 12, 16])
    sizes: dict[str, Any] = {
        "vocab_size": chance.choice([32, 61, 64]),
        "hidden_size": heads * chance.choice([head_dim, 8, 12]),
        "intermediate_size": chance.choice([20, 33, 40]),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": chance.choice([n for n in (1, 2, 3, 4) if heads % n == 0]),
        "head_dim": head_dim,
        "max_position_embeddings": chance.choice([64, 128, 512]),
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    defaults = AutoConfig.for_model(model_type).to_dict()
    names = {ours: OWN.get(ours, ours) if model_type == "gpt2" else ours for ours in sizes}
    fields = {"model_type": model_type, **{names[key]: value for key, value in sizes.items()}}
    for key in ("num_key_value_heads", "head_dim"):
        if key not in defaults or chance.random() < 0.1:
            fields.pop(key, None)
    for key, default in defaults.items():
        if key not in fields and chance.random() < 0.5:
            fields[key] = _value(key, default, layers, chance)
    fields |= {key: value for key, value in FURTHER.items() if key not in defaults and chance.random() < 0.01}
    if "rope_parameters" in defaults:
        fields.pop("rope_parameters", None)
        if chance.random() < 0.8:
            fields |= _rope(model_type, fields.get("head_dim") or sizes["hidden_size"] // heads, chance)
    return {key: value for key, value in fields.items() if value is not ABSENT}


# What a person may have put into a file of any family, because another family has it.
FURTHER = {
    **{"mlp_bias": True, "attention_bias": True, "head_dim": 8, "sliding_window": 20, "use_sliding_window": True},
    **{"layer_types": [FULL, SLIDING], "partial_rotary_factor": 0.5, "logits_scaling": 3.0, "clip_qkv": 0.1},
    **{"embedding_multiplier": 3.0, "final_logit_softcapping": 1.0, "attn_logit_softcapping": 1.0},
    **{"original_max_position_embeddings": 32, "rope_theta": 77.0, "logit_scale": 0.1, "tie_encoder_decoder": False},
    **{"qk_layernorm": True, "use_qk_norm": True, "rms_norm_eps": 0.5, "layer_norm_eps": 0.5, "is_causal": False},
}


AS_IT_IS = [
    *("id2label", "label2id", "architectures", "transformers_version", "_name_or_path", "dtype", "return_dict"),
    *("is_encoder_decoder", "add_cross_attention"),  # other kinds of model, which both refuse
]


def _value(key: str, default: Any, layers: int, chance: random.Random) -> Any:
    """A value of a key that is not a size."""
    if key in ("hidden_act", "hidden_activation", "activation_function", "summary_activation"):
        return chance.choice(ACTIVATIONS[:13] if chance.random() < 0.9 else ACTIVATIONS)
    if key == "layer_types":
        return chance.choice([ABSENT, [chance.choice([FULL, SLIDING]) for _ in range(layers)]])
    if key == "no_rope_layers":
        return chance.choice([ABSENT, None, [chance.choice([0, 1]) for _ in range(layers)]])
    if key in ("sliding_window", "max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"):
        return chance.choice([None, 1, 2, 3, 20, 50, 4096])
    if key == "no_rope_layer_interval":
        return chance.choice([1, 2, 3, 4])
    if key == "query_pre_attn_scalar":
        return chance.choice([1, 8, 16, 20, 256])
    if key == "original_max_position_embeddings":
        return chance.choice([32, 64, 512])
    if key in AS_IT_IS:
        return ABSENT
    if isinstance(default, bool) or key in ("use_bidirectional_attention", "reorder_and_upcast_attn"):
        return chance.choice([True, False])
    if key in ("clip_qkv", "final_logit_softcapping", "attn_logit_softcapping"):
        return chance.choice([None, 0.3, 2.0, 30.0])
    if key.endswith(("_eps", "_epsilon")):
        return chance.choice([1e-8, 1e-6, 1e-5, 1e-3, 0.1, 1.0])
    if isinstance(default, float) and key.endswith(("drop", "dropout")):
        return chance.choice([0.0, 0.1, 0.5])
    if isinstance(default, float):
        return chance.choice([0.11, 0.3, 1.0, 2.5, 12.0])
    if isinstance(default, int):
        if key.endswith("token_id"):
            return default
        return chance.choice([0, 1, 2, 3])
    return chance.choice([ABSENT, None])


def _rope(model_type: str, head_dim: int, chance: random.Random) -> dict[str, Any]:
    """Settings of rotary embedding, as transformers 5 writes them, or as 4 did."""
    if model_type == "gemma3_text" and chance.random() < 0.7:
        nested = {kind: _scaling(head_dim, 1.0, chance) for kind in (FULL, SLIDING)}
        return {"rope_parameters": {kind: scaling | _theta(chance) for kind, scaling in nested.items()}}
    defaults = (AutoConfig.for_model(model_type).to_dict()["rope_parameters"] or {}).get("partial_rotary_factor")
    shares = [share for share in (0.25, 0.5, 0.75, 1.0) if int(head_dim * share) % 2 == 0 and head_dim * share >= 2]
    share = chance.choice(shares or [1.0]) if defaults is not None else 1.0
    scaling, theta = _scaling(head_dim, share, chance), _theta(chance)
    of_share = {} if defaults is None else {"partial_rotary_factor": share}
    new = {"rope_parameters": {**scaling, **theta, **of_share}}
    names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    beside = {
        names.get(key, key) if model_type == "gpt_neox" else key: value for key, value in (theta | of_share).items()
    }
    if chance.random() < 0.3:
        scaling["type"] = scaling.pop("rope_type")
    old = {**beside, "rope_scaling": None if "default" in scaling.values() and chance.random() < 0.8 else scaling}
    return chance.choice([new, new, old, old, {**new, **beside}, {"rope_scaling": scaling}, {**old, **new}])


def _theta(chance: random.Random) -> dict[str, Any]:
    return chance.choice([{}, {"rope_theta": 10000}, {"rope_theta": 500.0}, {"rope_theta": 1e6}])


def _scaling(head_dim: int, share: float, chance: random.Random) -> dict[str, Any]:
    def some(**optional: Any) -> dict[str, Any]:
        return {key: value for key, value in optional.items() if chance.random() < 0.4}

    original = {"original_max_position_embeddings": chance.choice([16, 32, 64, 256])}
    factor = {"factor": chance.choice([1.0, 2, 2.5, 8.0])}
    kind = chance.choice(["default", "default", "linear", "dynamic", "yarn", "yarn", "llama3", "longrope"])
    pairs = int(head_dim * share) // 2
    scaling: dict[str, dict[str, Any]] = {
        "default": {},
        "linear": factor,
        "dynamic": factor,
        "yarn": {
            **factor,
            **(original if chance.random() < 0.8 else {}),
            **some(attention_factor=chance.choice([0.5, 1.0, 1.7]), beta_fast=chance.choice([4, 16.0, 64])),
            **some(beta_slow=chance.choice([0.5, 1, 2]), truncate=chance.choice([True, False])),
            **some(mscale=chance.choice([0.5, 1.0, 0]), mscale_all_dim=chance.choice([0.4, 1, 0.0])),
        },
        "llama3": {**factor, **original, "low_freq_factor": chance.choice([1, 1.5]), "high_freq_factor": 4.0},
        "longrope": {
            **original,
            "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
            "long_factor": [2 + pair for pair in range(pairs)],
            **some(**factor, attention_factor=1.3),
        },
    }
    return {"rope_type": kind, **scaling[kind]}


# What tools do to a folder


EMBEDDING = r"(embed_tokens|wte|embed_in)\.weight$"


def torch_dtype(folder: Folder, chance: random.Random) -> None:
    """The older name of dtype."""
    folder.fields["torch_dtype"] = folder.fields.pop("dtype", "float32")


def half_in_a_file_that_says_bfloat16(folder: Folder, chance: random.Random) -> None:
    folder.weights = {name: tensor.half() for name, tensor in folder.weights.items()}
    folder.fields["dtype"] = "bfloat16"


def dtypes_mixed(folder: Folder, chance: random.Random) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    folder.weights = {name: tensor.to(chance.choice(dtypes)) for name, tensor in folder.weights.items()}


def shards(folder: Folder, chance: random.Random) -> None:
    """Shards whose names say nothing, and an index with further keys, or with no total."""
    folder.shards = chance.choice([2, 3])
    folder.index = chance.choice([{"metadata": {}}, {"metadata": {"total_size": 1, "total_parameters": 3}}])


def a_head_beside_tied_embeddings(folder: Folder, chance: random.Random) -> None:
    """A head that is stored although it is tied: the same numbers, seldom others."""
    embedding = next((name for name in folder.weights if re.search(EMBEDDING, name)), None)
    if embedding is None or any("lm_head" in name or "embed_out" in name for name in folder.weights):
        return
    head = folder.weights[embedding].clone()
    folder.weights["lm_head.weight"] = head if chance.random() < 0.8 else head + 1


def a_head_instead_of_tied_embeddings(folder: Folder, chance: random.Random) -> None:
    """What safetensors.torch.save_model leaves of two names for one tensor: the first in alphabetical order."""
    if not any("lm_head" in name or "embed_out" in name for name in folder.weights):
        embedding = next(name for name in folder.weights if re.search(EMBEDDING, name))
        folder.weights["lm_head.weight"] = folder.weights.pop(embedding)


def no_head(folder: Folder, chance: random.Random) -> None:
    """A head that is not tied, and is left out."""
    folder.weights = {name: one for name, one in folder.weights.items() if "lm_head" not in name}


def no_prefix(folder: Folder, chance: random.Random) -> None:
    """Names as the model without its head has them."""
    folder.weights = {re.sub(r"^(model|transformer|gpt_neox)\.", "", name): one for name, one in folder.weights.items()}


def rotary_tables(folder: Folder, chance: random.Random) -> None:
    """The tables that older versions stored."""
    for layer in range(2):
        folder.weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def names_of_a_compiled_model(folder: Folder, chance: random.Random) -> None:
    prefix = chance.choice(["_orig_mod.", "module."])
    folder.weights = {prefix + name: one for name, one in folder.weights.items()}


def every_key(folder: Folder, chance: random.Random) -> None:
    """All keys of the class, its defaults written out."""
    folder.fields = {**AutoConfig.from_pretrained(folder.path).to_dict(), **folder.fields}
    folder.fields = json.loads(json.dumps(folder.fields, default=str))


def keys_dropped(folder: Folder, chance: random.Random) -> None:
    """A key or two that are not there."""
    keep = [
        *("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("n_embd", "n_layer", "n_head"),
    ]
    for key in chance.sample([key for key in folder.fields if key not in keep], 2):
        del folder.fields[key]


def keys_null(folder: Folder, chance: random.Random) -> None:
    """A key that says null."""
    folder.fields[chance.choice([key for key in folder.fields if key != "model_type"])] = None


def bookkeeping(folder: Folder, chance: random.Random) -> None:
    """What trainers and converters leave."""
    folder.fields |= {"_name_or_path": "x/y", "unsloth_version": "2024.9", "use_cache": False, "pretraining_tp": 2}
    folder.fields |= {"torch_dtype": "float16", "_attn_implementation_autoset": True, "model_max_length": 99}


def older_rope(folder: Folder, chance: random.Random) -> None:
    """What transformers 5 writes into rope_parameters, as transformers 4 had it."""
    given = folder.fields.pop("rope_parameters", None)
    if given is None or FULL in given:
        folder.fields |= {} if given is None else {"rope_parameters": given}
        return
    for ours, theirs in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
        if ours in given:
            folder.fields[theirs if folder.fields["model_type"] == "gpt_neox" else ours] = given.pop(ours)
    kind = given.pop("rope_type", "default")
    folder.fields["rope_scaling"] = None if kind == "default" else {chance.choice(["type", "rope_type"]): kind, **given}


def another_class(folder: Folder, chance: random.Random) -> None:
    """architectures names a class with another head, or nothing."""
    folder.fields["architectures"] = chance.choice([None, [], ["SomethingForSequenceClassification"]])


def files_beside(folder: Folder, chance: random.Random) -> None:
    """A card, an optimiser's state, settings of generation that are none of the model's."""
    (folder.path / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder.path / "training_args.json").write_text("{}")
    (folder.path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 0.6}))


TOOLS: list[Callable[[Folder, random.Random], None]] = [
    *(torch_dtype, half_in_a_file_that_says_bfloat16, dtypes_mixed, shards, a_head_beside_tied_embeddings, no_head),
    *(
        a_head_instead_of_tied_embeddings,
        no_prefix,
        rotary_tables,
        names_of_a_compiled_model,
        every_key,
        keys_dropped,
        keys_null,
        bookkeeping,
    ),
    *(older_rope, older_rope, another_class, files_beside),
]

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        first, _, last = sys.argv[2].partition("-")
        for seed in range(int(first), int(last or first) + 1):
            for family in FAMILIES if sys.argv[1] == "all" else [sys.argv[1]]:
                print(json.dumps([family, seed, *vars(outcome_of(family, seed, Path(root))).values()]), flush=True)
