"""The cost sheet: every figure of a model by name, as printed by `prenorm cost --json`.

docs/what-does-a-model-cost.md explains each.
"""

from typing import Any

from ..errors import ConfigError
from ..validation import check_number, check_size
from . import flops
from .activations import KERNELS, SIZES, Dtype, Kernels, saved
from .architecture import Architecture
from .devices import Device
from .fits import fits
from .memory import OPTIMIZERS, decoding, kv_cache, optimizer_state, peak
from .parameters import block_matrices, parameters, total

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, arXiv:2203.15556


def cost_sheet(
    model: Architecture,
    *,
    batch: int = 1,
    context: int,
    dtype: Dtype = "bfloat16",
    device: Device | None = None,
    tokens: int | None = None,
    utilisation: float = 1.0,
    memory: int | None = None,
) -> dict[str, Any]:
    """All costs of a model. Counts are exact; seconds assume the device runs at the given fraction of its peak figures.

    "not_counted" names the parts of a family (fields of its record) for which nobody has counted what training saves:
    where there are some, saved_bytes, peak_bytes and what training fits into are None.
    tokens: to train on; default: 20 a parameter. memory: bytes that batch and context are to fit into.
    Raises ConfigError.
    """
    check_size("batch", batch)
    check_context(context, model)
    if dtype not in SIZES:
        raise ConfigError(f"dtype must be one of {', '.join(SIZES)}, not {dtype!r}.")
    check_utilisation(utilisation)
    tokens = TOKENS_PER_PARAMETER * total(model) if tokens is None else tokens
    check_size("tokens", tokens)
    return {
        "settings": {"batch": batch, "context": context, "dtype": dtype},
        "parameters": {
            "total": total(model),
            **parameters(model),
            "matrices_of_blocks": block_matrices(model),
        },
        "flops": _flops(model, batch, context),
        "kv_cache_bytes": kv_cache(model, batch, context, dtype),
        "decoding_bytes": decoding(model, batch, context, dtype),
        "saved_bytes": {kernels: _saved(model, batch, context, dtype, kernels) for kernels in KERNELS},
        "optimizer_bytes": {optimizer: optimizer_state(model, optimizer) for optimizer in OPTIMIZERS},
        "peak_bytes": _peak(model, batch, context, dtype, watched=False),
        "peak_bytes_watched": _peak(model, batch, context, dtype, watched=True),
        "not_counted": list(model.uncounted),
        "hardware": _hardware(model, batch, context, dtype, device, tokens, utilisation) if device else None,
        "fits": fits(model, memory, batch, context, dtype) if memory is not None else None,
    }


def check_context(context: int, model: Architecture) -> None:
    """Raise ConfigError unless the model can take rows of so many tokens."""
    check_size("context", context)
    if context > model.max_seq_len:
        raise ConfigError(
            f"context must be at most the model's max_seq_len, but {context} is greater than {model.max_seq_len}; "
            f"--context {model.max_seq_len} would do."
        )


def check_utilisation(utilisation: float) -> None:
    """Raise ConfigError unless it is a share of a rate that can be reached."""
    check_number("utilisation", utilisation, at_least=0.001)
    if utilisation > 1:
        raise ConfigError(f"utilisation must be at most 1, the full rate, not {utilisation!r}.")


def _flops(model: Architecture, batch: int, context: int) -> dict[str, Any]:
    tokens = batch * context
    both = {"full_square": False, "causal": True}
    return {
        **{
            name: {
                "forward": _summed(flops.forward(model, batch, context, causal=causal)),
                "backward": _summed(flops.backward(model, batch, context, causal=causal)),
                "recomputation": _summed(flops.recomputation(model, batch, context, 1, causal=causal)),
                "decoded_token": _summed(flops.decoded_token(model, batch, context, causal=causal)),
            }
            for name, causal in both.items()
        },
        "training_step_6n": flops.six_n(model, tokens),
        "training_step_6n_and_attention": flops.six_n_and_attention(model, tokens, context),
    }


def _saved(
    model: Architecture, batch: int, context: int, dtype: Dtype, kernels: Kernels
) -> dict[str, dict[str, int]] | None:
    if model.uncounted or (kernels != "pytorch" and not model.is_ours):
        return None  # which has no account, or no kernels of ours
    return {
        name: _summed(saved(model, batch, context, dtype=dtype, kernels=kernels, every=every))
        for name, every in (("plain", 0), ("checkpointed", 1))
    }


def _peak(
    model: Architecture, batch: int, context: int, dtype: Dtype, *, watched: bool
) -> dict[str, dict[str, int]] | None:
    if model.uncounted:
        return None
    return {
        optimizer: {
            name: peak(model, batch, context, dtype=dtype, optimizer=optimizer, every=every, watched=watched)
            for name, every in (("plain", 0), ("checkpointed", 1))
        }
        for optimizer in OPTIMIZERS
    }


def _hardware(
    model: Architecture, batch: int, context: int, dtype: Dtype, device: Device, tokens: int, utilisation: float
) -> dict[str, Any]:
    """Seconds and energy. None where a figure that they need is unknown."""
    step = 3 * sum(flops.forward(model, batch, context, causal=True).values())
    again = sum(flops.recomputation(model, batch, context, 1, causal=True).values())
    token = sum(flops.decoded_token(model, batch, context, causal=True).values())
    read = total(model) * SIZES[dtype] + kv_cache(model, batch, context, dtype)
    rate, bandwidth = device.flops_per_second, device.bytes_per_second
    result: dict[str, Any] = {**device._asdict(), "utilisation": utilisation, "training_tokens": tokens}
    for name, count in (("plain", step), ("checkpointed", step + again)):
        seconds = None if rate is None else count / (rate * utilisation)
        whole = None if seconds is None else seconds / (batch * context) * tokens
        energy = None if whole is None or device.watts is None else whole * device.watts / 3.6e6
        result[f"training_{name}"] = {"step_seconds": seconds, "seconds": whole, "kilowatt_hours": energy}
    seconds = None
    if rate is not None and bandwidth is not None:
        seconds = max(token / (rate * utilisation), read / (bandwidth * utilisation))
    energy = None if seconds is None or device.watts is None else seconds * device.watts
    result["decoded_token"] = {"seconds": seconds, "joules": energy}
    return result


def _summed(parts: dict[str, int]) -> dict[str, int]:
    return {"total": sum(parts.values()), **parts}
