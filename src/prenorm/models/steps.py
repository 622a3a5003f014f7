"""The logits of the next token: through the model, or where one token a row is fed, in one call of a kernel."""

import operator
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..blocks.transformer import TransformerBlock
from ..kernels.cpu.decode_step import Model, Sizes
from ..layers.attention import SelfAttention
from ..layers.cache import KVCache, whole_call
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding
from ..layers.feedforward import SwiGLU
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.rope import RotaryEmbedding
from ..ops import backends

if TYPE_CHECKING:
    from .lm import TransformerLM

OURS = (TransformerBlock, SelfAttention, Dropout, Embedding, SwiGLU, Linear, RMSNorm, RotaryEmbedding, nn.ModuleList)
WEIGHTS = (  # of a layer, in the order in which the kernel takes them
    *("norm1.weight", "attn.q_proj.weight", "attn.k_proj.weight", "attn.v_proj.weight"),
    *("attn.q_proj.bias", "attn.k_proj.bias", "attn.v_proj.bias", "attn.q_norm.weight", "attn.k_norm.weight"),
    *("attn.o_proj.weight", "attn.o_proj.bias"),
    *("norm2.weight", "ffn.gate_proj.weight", "ffn.up_proj.weight", "ffn.down_proj.weight"),
)
get_version = operator.attrgetter("_version")


class Steps:
    """What a model's decoding calls for the logits of the next token, see `generation.logits.NextLogits`.

    The kernel has the maths of the blocks, not their code: it stands in only for modules that are exactly ours, with
    nothing hooked to them or put in their place, which is looked at before each step, as are the parameters.
    """

    def __init__(self, model: "TransformerLM") -> None:
        self.model = model
        modules = list(model.modules())
        self.sizes = _sizes(model) if _is_ours(modules) else None
        if self.sizes is None:
            return
        self.blocks = cast("list[TransformerBlock]", list(model.layers))
        self.dicts = [module.__dict__ for module in modules]
        self.attributes = sum(map(len, self.dicts))
        self.hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self.places = [(module._modules, name) for module in modules for name in module._modules]
        self.children = [child for module in modules for child in module._modules.values()]
        self.owners = [_owner(block, name) for block in self.blocks for name in WEIGHTS]
        self.names = [name.rpartition(".")[2] for name in WEIGHTS] * len(self.blocks)
        self.seen: object = None
        self.known: Model | None = None

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: KVCache
    ) -> Float[Tensor, "batch vocab"]:
        """The logits that follow each row's last real token."""
        logits = None
        if self.sizes is not None and segment_ids is None and token_ids.shape[1] == 1 and self._is_unchanged():
            logits = self._one_token(token_ids, cache, self.sizes)
        return self.model._next_logits(token_ids, segment_ids=segment_ids, cache=cache) if logits is None else logits

    def _one_token(self, token_ids: Tensor, cache: KVCache, sizes: Sizes) -> Tensor | None:
        """The logits, or None where this cache or machine is not the kernel's."""
        self.model._check_cache(cache)
        attention = self.blocks[0].attn
        assert attention.rope is not None
        if not all(layer.shows_all_that_is_seen(attention.window) and layer.has_room for layer in cache):
            return None
        if len(token_ids) != len(cache[0].keys) or cache[0].longest >= attention.rope.max_seq_len:
            return None  # the model says what is wrong
        given = (self.model.head_weight, self._tensors(cache, sizes), token_ids[:, 0], cache.lengths)
        kernel = backends.choose("decode_step", *given)
        if kernel is None:
            return None
        with whole_call(cache):
            try:
                logits: Tensor = kernel(*given)
            except IndexError:  # a token outside the vocabulary: the model says which
                return None
            for layer in cache:
                layer.add_one()
        return logits

    def _tensors(self, cache: KVCache, sizes: Sizes) -> Model:
        """The tensors as they are now; those that are what they were in the step before need no second look."""
        model, rope = self.model, self.blocks[0].attn.rope
        assert rope is not None
        weights = list(map(dict.get, self.owners, self.names))
        held = [tensor for layer in cache for tensor in (layer.keys, layer.values)]
        others = (model.embedding.weight, model.final_norm.weight, model.head_weight, rope.cos, rope.sin)
        every = [tensor for tensor in (*weights, *held, *others) if tensor is not None]
        seen = (list(map(id, every)), list(map(Tensor.data_ptr, every)), _versions(every))
        if self.known is None or seen != self.seen:
            count = len(WEIGHTS)
            layers = [
                [*weights[i * count : (i + 1) * count], *held[2 * i : 2 * i + 2]] for i in range(len(self.blocks))
            ]
            self.known, self.seen = Model(layers, *others, sizes=sizes), seen
        return self.known

    def _is_unchanged(self) -> bool:
        """Whether modules still do what their classes say: no hooks, nothing put in their place, nothing dropped."""
        return (
            not any(self.hooks)
            and not _has_any_global_hook()
            and not (self.model.training and self.model.config.dropout)
            and sum(map(len, self.dicts)) == self.attributes
            and [children[name] for children, name in self.places] == self.children
        )


def _is_ours(modules: list[nn.Module]) -> bool:
    """Whether these are a model of ours, all of it, and none has been given another forward pass."""
    from .lm import TransformerLM

    return (
        type(modules[0]) is TransformerLM
        and all(type(module) in OURS for module in modules[1:])
        and not any({"forward", "_compiled_call_impl"} & module.__dict__.keys() for module in modules)
    )


def _sizes(model: "TransformerLM") -> Sizes | None:
    """The sizes of all blocks; None where they differ."""
    found = set()
    for block in cast("list[TransformerBlock]", model.layers):
        attention, rope = block.attn, block.attn.rope
        norms = (block.norm1, block.norm2, attention.q_norm, attention.k_norm, model.final_norm)
        eps = {norm.eps for norm in norms if norm is not None}
        if rope is None or not attention.causal or len(eps) > 1:
            return None
        sizes = Sizes(
            heads=attention.num_heads,
            groups=attention.num_kv_heads,
            head_dim=attention.head_dim,
            d_ff=block.ffn.d_ff,
            interleaved=rope.interleaved,
            eps=eps.pop(),
        )
        found.add((sizes, attention.window, rope))
    return found.pop()[0] if len(found) == 1 else None


def _owner(block: nn.Module, name: str) -> dict[str, Any]:
    """Where a parameter is kept; an empty place for one of a module that there is not."""
    module = operator.attrgetter(name.rpartition(".")[0])(block)
    return {} if module is None else module._parameters


def _versions(tensors: list[Tensor]) -> list[object]:
    """How often each was changed in place; where one does not count that, what is like nothing seen before."""
    try:
        return list(map(get_version, tensors))
    except RuntimeError:  # of inference mode
        return [object()]
