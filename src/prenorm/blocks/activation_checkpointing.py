"""Activation checkpointing: a block keeps only its input, and runs again in the backward pass to save memory."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..kernels.dropout_masks import enter_layer
from ..private_torch import is_transformed


def run_block(
    block: nn.Module, number: int, x: Tensor, *inputs: Any, use_checkpointing: bool | int, **options: Any
) -> Tensor:
    """block(x, *inputs, **options), checkpointed if use_checkpointing selects this block.

    use_checkpointing: True for every block, k for every k-th (`number` counts from 0), False for none. It has no effect
    outside training, without gradients, and under torch.func, which has no rule for it. The random state and autocast
    are restored for the second run, so outputs and gradients, dropout included, equal those without checkpointing bit
    for bit.
    Source: Chen et al. 2016, arXiv:1604.06174.
    """
    every, site = check_use_checkpointing(use_checkpointing), enter_layer(number)
    if every and (number + 1) % every == 0 and block.training and torch.is_grad_enabled() and not is_transformed():
        if site is not None:  # other layers and rows come before the second run
            options["context_fn"] = lambda: (nullcontext(), site.again())
        return checkpoint(block, x, *inputs, use_reentrant=False, preserve_rng_state=True, **options)
    return block(x, *inputs, **options)


def check_use_checkpointing(value: bool | int) -> int:
    """k if every k-th block is checkpointed, 0 if none is. Raises ConfigError."""
    if not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"use_checkpointing must be True, False, or an integer k for every k-th block, not {value!r}."
        )
    return int(value)
