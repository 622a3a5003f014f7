"""The logits of the next token: through the model, or where few tokens are fed, in one call of a kernel."""

import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ..blocks.transformer import TransformerBlock
from ..kernels.cpu.decode_step import DTYPES, MOST_TOKENS, Layer, Matrix, Model, Sizes
from ..kernels.cpu.few_rows import MOST_ROWS
from ..kernels.cpu.one_query import WIDTH
from ..layers.attention import SelfAttention
from ..layers.cache import KVCache
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.quantized import QuantizedLinear
from ..layers.rope import RotaryEmbedding
from ..layers.swiglu import SwiGLU
from ..layers.timeline import Timeline
from ..ops import backends

if TYPE_CHECKING:
    from .lm import TransformerLM

AHEAD = 64  # tokens whose cosines and sines are worked out together
OURS = (
    *(TransformerBlock, SelfAttention, Dropout, Embedding, SwiGLU, Linear, QuantizedLinear, RMSNorm, RotaryEmbedding),
    nn.ModuleList,
)
MATRICES = (
    *("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    *("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"),
)
CLASSES: dict[str, tuple[type[nn.Module], ...]] = {  # of the parts of a block
    "norm1": (RMSNorm,),
    "attn": (SelfAttention,),
    "attn.rope": (RotaryEmbedding,),
    "norm2": (RMSNorm,),
    "ffn": (SwiGLU,),
    "dropout": (Dropout,),
    **dict.fromkeys(MATRICES, (Linear, QuantizedLinear)),
}
TENSORS = (  # of a block, in the order in which `_layer` takes them
    *(f"{matrix}.{name}" for matrix in MATRICES for name in ("weight", "scale")),
    *("norm1.weight", "norm2.weight"),
    *(f"{matrix}.bias" for matrix in MATRICES[:4]),
    *("attn.q_norm.weight", "attn.k_norm.weight"),
)
get_version = operator.attrgetter("_version")


class Steps:
    """What a model's decoding calls for the logits of the next token, see `generation.logits.NextLogits`.

    The kernel has the maths of the blocks, not their code: it stands in only for modules that are exactly ours, with
    nothing hooked to them, put in their place or changed since, which is looked at before each step, as are the
    parameters. Where nobody else's code runs between steps (`alone`), the first look at a cache is enough.
    """

    def __init__(self, model: "TransformerLM", *, alone: bool = False) -> None:
        self.model, self.alone = model, alone
        self.modules = list(model.modules())
        self.sizes = _sizes(model) if _is_ours(self.modules) else None
        if self.sizes is None:
            return
        self.blocks = cast("list[TransformerBlock]", list(model.layers))
        self.types = list(map(type, self.modules))
        self.attributes = [dict(vars(module)) for module in self.modules]
        self.hooks = [hooks for module in self.modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self.children = [dict(module._modules) for module in self.modules]
        self.owners = [[_owner(block, name) for name in TENSORS] for block in self.blocks]
        self.seen: object = None
        self.known: Model | None = None
        self.settled: KVCache | None = None
        self.most = 0  # tokens that a row can hold
        self.first = -AHEAD  # the place of the first of `angles`
        self.angles: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: KVCache
    ) -> Float[Tensor, "batch vocab"]:
        """The logits that follow each row's last real token."""
        logits = None
        if self.sizes is not None and segment_ids is None and 0 < token_ids.numel() <= MOST_TOKENS:
            logits = self._few_tokens(token_ids, cache)
        return self.model._next_logits(token_ids, segment_ids=segment_ids, cache=cache) if logits is None else logits

    def _few_tokens(self, token_ids: Tensor, cache: KVCache) -> Tensor | None:
        """The logits, or None where this model, cache or machine is not the kernel's."""
        if self.settled is not cache and not self._look(token_ids, cache):
            return None
        seq, first, timeline = token_ids.shape[1], cache[0], cache.timeline
        # Where there is no room, the model says what is wrong; and it knows what several tokens see of a ring.
        if timeline.longest + seq > min(self.most, first.max_seq_len if seq == 1 else first.slots):
            return None
        lengths = timeline.lengths()
        angles = self._cos_sin(lengths, timeline, seq)
        given = (self.model.embedding.weight, self.known, token_ids.contiguous(), lengths, *angles)
        kernel = backends.choose("decode_step", *given)
        if kernel is None:
            return None
        try:
            logits: Tensor = kernel(*given)
        except IndexError:  # a token outside the vocabulary: the model says which
            return None
        timeline.count(seq)
        return logits

    def _cos_sin(self, lengths: Tensor, timeline: Timeline, seq: int) -> tuple[Tensor, Tensor]:
        """Of the tokens to come (rows or 1, seq, head_dim / 2), where rows are equally long some tokens ahead."""
        rope = self.blocks[0].attn.rope
        assert rope is not None
        if timeline.ragged:
            return rope.cos_sin(lengths[:, None] + torch.arange(seq), torch.float32)
        first = timeline.longest - self.first
        if self.angles is None or not 0 <= first <= AHEAD - seq:
            self.first, first = timeline.longest, 0
            self.angles = rope.cos_sin(self.first + torch.arange(AHEAD), torch.float32)
        cos, sin = self.angles
        return cos[first : first + seq], sin[first : first + seq]

    def _look(self, token_ids: Tensor, cache: KVCache) -> bool:
        """Whether the kernel may stand in with this cache; `known` are the tensors then."""
        if not backends.uses_kernels() or len(token_ids) > MOST_ROWS or not self._is_unchanged():
            return False
        self.model._check_cache(cache)
        attention = self.blocks[0].attn
        assert attention.rope is not None
        if not all(layer.needs_no_mask(attention.window) for layer in cache):
            return False
        if len(token_ids) != cache.timeline.batch_size:
            return False
        self.most = attention.rope.max_seq_len
        self.known = self._tensors(cache)
        if self.alone and self.known is not None:
            self.settled = cache
        return self.known is not None

    def _tensors(self, cache: KVCache) -> Model | None:
        """The tensors as they are now; those that are what they were in the step before need no second look."""
        model = self.model
        assert self.sizes is not None
        try:
            layers: list[list[Tensor | None]] = [
                [None if owner is None else owner[0][owner[1]] for owner in owners] for owners in self.owners
            ]
        except KeyError:  # a parameter that is one no more
            return None
        for tensors, layer in zip(layers, cache, strict=True):
            tensors += [layer.keys, layer.values]
        head = _matrix(model.embedding if model.lm_head is None else model.lm_head)
        others = (model.embedding.weight, model.final_norm.weight, *head)
        every = [tensor for one in (*layers, others) for tensor in one if tensor is not None]
        marks = (list(map(id, every)), list(map(Tensor.data_ptr, every)), list(map(Tensor.stride, every)))
        seen = (*marks, _versions(every))
        if self.known is None or seen != self.seen:
            embedding, norm, *_ = others
            self.seen = seen
            return Model(list(map(_layer, layers)), embedding, norm, head, self.sizes)
        return self.known

    def _is_unchanged(self) -> bool:
        """Whether modules still are what they were: nothing hooked to them, put in their place, or set."""
        return (
            not any(self.hooks)
            and not _has_any_global_hook()
            and list(map(type, self.modules)) == self.types
            and list(map(vars, self.modules)) == self.attributes
            and [module._modules for module in self.modules] == self.children
        )


def _code() -> list[dict[str, Any]]:
    return [dict(vars(one)) for one in OURS]


CODE = _code()


def _is_ours(modules: list[nn.Module]) -> bool:
    """Whether these are a model of ours, all of it, with the methods that their classes had from the start."""
    from .lm import OUR_FORWARD, TransformerLM

    return (
        type(modules[0]) is TransformerLM
        and modules[0].runs_plainly(OUR_FORWARD)
        and all(type(module) in OURS for module in modules[1:])
        and _code() == CODE
        and not any(hasattr(type(module), name) for module in modules for name in vars(module))
    )


def _sizes(model: "TransformerLM") -> Sizes | None:
    """The sizes of all blocks; None where they differ, or the kernel has not what they have."""
    found = set()
    weight = model.embedding.weight
    if not weight.is_cpu or weight.dtype not in DTYPES or type(model.final_norm) is not RMSNorm:
        return None
    if model.config.family is not None:  # the kernel has the maths of the blessed block alone
        return None
    for block in model.layers:
        if type(block) is not TransformerBlock or any(
            type(operator.attrgetter(name)(block)) not in expected for name, expected in CLASSES.items()
        ):
            return None
        attention, ffn, rope = block.attn, block.ffn, block.attn.rope
        assert rope is not None
        head_norms = (attention.q_norm, attention.k_norm)
        if {type(norm) for norm in head_norms} not in ({RMSNorm}, {type(None)}):
            return None
        dropped = (block.dropout.training and block.dropout.p) or (attention.training and attention.dropout)
        biased = any(one.bias is not None for one in (ffn.gate_proj, ffn.up_proj, ffn.down_proj))
        eps = {norm.eps for norm in (block.norm1, block.norm2, *head_norms, model.final_norm) if norm is not None}
        if dropped or biased or rope.by_length or not attention.causal or len(eps) > 1 or attention.head_dim % WIDTH:
            return None
        sizes = Sizes(
            heads=attention.num_heads,
            groups=attention.num_kv_heads,
            head_dim=attention.head_dim,
            d_ff=ffn.d_ff,
            interleaved=rope.interleaved,
            eps=eps.pop(),
        )
        found.add((sizes, attention.window, rope))
    return found.pop()[0] if len(found) == 1 else None


def _owner(block: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """Where a tensor is kept, and its name there; None for one that there is not."""
    path, _, last = name.rpartition(".")
    module = operator.attrgetter(path)(block)
    if module is None or getattr(module, last, None) is None:
        return None
    whole = isinstance(module, QuantizedLinear) and last != "bias"
    return (module._buffers if whole else module._parameters, last)


def _layer(tensors: list[Any]) -> Layer:
    """TENSORS of a block, and the keys and values of its cache, as the kernel wants them."""
    pairs = len(MATRICES)
    matrices = tuple(Matrix(*tensors[2 * i : 2 * i + 2]) for i in range(pairs))
    norms, biases, head_norms, cache = (
        tuple(tensors[2 * pairs + start : 2 * pairs + stop]) for start, stop in ((0, 2), (2, 6), (6, 8), (8, 10))
    )
    return Layer(matrices, norms, biases, head_norms, cache)


def _matrix(head: Embedding | Linear | QuantizedLinear) -> Matrix:
    return Matrix(head.weight, head.scale if isinstance(head, QuantizedLinear) else None)


def _versions(tensors: list[Tensor]) -> list[object]:
    """How often each was changed in place; where one does not count that, what is like nothing seen before."""
    try:
        return list(map(get_version, tensors))
    except RuntimeError:  # of inference mode
        return [object()]
