"""Small models for the checkpoint tests, and the transformers classes that witness for them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prenorm import ModelConfig, RopeScaling
from prenorm.checkpoint.manifest import MANIFEST
from prenorm.checkpoint.names import parameters_of

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "d_ff": 40,
    "max_seq_len": 64,
}

# One line for everything that a family can say; the window is shorter than the sequences that the tests run.
IN_A_FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases-tied": ("llama", {"qkv_bias": True, "o_bias": True, "tie_embeddings": True, "eps": 1e-5}),
    "llama-3.1": (
        "llama",
        {"rope_theta": 500000.0, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16), "num_kv_heads": 1},
    ),
    "llama-linear": ("llama", {"rope_scaling": RopeScaling("linear", 2.5), "head_dim": 10}),
    "mistral": ("mistral", {"window": 5}),
    "mistral-odd-width": ("mistral", {"num_heads": 5, "num_kv_heads": 5, "head_dim": 8}),
    "qwen2": ("qwen2", {"qkv_bias": True, "tie_embeddings": True, "rope_theta": 1e6}),
    "qwen2-window": ("qwen2", {"qkv_bias": True, "window": 5, "head_dim": 8}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 16}),
    "qwen3-window-biases": ("qwen3", {"qk_norm": True, "window": 5, "qkv_bias": True, "o_bias": True}),
}

IN_NO_FAMILY: dict[str, dict[str, Any]] = {
    "bias-on-the-output-only": {"o_bias": True},
    "window-and-all-biases": {"window": 5, "qkv_bias": True, "o_bias": True},
    "norms-and-half-the-biases": {"qk_norm": True, "qkv_bias": True},
    "odd-width-and-all-biases": {"num_heads": 5, "num_kv_heads": 5, "head_dim": 8, "qkv_bias": True, "o_bias": True},
}


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**SIZES, **changes})


def tensors_of(config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors for a config, none of them special: norms are not one, biases are not zero."""
    generator = torch.Generator().manual_seed(seed)
    return {
        parameter.name: torch.randn(parameter.shape, generator=generator).to(dtype)
        for parameter in parameters_of(config)
    }


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def without_manifest(folder: Path) -> Path:
    """The folder as another program might have written it, whose files may be changed."""
    (folder / MANIFEST).unlink(missing_ok=True)
    return folder
