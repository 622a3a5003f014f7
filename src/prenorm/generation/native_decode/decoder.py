"""The logits of the next token in one kernel call, for a few tokens and an unmodified TransformerLM."""

import operator
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...blocks.transformer import TransformerBlock
from ...kernels.cpu.decode_step import MAX_TOKENS, Layer, Matrix, Model, Sizes
from ...kernels.cpu.skinny_linear import MAX_ROWS
from ...layers.cache import KVCache
from ...layers.embedding import Embedding
from ...layers.layer_cache import LayerCache
from ...layers.linear import Linear
from ...layers.quantized import QuantizedLinear
from ...layers.timeline import Timeline
from ...ops import backends
from ..logits import NextLogits
from .supported import MATRICES, LanguageModel, has_untouched_parts, sizes_of
from .watch import ModuleWatch, Place, TensorWatch

AHEAD = 64  # tokens whose cosines and sines are computed at a time
NORMS = ("norm1", "norm2", "attn.q_norm", "attn.k_norm")


def native_decoder(model: LanguageModel, next_logits: NextLogits, *, exclusive: bool = False) -> NextLogits:
    """A decoder that calls the kernel where it can, otherwise `next_logits`; `next_logits` itself if it never can.

    The model must be a TransformerLM with an unmodified `forward`. exclusive: no other code runs between steps.
    """
    modules = list(cast(nn.Module, model).modules())
    sizes = sizes_of(model) if has_untouched_parts(modules) else None
    return next_logits if sizes is None else NativeDecoder(model, next_logits, modules, sizes, exclusive=exclusive)


class NativeDecoder:
    """The callable that decoding uses for the logits of the next token, see `generation.logits.NextLogits`.

    The kernel implements the maths of the blocks and bypasses their code, so it replaces only modules that are
    unmodified. Their hooks, classes, children and tensors are checked again before each step, unless no other code runs
    in between (`exclusive`). Another attribute set on a module during a generation goes unnoticed until the next one.
    """

    def __init__(
        self,
        model: LanguageModel,
        next_logits: NextLogits,
        modules: list[nn.Module],
        sizes: Sizes,
        *,
        exclusive: bool = False,
    ) -> None:
        self.model, self.next_logits, self.sizes, self.exclusive = model, next_logits, sizes, exclusive
        self.blocks = cast("list[TransformerBlock]", list(model.layers))
        self.windows = [block.attn.window for block in self.blocks]
        rope = self.blocks[0].attn.rope
        assert rope is not None
        self.rope = rope
        self.modules = ModuleWatch(modules)
        self.tensors: TensorWatch | None = None
        self.known: Model | None = None
        self.cache: KVCache | None = None  # that of the last step, and whether the kernel supports it
        self.supports_cache = False
        self.first = -AHEAD  # the position of the first of `angles`
        self.angles: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: KVCache
    ) -> Float[Tensor, "batch vocab"]:
        """The logits after each row's last token."""
        logits = None
        if segment_ids is None and 0 < token_ids.numel() <= MAX_TOKENS:
            logits = self._few_tokens(token_ids, cache)
        return self.next_logits(token_ids, segment_ids=segment_ids, cache=cache) if logits is None else logits

    def _few_tokens(self, token_ids: Tensor, cache: KVCache) -> Tensor | None:
        """The logits, or None if the kernel does not support this model, cache or machine."""
        known = self.known if self.exclusive and cache is self.cache else None
        known = known or self._look(token_ids, cache)
        if known is None or len(token_ids) != known.rows:
            return None
        seq, first, timeline = token_ids.shape[1], cache[0], cache.timeline
        # Left to the model: a full cache, for its error message, and several tokens in a ring buffer.
        most = first.max_seq_len if seq == 1 else first.slots
        if timeline.longest + seq > min(self.rope.max_seq_len, most):
            return None
        lengths = timeline.lengths()
        angles = self._cos_sin(lengths, timeline, seq)
        given = (known.embedding, known, token_ids.contiguous(), lengths, *angles)
        kernel = backends.choose("decode_step", *given)
        if kernel is None:
            return None
        try:
            logits: Tensor = kernel(*given)
        except IndexError:  # a token outside the vocabulary: the model names it in its error
            return None
        timeline.count(seq)
        return logits

    def _cos_sin(self, lengths: Tensor, timeline: Timeline, seq: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the next tokens, (rows or 1, seq, head_dim / 2); kept for some steps unless ragged."""
        if timeline.ragged:
            return self.rope.cos_sin(lengths[:, None] + torch.arange(seq), torch.float32)
        first = timeline.longest - self.first
        if self.angles is None or not 0 <= first <= AHEAD - seq:
            self.first, first = timeline.longest, 0
            self.angles = self.rope.cos_sin(self.first + torch.arange(AHEAD), torch.float32)
        cos, sin = self.angles
        return cos[first : first + seq], sin[first : first + seq]

    def _look(self, token_ids: Tensor, cache: KVCache) -> Model | None:
        """The tensors if the kernel may stand in with this cache, otherwise None."""
        if not backends.uses_kernels() or len(token_ids) > MAX_ROWS or not self.modules.is_unchanged():
            return None
        self.model.check_cache(cache)
        if cache is not self.cache:
            self.cache, self.tensors, self.known = cache, None, None
            pairs = zip(cache.layers, self.windows, strict=True)
            self.supports_cache = all(layer.needs_no_mask(window) for layer, window in pairs)
        if not self.supports_cache or set(map(type, cache.layers)) != {LayerCache}:
            return None
        if self.tensors is None or not self.tensors.is_unchanged():
            self.known = self._tensors(cache)
        return self.known

    def _tensors(self, cache: KVCache) -> Model | None:
        """The current tensors of model and cache, watched from now on; None if the kernel does not support them."""
        stored = [(vars(layer), name) for layer in cache.layers for name in ("keys", "values")]
        try:
            self.tensors = TensorWatch([*_places(self.model, self.blocks), *stored])
        except (AttributeError, KeyError, RuntimeError):  # a parameter was removed, or has no memory (sparse ones)
            self.tensors = None
            return None
        if sizes_of(self.model) != self.sizes:  # a bias was added
            return None
        layers = [_layer(block, layer) for block, layer in zip(self.blocks, cache.layers, strict=True)]
        model = self.model
        return Model(layers, model.embedding.weight, model.final_norm.weight, _matrix(_head(model)), self.sizes)


def _places(model: LanguageModel, blocks: Sequence[nn.Module]) -> list[Place]:
    """Where the model's tensors are, and the biases that it does not have."""
    matrices = [operator.attrgetter(name)(block) for block in blocks for name in MATRICES]
    norms = [operator.attrgetter(name)(block) for block in blocks for name in NORMS]
    norms = [norm for norm in norms if norm is not None]
    head = () if model.lm_head is None else (model.lm_head,)
    return [
        *(_place(module, "weight") for module in (*matrices, *norms, *head, model.embedding, model.final_norm)),
        *(_place(module, "scale") for module in (*matrices, *head) if isinstance(module, QuantizedLinear)),
        *(_place(module, "bias") for module in (*matrices, *head)),
    ]


def _place(module: nn.Module, name: str) -> Place:
    """The dict that holds a tensor, and its key; a bias that a module was made without is None in its `vars`."""
    if getattr(module, name) is None and name not in module._parameters:
        return vars(module), name
    is_buffer = isinstance(module, QuantizedLinear) and name != "bias"
    return (module._buffers if is_buffer else module._parameters), name


def _layer(block: Any, cache: LayerCache) -> Layer:
    """The tensors of a block and its cache, as the kernel takes them."""
    linears = [operator.attrgetter(name)(block) for name in MATRICES]
    q_norm, k_norm = (None if norm is None else norm.weight for norm in (block.attn.q_norm, block.attn.k_norm))
    return Layer(
        matrices=tuple(map(_matrix, linears)),
        norms=(block.norm1.weight, block.norm2.weight),
        biases=tuple(linear.bias for linear in linears[:4]),
        head_norms=(q_norm, k_norm),
        cache=(cache.keys, cache.values),
    )


def _matrix(layer: Embedding | Linear | QuantizedLinear) -> Matrix:
    return Matrix(layer.weight, layer.scale if isinstance(layer, QuantizedLinear) else None)


def _head(model: LanguageModel) -> Embedding | Linear | QuantizedLinear:
    return model.embedding if model.lm_head is None else model.lm_head
