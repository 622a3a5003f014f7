"""Quantising a language model's matrices to int8 or int4."""

import dataclasses

from torch import Tensor, nn

from ..errors import ConfigError
from ..kernels.plain import ORDINARY
from ..layers.linear import Linear
from ..layers.quantized import QuantizedLinear, kind_of
from ..ops.quantized import MOST, bits_of
from .generative import LINEAR_FORWARD, GenerativeModel


def quantize_(model: GenerativeModel, kind: str) -> None:
    """See `TransformerLM.quantize`."""
    bits_of(kind)
    if kind_of(model) is not None:
        raise ConfigError(f"the model is already quantised, to {kind_of(model)}; quantize the original model instead.")
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    for name, linear in matrices.items():
        _check_call(name, linear)
        _check(name, linear.weight)
    if model.lm_head is None:
        _check("embedding", model.embedding.weight)
        model.lm_head = Linear(model.config.d_model, model.config.vocab_size, device="meta")
        model.lm_head.weight = model.embedding.weight
        model.config = dataclasses.replace(model.config, tie_embeddings=False)
        matrices["lm_head"] = model.lm_head
    model.requires_grad_(False).eval()
    for name, linear in matrices.items():
        model.set_submodule(name, QuantizedLinear.of(linear, kind))


def _check_call(name: str, linear: nn.Module) -> None:
    """Raise ConfigError for a layer that does more than its weight and bias say, which would be lost."""
    if linear._forward_hooks or linear._forward_pre_hooks:
        raise ConfigError(
            f"a layer with hooks cannot be quantised, because they would be lost, but {name} has some; remove them "
            "(torch.nn.utils.prune.remove for a pruned one), quantize, and register them on the new layer."
        )
    if "forward" in vars(linear) or type(linear).forward is not LINEAR_FORWARD:
        raise ConfigError(
            f"a layer with a forward of its own cannot be quantised, because it would be lost, but {name}, a "
            f"{type(linear).__name__}, has one; put a module around a plain Linear instead."
        )


def _check(name: str, weight: Tensor) -> None:
    """Raise ConfigError unless the module's weight is a plain tensor of finite numbers in the range of the scales."""
    if type(weight) not in ORDINARY:
        raise ConfigError(f"only plain tensors can be quantised, but {name}.weight is a {type(weight).__name__}.")
    if weight.is_meta:
        raise ConfigError(f"{name}.weight has no data (it is on the meta device); load the weights, then quantize.")
    if not bool(weight.isfinite().all()):
        raise ConfigError(f"weights must be finite to be quantised, but {name}.weight contains NaN or infinity.")
    largest = weight.detach().abs().max().item()
    if largest > MOST:
        raise ConfigError(
            f"weights must be at most {MOST:.1e} in absolute value to be quantised, because scales have the range of "
            f"float32, but {name}.weight has {largest:.1e}; scale it down first."
        )
