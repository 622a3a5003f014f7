"""One file a style: a right source, and the faults that are made in it."""

from types import ModuleType

from . import bare, course, einsums, huggingface, meta, nanogpt, per_head, torch_modules

STYLES: list[ModuleType] = [course, meta, huggingface, nanogpt, bare, einsums, per_head, torch_modules]
