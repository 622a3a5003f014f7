"""Converting state dicts of PyTorch's own Transformer modules to prenorm's names, and back.

| PyTorch | prenorm |
|---|---|
| nn.MultiheadAttention | MultiHeadAttention |
| nn.TransformerEncoderLayer, nn.TransformerEncoder | TransformerEncoderBlock, TransformerEncoder |
| nn.TransformerDecoderLayer, nn.TransformerDecoder | TransformerDecoderBlock, TransformerDecoder |

A state dict does not say how its module computes. The outputs are equal if the PyTorch module was built with
norm_first=True and activation="gelu" (neither is the default), and a stack with norm=nn.LayerNorm(d_model).
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError

# PyTorch stacks the three input projections of an attention in one tensor, in this order.
PACKED = ("q_proj", "k_proj", "v_proj")
# prenorm's names by PyTorch's, inside a layer or a stack. An encoder layer's self_attn is named attn.
NAMES = {
    "multihead_attn": "cross_attn",
    "out_proj": "o_proj",
    "linear1": "ffn.up_proj",
    "linear2": "ffn.down_proj",
    "norm": "final_norm",
}
OUR_NAMES = re.compile(
    r"((encoder|decoder)\.)?"
    r"((layers\.\d+\.)?(((self_|cross_)?attn\.)?[qkvo]_proj|ffn\.(up|down)_proj|norm[123])|final_norm)\.(weight|bias)"
)


def from_pytorch(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of the PyTorch modules above (or of nn.Transformer's two stacks) under prenorm's names.

    `block.load_state_dict(from_pytorch(module.state_dict()))` copies them. Raises CheckpointError for tensors that
    prenorm's modules do not have: those of add_bias_kv, and of keys or values with another width.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        packed = re.fullmatch(r"(.*?)in_proj_(weight|bias)", name)
        if packed is None:
            ours[_our_name(name, state_dict)] = tensor
            continue
        if tensor.shape[0] % len(PACKED):
            raise CheckpointError(
                f"{name} must be three stacked projections, but its shape is {tuple(tensor.shape)}, whose rows are not "
                "a multiple of 3."
            )
        prefix, kind = packed.groups()
        for part, rows in zip(PACKED, tensor.chunk(len(PACKED)), strict=True):
            ours[_our_name(f"{prefix}{part}.{kind}", state_dict)] = rows
    _check_names(ours, "PyTorch's Transformer modules")
    return ours


def to_pytorch(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one of the prenorm modules above under PyTorch's names, the inverse of `from_pytorch`.

    Raises CheckpointError for names that these modules do not have, and for an attention with missing projections.
    """
    _check_names(state_dict, "the encoder-decoder family")
    their_names = {ours: theirs for theirs, ours in NAMES.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        their = _translate(re.sub(r"(^|\.)attn\.", r"\1self_attn.", name), their_names)
        packed = re.fullmatch(rf"(.*?)({'|'.join(PACKED)})\.(weight|bias)", their)
        if packed is None:
            theirs[their] = tensor
            continue
        part, kind = packed[2], packed[3]
        names = [f"{name.removesuffix(f'{part}.{kind}')}{each}.{kind}" for each in PACKED]
        missing = [each for each in names if each not in state_dict]
        if missing:
            raise CheckpointError(f"an attention needs {', '.join(names)}, but {', '.join(missing)} is missing.")
        if part == PACKED[0]:
            theirs[f"{packed[1]}in_proj_{kind}"] = torch.cat([state_dict[each] for each in names])
    return theirs


def _our_name(name: str, state_dict: Mapping[str, Tensor]) -> str:
    layer, attention, rest = name.rpartition("self_attn.")
    if attention:
        in_decoder = any(each.startswith(f"{layer}multihead_attn.") for each in state_dict)
        return f"{layer}{'self_attn' if in_decoder else 'attn'}.{_translate(rest, NAMES)}"
    return _translate(name, NAMES)


def _translate(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        name = re.sub(rf"(^|\.){re.escape(old)}\.", rf"\g<1>{new}.", name)
    return name


def _check_names(names: Iterable[str], where: str) -> None:
    if unknown := sorted(name for name in names if not OUR_NAMES.fullmatch(name)):
        raise CheckpointError(f"names must be those of {where}, not {', '.join(unknown)}; leave them out.")
