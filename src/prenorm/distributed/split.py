"""Which style splits which module: a model, a block, or a layer, ours or a user's."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from ..blocks.families.attention import FamilyAttention
from ..errors import ConfigError
from ..layers.attention import SelfAttention
from ..layers.cross_attention import MultiHeadAttention
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding
from ..layers.family_norm import FamilyLayerNorm
from ..layers.feedforward import FeedForward
from ..layers.gated import GatedFeedForward
from ..layers.layer_norm import LayerNorm
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.one_plus_norm import OnePlusRMSNorm
from ..layers.quantized import QuantizedLinear
from ..layers.scaled_embedding import ScaledEmbedding
from ..layers.swiglu import SwiGLU
from ..layers.two_matrices import TwoMatrices
from ..models.encoder_decoder import EncoderDecoder
from ..models.lm import TransformerLM
from .between import SplitDropout, Tokenwise, Unsplit, Whole
from .local_weights import distribute
from .recognise import own_layers
from .stages import Elsewhere, Received
from .tensor_parallel import Split, SplitAttention, SplitLayer
from .vocabulary import SplitEmbedding, SplitHead


def split(module: nn.Module, mesh: DeviceMesh, styles: Mapping[str, ParallelStyle]) -> None:
    """Split the layers of a module between the ranks of a mesh of one dim, "tp".

    styles: by name, for modules that are not ours; without any, those are found by trying (recognise.py). Raises
    ConfigError for what cannot be split.
    """
    _check(module, mesh.size(), styles)
    _check_seeds(module, mesh)
    if not isinstance(module, TransformerLM):
        styles = styles or own_layers(module, mesh.size(), style_of)
    if not styles and not any(map(style_of, module.modules())):
        raise ConfigError(
            f"tp is {mesh.size()}, but no layer of this {type(module).__name__} can be split that many ways; name "
            'them: styles={"attn": SplitLayer(("q", "k", "v"), ("o",), counts=("num_heads",)), "ffn": '
            'SplitLayer(("up",), ("down",))}, with SplitLayer from prenorm.distributed.tensor_parallel.'
        )
    if isinstance(module, TransformerLM):
        if isinstance(module.embedding, Received):  # a later stage's: the sequence comes as the stage before has it
            distribute(module.embedding, "weight", mesh, dim=0)
        else:
            into_sequence = module.positions is None
            parallelize_module(module.embedding, mesh, SplitEmbedding(into_sequence=into_sequence))
        if not isinstance(module.final_norm, Elsewhere):
            parallelize_module(module.final_norm, mesh, Whole())
        parallelize_module(module, mesh, SplitHead())
        if module.positions is not None:
            parallelize_module(module.positions, mesh, Whole(into_sequence=True))
    _split_parts(module, mesh, styles, "")


# Of exactly these classes; a subclass may compute something else.
STYLES: dict[type[nn.Module], ParallelStyle] = {
    **dict.fromkeys((SelfAttention, FamilyAttention, MultiHeadAttention), SplitAttention()),
    **dict.fromkeys((SwiGLU, GatedFeedForward), SplitLayer(("gate_proj", "up_proj"), ("down_proj",))),
    **dict.fromkeys((TwoMatrices, FeedForward), SplitLayer(("up_proj",), ("down_proj",))),
    **dict.fromkeys((Embedding, ScaledEmbedding), SplitEmbedding()),
}
WHOLE: dict[type[nn.Module], ParallelStyle] = {
    **dict.fromkeys((RMSNorm, OnePlusRMSNorm, LayerNorm, FamilyLayerNorm, nn.LayerNorm, nn.RMSNorm), Tokenwise()),
    **dict.fromkeys((Linear, nn.Linear), Tokenwise()),
    **dict.fromkeys((Dropout, nn.Dropout), SplitDropout()),
}


def style_of(module: nn.Module) -> ParallelStyle | None:
    """The style of a layer of ours that can be split; None for one that cannot, or is split part by part."""
    return STYLES.get(type(module))


def _check(module: nn.Module, ranks: int, styles: Mapping[str, ParallelStyle]) -> None:
    """Raise ConfigError for what cannot be split between so many ranks."""
    if isinstance(module, EncoderDecoder):
        raise ConfigError("tp must be 1 for an EncoderDecoder; dp and fsdp spread it, too.")
    known = dict(module.named_modules())
    for name in styles:
        if name not in known:
            raise ConfigError(f"styles must be named after submodules, but {type(module).__name__} has no {name}.")
    for name, part in known.items():
        if isinstance(part, QuantizedLinear):
            raise ConfigError(f"a quantised model cannot be split, but {name} is quantised; split the original one.")
        style = styles.get(name) or style_of(part)
        if isinstance(style, Split):
            style.check(part, ranks)
    seen: dict[int, str] = {}
    for name, part in known.items():
        for own, parameter in part._parameters.items():
            here = f"{name}.{own}" if name else own
            if parameter is not None and seen.setdefault(id(parameter), here) != here:
                raise ConfigError(
                    f"a parameter that two modules share cannot be split, because each would get its own, but "
                    f"{seen[id(parameter)]} is {here}; with dp and fsdp alone it can be shared."
                )


def _check_seeds(module: nn.Module, mesh: DeviceMesh) -> None:
    """Raise ConfigError where ranks that share tokens would drop other numbers of them."""
    if not any(_drops(part) for part in module.modules()):
        return
    seeds = [None] * mesh.size()
    torch.distributed.all_gather_object(seeds, torch.initial_seed(), group=mesh.get_group())
    if len(set(seeds)) > 1:
        raise ConfigError(
            f"ranks that differ in tp must have the same seed, because they drop out the same numbers, but the seeds "
            f"are {seeds}; torch.manual_seed({seeds[0]}) on all of them would do."
        )


def _drops(module: nn.Module) -> bool:
    probabilities = (getattr(module, name, 0) for name in ("dropout", "p"))
    return any(isinstance(value, float) and value > 0 for value in probabilities)


def _split_parts(module: nn.Module, mesh: DeviceMesh, styles: Mapping[str, ParallelStyle], name: str) -> None:
    """Give each part its style; parts that no style splits are whole on all ranks."""
    if "forward" in vars(module):
        return  # it has its style
    style = styles.get(name) or style_of(module) or WHOLE.get(type(module))
    has_weights = next(module.parameters(), None) is not None
    if style is None and has_weights and not _has_style_below(module, styles, name):
        style = Unsplit(below=True)
    if style is not None:
        parallelize_module(module, mesh, style)
        return
    if next(module.parameters(recurse=False), None) is not None:
        parallelize_module(module, mesh, Unsplit(below=False))
    for child, part in module.named_children():
        _split_parts(part, mesh, styles, f"{name}.{child}" if name else child)


def _has_style_below(module: nn.Module, styles: Mapping[str, ParallelStyle], name: str) -> bool:
    """Whether a part of a module is split."""
    below = f"{name}." if name else ""
    return any(map(style_of, module.modules())) or any(other.startswith(below) for other in styles)
