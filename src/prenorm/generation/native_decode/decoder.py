"""The logits of the next token in one kernel call, for a few tokens and an unmodified TransformerLM."""

import operator
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...blocks.transformer import TransformerBlock
from ...kernels.cpu.decode_step import MAX_TOKENS, Layer, Matrix, Model, Sizes
from ...kernels.cpu.skinny_linear import MAX_ROWS
from ...layers.cache import KVCache
from ...layers.embedding import Embedding
from ...layers.linear import Linear
from ...layers.quantized import QuantizedLinear
from ...layers.timeline import Timeline
from ...ops import backends
from ..logits import NextLogits
from .supported import MATRICES, LanguageModel, has_untouched_parts, sizes_of
from .watch import ModuleWatch, TensorWatch

AHEAD = 64  # tokens whose cosines and sines are computed at a time
TENSORS = (  # the tensors of a block, in the order that `_layer` takes them
    *(f"{matrix}.{name}" for matrix in MATRICES for name in ("weight", "scale")),
    *("norm1.weight", "norm2.weight"),
    *(f"{matrix}.bias" for matrix in MATRICES[:4]),
    *("attn.q_norm.weight", "attn.k_norm.weight"),
)


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
    in between (`exclusive`). An attribute set on a module during a generation goes unnoticed until the next one.
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
        self.modules = ModuleWatch(modules)
        self.tensors = TensorWatch()
        self.owners = [[_owner(block, name) for name in TENSORS] for block in self.blocks]
        # Where the tensors of all blocks are kept, in one list: fetching them is most of the check before a step.
        owned = [owner for owners in self.owners for owner in owners if owner is not None]
        self.homes, self.names = [home for home, _ in owned], [name for _, name in owned]
        self.known: Model | None = None
        self.checked_cache: KVCache | None = None
        self.most = 0  # the number of tokens that fit into a row
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
        if self.checked_cache is not cache and not self._look(token_ids, cache):
            return None
        seq, first, timeline = token_ids.shape[1], cache[0], cache.timeline
        # Left to the model: a full cache, for its error message, and several tokens in a ring buffer.
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
        except IndexError:  # a token outside the vocabulary: the model names it in its error
            return None
        timeline.count(seq)
        return logits

    def _cos_sin(self, lengths: Tensor, timeline: Timeline, seq: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the next tokens, (rows or 1, seq, head_dim / 2); kept for some steps unless ragged."""
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
        if not backends.uses_kernels() or len(token_ids) > MAX_ROWS or not self.modules.is_unchanged():
            return False
        self.model.check_cache(cache)
        attention = self.blocks[0].attn
        assert attention.rope is not None
        windows = [block.attn.window for block in self.blocks]
        if not all(layer.needs_no_mask(window) for layer, window in zip(cache.layers, windows, strict=True)):
            return False
        if len(token_ids) != cache.timeline.batch_size:
            return False
        self.most = attention.rope.max_seq_len
        self.known = self._tensors(cache)
        if self.exclusive and self.known is not None:
            self.checked_cache = cache
        return self.known is not None

    def _tensors(self, cache: KVCache) -> Model | None:
        """The current tensors of the model; reused if nothing changed since the last step. None if some are missing."""
        model = self.model
        try:
            tensors = list(map(operator.getitem, self.homes, self.names))
        except KeyError:  # a parameter was removed
            return None
        head = _matrix(model.embedding if model.lm_head is None else model.lm_head)
        others = (model.embedding.weight, model.final_norm.weight, *head)
        stored = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        every = [*tensors, *stored, *(tensor for tensor in others if tensor is not None)]
        if self.tensors.is_unchanged(every) and self.known is not None:
            return self.known
        embedding, norm, *_ = others
        left = iter(tensors)
        layers = [
            _layer([*(None if owner is None else next(left) for owner in owners), layer.keys, layer.values])
            for owners, layer in zip(self.owners, cache.layers, strict=True)
        ]
        return Model(layers, embedding, norm, head, self.sizes)


def _owner(block: nn.Module, name: str) -> tuple[dict[str, Any], str] | None:
    """The dict that holds a tensor, and its key; None if the tensor does not exist."""
    path, _, last = name.rpartition(".")
    module = operator.attrgetter(path)(block)
    if module is None or getattr(module, last, None) is None:
        return None
    is_buffer = isinstance(module, QuantizedLinear) and last != "bias"
    return (module._buffers if is_buffer else module._parameters, last)


def _layer(tensors: list[Any]) -> Layer:
    """The TENSORS of a block, and the keys and values of its cache, grouped as the kernel takes them."""
    pairs = len(MATRICES)
    matrices = tuple(Matrix(*tensors[2 * i : 2 * i + 2]) for i in range(pairs))
    norms, biases, head_norms, cache = (
        tuple(tensors[2 * pairs + start : 2 * pairs + stop]) for start, stop in ((0, 2), (2, 6), (6, 8), (8, 10))
    )
    return Layer(matrices, norms, biases, head_norms, cache)


def _matrix(head: Embedding | Linear | QuantizedLinear) -> Matrix:
    return Matrix(head.weight, head.scale if isinstance(head, QuantizedLinear) else None)
