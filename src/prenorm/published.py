"""Published models: their sizes, their published parameter counts, and the sources of both."""

from typing import Any, NamedTuple

from .errors import ConfigError
from .validation import did_you_mean


class Published(NamedTuple):
    """One model. `fields` are those of ModelConfig, or of costs.architecture.Architecture where `foreign` says why."""

    fields: dict[str, Any]
    parameters: int
    source: str
    foreign: str = ""
    """What it has that TransformerLM does not have. Such a model has a cost sheet, and cannot be built."""


def _llama_2(
    d_model: int, num_layers: int, num_heads: int, d_ff: int, num_kv_heads: int | None = None
) -> dict[str, Any]:
    return {
        **{"vocab_size": 32000, "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads, "d_ff": d_ff},
        **{"num_kv_heads": num_kv_heads or num_heads, "max_seq_len": 4096, "eps": 1e-5},
    }


def _llama_3(d_model: int, num_layers: int, num_heads: int, d_ff: int) -> dict[str, Any]:
    return {
        **{"vocab_size": 128256, "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads, "d_ff": d_ff},
        **{"num_kv_heads": 8, "max_seq_len": 8192, "rope_theta": 500000.0, "eps": 1e-5},
    }


def _mistral(vocab_size: int, rope_theta: float, window: int | None) -> dict[str, Any]:
    return {
        **{"vocab_size": vocab_size, "d_model": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8},
        **{"d_ff": 14336, "max_seq_len": 32768, "rope_theta": rope_theta, "eps": 1e-5, "window": window},
    }


def _qwen3(d_model: int, num_layers: int, num_heads: int, d_ff: int, *, tied: bool = False) -> dict[str, Any]:
    return {
        **{"vocab_size": 151936, "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads, "d_ff": d_ff},
        **{"num_kv_heads": 8, "head_dim": 128, "max_seq_len": 40960, "rope_theta": 1e6, "eps": 1e-6},
        **{"qk_norm": True, "tie_embeddings": tied},
    }


def _gpt_sizes(d_model: int, num_layers: int, num_heads: int, max_seq_len: int) -> dict[str, Any]:
    return {
        **{"vocab_size": 50257, "d_model": d_model, "num_layers": num_layers, "num_heads": num_heads},
        **{"num_kv_heads": num_heads, "head_dim": d_model // num_heads, "d_ff": 4 * d_model},
        **{"max_seq_len": max_seq_len, "tie_embeddings": True, "qkv_bias": True, "o_bias": True},
    }


def _gpt_2(d_model: int, num_layers: int, num_heads: int) -> dict[str, Any]:
    block = {"norm": "layer", "activation": "gelu_tanh", "ffn_bias": True, "gated": False, "learned_positions": True}
    return {**_gpt_sizes(d_model, num_layers, num_heads, 1024), "eps": 1e-5, "family": block}


def _gpt_neox(
    d_model: int, num_layers: int, num_heads: int, vocab_size: int = 50304, activation: str = "gelu"
) -> dict[str, Any]:
    block = {"residual": "parallel_two_norms", "norm": "layer", "activation": activation, "ffn_bias": True}
    return {
        **_gpt_sizes(d_model, num_layers, num_heads, 2048),
        **{"vocab_size": vocab_size, "tie_embeddings": False, "eps": 1e-5},
        "family": {**block, "gated": False, "rotary_dim": d_model // num_heads // 4},
    }


_LLAMA_3_1_SCALING = {
    **{"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    **{"original_max_seq_len": 8192},
}
_GPT_3 = {
    **_gpt_sizes(12288, 96, 96, 2048),
    **{"ffn_bias": True, "gated": False, "activation": "gelu", "learned_positions": True},
    **{"norm": "layer", "norm_vectors": 2},
}
_GPT_3_LAYERS = "layers of banded sparse attention, in turn with dense ones"
_PALM_START = "embeddings that start at unit size, under logits divided by the root of the width"
_PALM = {
    **{"vocab_size": 256000, "d_model": 18432, "num_layers": 118, "num_heads": 48, "num_kv_heads": 1},
    **{"head_dim": 256, "d_ff": 73728, "max_seq_len": 2048, "tie_embeddings": True},
    # Its norms have weights, but the published 540.35 billion are those of the matrices alone.
    **{"parallel": True, "norm": "layer", "norms": 1, "norm_vectors": 0},
}
_GPT_2 = "Radford et al. 2019, and config.json of openai-community/"
_PYTHIA = "Biderman et al. 2023, arXiv:2304.01373, and config.json of EleutherAI/pythia-"
_LLAMA_2 = "Touvron et al. 2023, arXiv:2307.09288, and config.json of meta-llama/Llama-2-"
_LLAMA_3 = "Grattafiori et al. 2024, arXiv:2407.21783, and config.json of meta-llama/Meta-Llama-3"
_QWEN_3 = "Yang et al. 2025, arXiv:2505.09388, and config.json of Qwen/Qwen3-"

PUBLISHED: dict[str, Published] = {
    "gpt2": Published(_gpt_2(768, 12, 12), 124_439_808, f"{_GPT_2}gpt2"),
    "gpt2-xl": Published(_gpt_2(1600, 48, 25), 1_557_611_200, f"{_GPT_2}gpt2-xl"),
    "gpt3-175b": Published(_GPT_3, 174_604_259_328, "Brown et al. 2020, arXiv:2005.14165, table 2.1", _GPT_3_LAYERS),
    "llama-2-7b": Published(_llama_2(4096, 32, 32, 11008), 6_738_415_616, f"{_LLAMA_2}7b-hf"),
    "llama-2-13b": Published(_llama_2(5120, 40, 40, 13824), 13_015_864_320, f"{_LLAMA_2}13b-hf"),
    "llama-2-70b": Published(_llama_2(8192, 80, 64, 28672, 8), 68_976_648_192, f"{_LLAMA_2}70b-hf"),
    "llama-3-8b": Published(_llama_3(4096, 32, 32, 14336), 8_030_261_248, f"{_LLAMA_3}-8B"),
    "llama-3-70b": Published(_llama_3(8192, 80, 64, 28672), 70_553_706_496, f"{_LLAMA_3}-70B"),
    "llama-3.1-405b": Published(
        _llama_3(16384, 126, 128, 53248) | {"max_seq_len": 131072, "rope_scaling": _LLAMA_3_1_SCALING},
        405_853_388_800,
        f"{_LLAMA_3}.1-405B",
    ),
    "mistral-7b": Published(
        _mistral(32000, 10000.0, 4096),
        7_241_732_096,
        "Jiang et al. 2023, arXiv:2310.06825, and config.json of mistralai/Mistral-7B-v0.1",
    ),
    "mistral-7b-v0.3": Published(_mistral(32768, 1e6, None), 7_248_023_552, "config.json of mistralai/Mistral-7B-v0.3"),
    "qwen3-0.6b": Published(_qwen3(1024, 28, 16, 3072, tied=True), 596_049_920, f"{_QWEN_3}0.6B"),
    "qwen3-1.7b": Published(_qwen3(2048, 28, 16, 6144, tied=True), 1_720_574_976, f"{_QWEN_3}1.7B"),
    "qwen3-4b": Published(_qwen3(2560, 36, 32, 9728, tied=True), 4_022_468_096, f"{_QWEN_3}4B"),
    "qwen3-8b": Published(_qwen3(4096, 36, 32, 12288), 8_190_735_360, f"{_QWEN_3}8B"),
    "qwen3-14b": Published(_qwen3(5120, 40, 40, 17408), 14_768_307_200, f"{_QWEN_3}14B"),
    "qwen3-32b": Published(_qwen3(5120, 64, 64, 25600), 32_762_123_264, f"{_QWEN_3}32B"),
    "pythia-160m": Published(_gpt_neox(768, 12, 12), 162_322_944, f"{_PYTHIA}160m"),
    "pythia-1.4b": Published(_gpt_neox(2048, 24, 16), 1_414_647_808, f"{_PYTHIA}1.4b"),
    "gpt-neox-20b": Published(
        _gpt_neox(6144, 44, 64, 50432, "gelu_tanh"),
        20_554_567_680,
        "Black et al. 2022, arXiv:2204.06745, and config.json of EleutherAI/gpt-neox-20b",
    ),
    "palm-540b": Published(
        _PALM, 540_354_281_472, "Chowdhery et al. 2022, arXiv:2204.02311, section 2 and table 1", _PALM_START
    ),
}
BUILDABLE = tuple(name for name, model in PUBLISHED.items() if not model.foreign)


def published_fields(name: object) -> dict[str, Any]:
    """The ModelConfig fields of a published model. Raises ConfigError for unknown names and models with only costs."""
    found = PUBLISHED.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        names = ", ".join(BUILDABLE)
        raise ConfigError(f"a model preset must be one of {names}, not {name!r}.{did_you_mean(name, PUBLISHED)}")
    if found.foreign:
        raise ConfigError(
            f"{name} has only a cost sheet (prenorm cost {name}), because it has {found.foreign}, which TransformerLM "
            f"does not support. Models that can be built: {', '.join(BUILDABLE)}."
        )
    return found.fields
