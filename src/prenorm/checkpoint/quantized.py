"""Quantised matrices in a folder: the layout "pack-quantized" of compressed-tensors 0.20, read and written.

A matrix X is stored as X.weight_packed (int32, each with 4 or 8 integers along a row, the first in the lowest bits,
offset by 128 or 8), X.weight_scale (rows, groups of 32), in the dtype of the other weights if that holds every bfloat16
number (with float16 weights, float32 instead), and X.weight_shape.
Derived from compressors/pack_quantized/ and quantization/quant_args.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from ..ops.quantized import GROUP, KINDS, SCALE, pack, unpack
from .files import json_text
from .names import PACKED, SCALES, SHAPE, matrices_of

KEY = "quantization_config"


def quantization_config(kind: str) -> dict[str, Any]:
    """The quantization_config in config.json for a model with matrices of this kind.

    Activations are not included: rounding them is how prenorm multiplies by such matrices, not part of the model.
    """
    weights = {"type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": KINDS[kind], **weights},
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "kv_cache_scheme": None,
    }


def kind_in(fields: Mapping[str, Any], source: str) -> str | None:
    """The kind of a model's matrices, None if they are floats.

    Raises CheckpointError for any quantization other than prenorm's own, which would give other numbers.
    """
    said = fields.get(KEY)
    if said is None:
        return None
    for kind in KINDS:
        if said == quantization_config(kind):
            return kind
    method = said.get("quant_method") if isinstance(said, dict) else None
    by = "" if method is None else f" by {json_text(method)}"
    raise CheckpointError(
        f"{source}: {KEY} must be what save_pretrained writes for an int8 or int4 model, but the weights are quantised"
        f"{by} in another way: {json_text(said)}; open the folder that this one was made from, and quantize() that."
    )


def to_rows(config: ModelConfig, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model with its matrices packed row by row as stored, named as in `names.parameters_of`."""
    dtype = torch.promote_types(tensors["embedding.weight"].dtype, SCALE)
    rows = dict(tensors)
    for name, _, shape in matrices_of(config):
        numbers, scale = unpack(rows.pop(f"{name}.weight").cpu(), rows.pop(f"{name}.scale").cpu(), shape)
        rows[name + PACKED] = _words(numbers, KINDS[kind])
        rows[name + SCALES] = scale.to(dtype)
        rows[name + SHAPE] = torch.tensor(shape)
    return rows


def from_rows(config: ModelConfig, kind: str, tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of a model, as its layers hold them, in place of its rows: matrix by matrix, none is there twice.

    Raises CheckpointError for scales that the layers cannot hold.
    """
    for name, hugging_face, shape in matrices_of(config):
        words, scale, said = (tensors.pop(name + end) for end in (PACKED, SCALES, SHAPE))
        if said.tolist() != list(shape):
            raise CheckpointError(
                f"{source}: {hugging_face} must have the shape {shape}, but {hugging_face}{SHAPE} says {said.tolist()}."
            )
        narrow = scale.to(SCALE)
        if not torch.equal(narrow.to(scale.dtype), scale) or not bool(narrow.isfinite().all()):
            raise CheckpointError(
                f"{source}: {hugging_face}{SCALES} must hold finite bfloat16 numbers, but does not; quantize() the "
                "original model again."
            )
        numbers = _numbers(words, KINDS[kind])[:, : shape[1]]
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = pack(numbers, narrow, kind)
    return tensors


def _words(numbers: Tensor, bits: int) -> Tensor:
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % (32 // bits)))
    stored = (padded.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        stored = stored[:, ::2] | stored[:, 1::2] << 4
    return stored.contiguous().view(torch.int32)


def _numbers(words: Tensor, bits: int) -> Tensor:
    stored = words.contiguous().view(torch.uint8)
    if bits == 4:
        stored = torch.stack([stored & 15, stored >> 4], -1).flatten(1)
    return (stored.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
