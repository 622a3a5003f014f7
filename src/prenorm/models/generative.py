"""What the language model and the encoder-decoder share: the head and its loss, generation options, model folders."""

import inspect
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..checkpoint.mapped import Versions, check_unchanged
from ..checkpoint.together import Source
from ..checkpoint.whole import whole_tensors, written_once
from ..errors import ConfigError, ShapeError
from ..generation import decoding
from ..layers.embedding import Embedding
from ..layers.linear import Linear
from ..layers.plan import is_untouched
from ..layers.quantized import QuantizedLinear, kind_of, prepare
from ..layers.rope import RotaryEmbedding
from ..layers.sharded import is_spread
from ..ops.cross_entropy import IGNORED, chunked_cross_entropy, cross_entropy, linear_cross_entropy
from ..ops.linear import linear
from ..private_torch import has_any_global_hook
from .settings import check_settings

Model = TypeVar("Model", bound="GenerativeModel")
LINEAR_FORWARD = Linear.forward  # kept, so that a later replacement is noticed


class GenerativeModel(nn.Module):
    """A model with an embedding and a head; without an `lm_head`, the head is the embedding's weight.

    `eos_token_ids` are the ids that end a text, () when none is known.
    """

    checkpoint: ClassVar[ModuleType]  # reads and writes its folders
    config: Any
    embedding: Embedding
    lm_head: Linear | QuantizedLinear | None
    eos_token_ids: tuple[int, ...] = ()
    came_from: Source | None = None  # the contents of the folder that it was loaded from
    mapped: Versions = MappingProxyType({})  # the files that its weights may be views of

    @property
    def device(self) -> torch.device:
        """The device of its parameters."""
        return next(self.parameters()).device

    def runs_unmodified(self, forward: Callable[..., Any]) -> bool:
        """Whether calling the model runs only this forward, without hooks, so that decoding may bypass the call."""
        is_hooked = self._forward_hooks or has_any_global_hook()
        return is_untouched(self, forward) and _is_called_as_usual(self) and not is_hooked

    def gives_other_logits(self, forward: Callable[..., Any]) -> bool:
        """Whether calling the model may give other logits than this forward, so that the loss needs those of a call.

        False while the forward that replaces it is running, which gives the loss and is asking for it here. False for a
        model that is spread over processes, too: its forward and hooks only gather weights.
        """
        is_replaced = "forward" in vars(self) or type(self).forward is not forward
        if not (is_replaced or self._forward_hooks or self._forward_pre_hooks):
            return False
        return not is_spread(self) and not _is_running(self.forward)

    @property
    def head_weight(self) -> Float[Tensor, "vocab d_model"]:
        """The weight that maps hidden states to logits. Raises ConfigError if it is quantised."""
        if isinstance(self.lm_head, QuantizedLinear):
            raise ConfigError("a quantised head has no floating-point weight; call lm_head to multiply by it.")
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @classmethod
    def from_pretrained(
        cls: type[Model], folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Model:
        """The model in a folder written by `save_pretrained`, or by another program in the same layout, in eval mode.

        dtype None: as stored, unless matrices are stored in several. Raises CheckpointError, by name, for anything in
        the folder that is missing, unexpected or not understood, and for weights beyond the range of dtype.
        """
        loaded = cls.checkpoint.load(folder, dtype=dtype, device=device)
        with torch.device("meta"):  # no memory and no random numbers for weights that are about to be replaced
            model = cls(loaded.config)
            if loaded.kind is not None:
                prepare(model, loaded.kind)
        model.load_state_dict(loaded.tensors, assign=True)
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                module.dtype_tag = model.embedding.weight.new_empty(0)
            if isinstance(module, RotaryEmbedding):
                module.to(model.device)
        model.eos_token_ids, model.came_from, model.mapped = loaded.eos_token_ids, loaded.source, loaded.mapped
        return model.requires_grad_(loaded.kind is None).eval()

    def save_pretrained(self, folder: str | Path, *, max_shard_size: int | str | None = None) -> None:
        """Write config.json and model.safetensors. Raises CheckpointError, also for modules that are not the config's.

        max_shard_size: the most bytes of weights in a file, a number or a text such as "5GB"; where they are more,
        there are several files and an index. A model that was opened from a folder takes its generation_config.json
        and the files of its tokenizer along.
        A model that is sharded over processes is saved by all of them together: each gathers it, the first one writes.
        """
        check_unchanged(self.mapped)
        check_settings(self, next(cls for cls in type(self).__mro__ if "checkpoint" in vars(cls)), self.config)
        kind = kind_of(self)
        given = {"kind": kind, "came_from": self.came_from, "max_shard_size": max_shard_size}
        options = {name: value for name, value in given.items() if value is not None}
        state_dict = self.state_dict()
        tensors = whole_tensors(state_dict)
        with written_once(state_dict) as writes:
            if writes:
                self.checkpoint.save(folder, self.config, tensors, eos_token_ids=self.eos_token_ids, **options)

    def _head(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """The logits."""
        logits = linear(hidden, self.embedding.weight) if self.lm_head is None else self.lm_head(hidden)
        return self._finish(logits)

    def _finish(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The logits, divided and soft-capped as the model's family requires."""
        family = getattr(self.config, "family", None)
        if family is None:
            return logits
        if family.logit_divisor != 1:
            logits = logits / family.logit_divisor
        cap = family.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()

    def _loss(
        self,
        hidden: Float[Tensor, "*batch seq d_model"],
        targets: Int[Tensor, "*batch seq"],
        segment_ids: Int[Tensor, "*batch seq"] | None,
        vocab_size: int,
    ) -> Float[Tensor, ""]:
        """The cross-entropy of the head's logits, ignoring targets at padding."""
        targets = _without_padding(targets, segment_ids)
        if self._head_is_matmul():
            return linear_cross_entropy(hidden, self.head_weight, targets)
        if self.lm_head is None or _is_row_by_row(self.lm_head):
            return chunked_cross_entropy(self._head, hidden, targets, vocab_size=vocab_size)
        return cross_entropy(self._head(hidden), targets)

    def _loss_of_call(
        self, ids: tuple[Tensor, ...], options: dict[str, Any], targets: Tensor, segment_ids: Tensor | None
    ) -> Tensor:
        """The cross-entropy of the logits that calling the model gives, ignoring targets at padding.

        Only options that ask for something are passed on, because a subclass's forward need not know the others.
        """
        logits = self(*ids, **{name: value for name, value in options.items() if not (value is None or value is False)})
        if not isinstance(logits, Tensor) or logits.shape[:-1] != targets.shape:
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ShapeError(
                f"the loss is that of the logits (..., seq, vocab) that this model's own forward or hook gives for "
                f"targets {tuple(targets.shape)}, but it gives {shape}; ModelWithLoss(model) has a forward that gives "
                "the loss."
            )
        return cross_entropy(logits, _without_padding(targets, segment_ids))

    def _head_is_matmul(self) -> bool:
        """Whether the logits are just a product with the head's weight, so that the loss needs no logits."""
        return not self._finishes() and (self.lm_head is None or _is_matmul(self.lm_head))

    def _finishes(self) -> bool:
        """Whether `_finish` changes the logits."""
        family = getattr(self.config, "family", None)
        return family is not None and (family.logit_divisor != 1 or family.logit_softcap is not None)

    def _settings(self, options: dict[str, Any], *, vocab_size: int, max_seq_len: int) -> dict[str, Any]:
        """The arguments of `decoding.stream`, with the user's options. Raises ConfigError for unknown options."""
        decoding.check_options(options)
        check_unchanged(self.mapped)
        return {
            "vocab_size": vocab_size,
            "max_seq_len": max_seq_len,
            "device": self.device,
            **options,
            "eos_token_id": self.eos_token_ids if options.get("eos_token_id") is None else options["eos_token_id"],
        }


def _without_padding(targets: Tensor, segment_ids: Tensor | None) -> Tensor:
    """The targets, those at padding marked as ignored."""
    if segment_ids is None or targets.shape != segment_ids.shape:  # other shapes are refused with the targets
        return targets
    return targets.masked_fill(segment_ids < 0, IGNORED)


def _is_matmul(head: nn.Module) -> bool:
    """Whether calling the head is just a product with its weight, without bias or hooks, so the loss may bypass it."""
    hooked = head._forward_hooks or head._backward_hooks or head._backward_pre_hooks or has_any_global_hook()
    is_linear = is_untouched(head, LINEAR_FORWARD) and _is_called_as_usual(head)
    return is_linear and cast(Linear, head).bias is None and not hooked


def _is_row_by_row(head: nn.Module) -> bool:
    """Whether the head is known to map each token alone, so that it may be called on some of them at a time."""
    known = (LINEAR_FORWARD, QuantizedLinear.forward, nn.Linear.forward)
    hooked = head._forward_hooks or head._forward_pre_hooks
    return type(head).forward in known and "forward" not in vars(head) and not hooked


def _is_called_as_usual(module: nn.Module) -> bool:
    """Whether its class has no `__call__` of its own."""
    return type(module).__call__ is nn.Module.__call__


def _is_running(forward: Callable[..., Any]) -> bool:
    """Whether this function is running now, somewhere up the stack."""
    code, frame = getattr(inspect.unwrap(forward), "__code__", None), inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
