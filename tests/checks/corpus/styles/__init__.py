"""One file a style: a right source, and the faults that are made in it."""

from types import ModuleType

from . import (
    bare,
    course,
    einsums,
    factory,
    functional,
    grouped,
    huggingface,
    jax_port,
    lazy,
    meta,
    nanogpt,
    neox,
    per_head,
    qwen,
    terse,
    torch_modules,
)

STYLES: list[ModuleType] = [
    course,
    meta,
    huggingface,
    nanogpt,
    bare,
    einsums,
    per_head,
    torch_modules,
    functional,
    grouped,
    qwen,
    neox,
    jax_port,
    terse,
    factory,
    lazy,
]
