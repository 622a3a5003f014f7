"""What public tools do to a folder that transformers wrote: other spellings, names, dtypes and files."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig

from .families import FULL

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
