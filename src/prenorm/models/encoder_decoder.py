"""The encoder-decoder: source tokens -> encoder; target tokens -> decoder with cross-attention -> logits -> loss."""

import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..checkpoint import encoder_decoder
from ..config import EncoderDecoderConfig
from ..errors import ConfigError, RangeError, ShapeError
from ..generation import decoding
from ..generation.logits import NextLogits
from ..generation.padding import last_of_each_row, pad
from ..generation.prompts import Prompts, check_ids, token_lists
from ..layers.cache import one_pass
from ..layers.decoder_cache import DecoderCache
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding
from ..layers.linear import Linear
from ..layers.positions import LearnedPositions, SinusoidalPositions
from ..layers.sharded import check_gathered, may_gather
from ..ops.documents import check_segments, cross_document_mask, document_positions
from ..ops.integers import check_integers
from ..validation import as_size
from .decoder import TransformerDecoder
from .encoder import TransformerEncoder
from .generative import GenerativeModel


class EncoderDecoder(GenerativeModel):
    """From source ids (..., source_seq) and target ids (..., seq) to logits (..., seq, vocab).

    Pre-norm blocks with LayerNorm, exact GELU and biases, causal in the target. Embeddings are multiplied by
    sqrt(d_model), then positions are added. With tie_embeddings, both embeddings and the head share one matrix.
    `eos_token_ids` are the ids that end a target, () when none is known.
    A saved folder has prenorm's own parameter names.
    Source: Vaswani et al. 2017, arXiv:1706.03762, with the norms before each sublayer.
    """

    checkpoint: ClassVar = encoder_decoder

    def __init__(
        self,
        config: EncoderDecoderConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        block = (d_model, config.num_heads, config.d_ff, config.dropout, config.eps)
        tied = config.tie_embeddings
        self.embedding = Embedding(config.vocab_size, d_model, **factory)
        self.target_embedding = None if tied else Embedding(config.target_vocab_size, d_model, **factory)
        self.source_positions = _positions(config, **factory)
        self.target_positions = _positions(config, **factory)
        self.encoder = TransformerEncoder(config.num_layers, *block, **factory)
        self.decoder = TransformerDecoder(config.num_decoder_layers, *block, **factory, causal=True)
        self.lm_head = None if tied else Linear(d_model, config.target_vocab_size, **factory)
        self.dropout = Dropout(config.dropout)
        for module in self.modules():  # rows of length about 1, so that a tied head's logits start at a sensible scale
            if isinstance(module, Embedding):
                nn.init.normal_(module.weight, std=d_model**-0.5)

    def forward(
        self,
        source_ids: Int[Tensor, "*batch source_seq"],
        target_ids: Int[Tensor, "*batch seq"],
        *,
        source_segment_ids: Int[Tensor, "*batch source_seq"] | None = None,
        target_segment_ids: Int[Tensor, "*batch seq"] | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, "*batch seq vocab"]:
        """The logits of the target token after each target token.

        source_segment_ids, target_segment_ids: a negative id is padding. If both are given, a row may contain several
        packed documents: a target document attends only to the source document with the same id.
        use_checkpointing: as in `TransformerEncoder.forward`, for encoder and decoder.
        Raises RangeError for ids outside the vocabulary and rows longer than max_seq_len, ShapeError and ConfigError.
        """
        segments = {"source_segment_ids": source_segment_ids, "target_segment_ids": target_segment_ids}
        return self._head(self.hidden(source_ids, target_ids, use_checkpointing=use_checkpointing, **segments))

    def loss(
        self,
        source_ids: Int[Tensor, "*batch source_seq"],
        target_ids: Int[Tensor, "*batch seq"],
        targets: Int[Tensor, "*batch seq"],
        *,
        source_segment_ids: Int[Tensor, "*batch source_seq"] | None = None,
        target_segment_ids: Int[Tensor, "*batch seq"] | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, ""]:
        """The mean cross-entropy in nats per token: targets[t] is the token after target_ids[t]; nothing is shifted.

        Targets of -100 and targets at padding (negative target_segment_ids) are ignored. A forward of a subclass, and
        hooks on the model, count.
        """
        check_gathered(self, "loss")
        check_integers("targets", targets)
        options: dict[str, Any] = {"source_segment_ids": source_segment_ids, "target_segment_ids": target_segment_ids}
        options["use_checkpointing"] = use_checkpointing
        if self.gives_other_logits(FORWARD):
            return self._loss_of_call((source_ids, target_ids), options, targets, target_segment_ids)
        hidden = self.hidden(source_ids, target_ids, **options)
        return self._loss(hidden, targets, target_segment_ids, self.config.target_vocab_size)

    def hidden(
        self,
        source_ids: Int[Tensor, "*batch source_seq"],
        target_ids: Int[Tensor, "*batch seq"],
        *,
        source_segment_ids: Int[Tensor, "*batch source_seq"] | None = None,
        target_segment_ids: Int[Tensor, "*batch seq"] | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The hidden states that the head is applied to. Arguments as in `forward`."""
        _check_segments("source", source_segment_ids, source_ids)
        _check_segments("target", target_segment_ids, target_ids)
        if source_ids.shape[:-1] != target_ids.shape[:-1]:
            raise ShapeError(
                "source_ids and target_ids must have the same leading dims, but they are "
                f"{tuple(source_ids.shape)} and {tuple(target_ids.shape)}."
            )
        cross_mask = cross_document_mask(target_segment_ids, source_segment_ids)
        if cross_mask is not None and cross_mask.shape[-1] != source_ids.shape[-1]:
            cross_mask = cross_mask.expand(*cross_mask.shape[:-1], source_ids.shape[-1])
        encoder_output = self.encode(source_ids, segment_ids=source_segment_ids, use_checkpointing=use_checkpointing)
        return self.decoder(
            self._embed_target(target_ids, _default_positions(target_ids, target_segment_ids)),
            encoder_output,
            cross_mask=cross_mask,
            segment_ids=target_segment_ids,
            use_checkpointing=use_checkpointing,
        )

    def encode(
        self,
        source_ids: Int[Tensor, "*batch source_seq"],
        *,
        segment_ids: Int[Tensor, "*batch source_seq"] | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, "*batch source_seq d_model"]:
        """The encoder's output; every source token attends to all of its document."""
        check_gathered(self, "encode")
        _check_segments("source", segment_ids, source_ids)
        x = self.embedding(source_ids) * math.sqrt(self.config.d_model)
        x = self.dropout(self.source_positions(x, _default_positions(source_ids, segment_ids)))
        return self.encoder(x, use_checkpointing=use_checkpointing, segment_ids=segment_ids)

    def decode(
        self,
        target_ids: Int[Tensor, "batch seq"],
        *,
        cache: DecoderCache,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """The logits of `forward` for target tokens that follow those in `cache`, which also holds the encoded sources.

        segment_ids: a negative id is padding; a row is one document.
        """
        check_gathered(self, "decode")
        with one_pass(cache):
            return self._head(self._decode(target_ids, cache, segment_ids))

    def make_cache(
        self,
        source_ids: Int[Tensor, "batch source_seq"],
        max_seq_len: int,
        *,
        source_segment_ids: Int[Tensor, "batch source_seq"] | None = None,
        dtype: torch.dtype | None = None,
    ) -> DecoderCache:
        """A cache with every block's keys and values of the encoded sources, and room for max_seq_len target tokens."""
        check_gathered(self, "make_cache")
        max_seq_len = as_size("max_seq_len", max_seq_len)
        if max_seq_len > self.config.max_seq_len:
            raise RangeError(
                f"a cache can hold at most the model's max_seq_len = {self.config.max_seq_len} tokens, not "
                f"{max_seq_len}."
            )
        check_integers("source_ids", source_ids)
        if source_ids.ndim != 2:
            raise ShapeError(f"with a cache source_ids must be (batch, seq), but they are {tuple(source_ids.shape)}.")
        encoder_output = self.encode(source_ids, segment_ids=source_segment_ids)
        cross_mask = cross_document_mask(None, source_segment_ids)
        return self.decoder.make_cache(encoder_output, max_seq_len, cross_mask, dtype)

    def generate(
        self, sources: Prompts, prompts: Prompts | None = None, *, logprobs: bool = False, **options: Any
    ) -> Any:
        """A list of new target ids for each source; options, defaults and errors are those of `stream`.

        logprobs: return (replies, logprobs), two lists of the same shape.
        """
        check_gathered(self, "generate")
        rows, prompts = self._rows(sources, prompts)
        options = self._decoding({"logprobs": logprobs, **options})
        return decoding.generate(*self._way_to_decode(rows), prompts, **options)

    def stream(
        self, sources: Prompts, prompts: Prompts | None = None, *, logprobs: bool = False, **options: Any
    ) -> Any:
        """One new target id per source at each step, None once a target has ended.

        sources: lists of token ids, or integer tensors, of any lengths. prompts: the first tokens of each target, also
        of any lengths; default: the config's start_token_id. Options: as in `TransformerLM.stream`, except cache and
        draft; repetition_penalty counts only the target's tokens.
        The model's mode is not changed: in training mode, dropout applies.
        """
        check_gathered(self, "stream")
        rows, prompts = self._rows(sources, prompts)
        options = self._decoding({"logprobs": logprobs, **options})
        return decoding.stream(*self._way_to_decode(rows), prompts, **options)

    def _embed_target(self, target_ids: Tensor, token_positions: Tensor) -> Tensor:
        embedding = self.embedding if self.target_embedding is None else self.target_embedding
        return self.dropout(
            self.target_positions(embedding(target_ids) * math.sqrt(self.config.d_model), token_positions)
        )

    def _decode(self, target_ids: Tensor, cache: DecoderCache, segment_ids: Tensor | None) -> Tensor:
        if not isinstance(cache, DecoderCache):
            raise ConfigError(f"a decoder takes a DecoderCache, from make_cache, not a {type(cache).__name__}.")
        check_integers("target_ids", target_ids)
        if target_ids.ndim != 2:
            raise ShapeError(f"with a cache target_ids must be (batch, seq), but they are {tuple(target_ids.shape)}.")
        _check_segments("target", segment_ids, target_ids)
        arrival = cache.arrive(target_ids[..., None], segment_ids)
        token_positions = arrival.cache_positions.clamp_min(0)  # any position will do for padding
        return self.decoder(self._embed_target(target_ids, token_positions), segment_ids=segment_ids, cache=cache)

    def _next_logits(
        self, token_ids: Int[Tensor, "batch seq"], *, segment_ids: Int[Tensor, "batch seq"] | None, cache: DecoderCache
    ) -> Float[Tensor, "batch vocab"]:
        with may_gather(self), one_pass(cache):
            hidden = self._decode(token_ids, cache, segment_ids)
            return self._head(last_of_each_row(hidden, segment_ids))

    def _rows(self, sources: Prompts, prompts: Prompts | None) -> tuple[list[list[int]], Prompts]:
        rows = token_lists(sources, "source")
        check_ids(rows, self.config.vocab_size, "source")
        longest = max(map(len, rows), default=0)
        if longest > self.config.max_seq_len:
            raise RangeError(
                f"a source must have at most max_seq_len = {self.config.max_seq_len} tokens, but one has {longest}."
            )
        prompts = [[self.config.start_token_id]] * len(rows) if prompts is None else token_lists(prompts)
        if len(prompts) != len(rows):
            raise ShapeError(
                f"there must be one prompt per source, but there are {len(prompts)} prompts and {len(rows)} sources."
            )
        return rows, prompts

    def _way_to_decode(self, rows: list[list[int]]) -> tuple[NextLogits, Callable[..., Any]]:
        """A function for the logits of the next token given these sources, and one that makes its cache."""
        source_ids, source_segment_ids = pad(rows, self.device)

        def make_cache(batch_size: int, max_seq_len: int) -> DecoderCache:
            with torch.inference_mode(), may_gather(self):
                return self.make_cache(source_ids, max_seq_len, source_segment_ids=source_segment_ids)

        def through_forward(token_ids: Tensor, *, segment_ids: Tensor | None, cache: list[list[int]]) -> Tensor:
            marks = torch.zeros_like(token_ids) if segment_ids is None else segment_ids
            for row, ids, is_token in zip(cache, token_ids.tolist(), (marks >= 0).tolist(), strict=True):
                row += itertools.compress(ids, is_token)
            target_ids, target_segment_ids = pad(cache, self.device)
            segments = {"source_segment_ids": source_segment_ids, "target_segment_ids": target_segment_ids}
            with may_gather(self):
                return last_of_each_row(self(source_ids, target_ids, **segments), target_segment_ids)

        if self.runs_unmodified(FORWARD):
            return self._next_logits, make_cache
        return through_forward, lambda batch_size, max_seq_len: [[] for _ in rows]  # the targets, reread at each step

    def _decoding(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("cache") is not None:
            raise ConfigError("generate and stream make their own cache; leave cache out, or call decode with it.")
        if options.pop("draft", None) is not None:
            raise ConfigError(
                "an EncoderDecoder does not support a draft, which would have to read the sources too; leave it out."
            )
        options.pop("cache", None)
        return self._settings(options, vocab_size=self.config.target_vocab_size, max_seq_len=self.config.max_seq_len)


FORWARD = EncoderDecoder.forward  # kept, so that a later replacement is noticed


def _positions(config: EncoderDecoderConfig, **factory: Any) -> SinusoidalPositions | LearnedPositions:
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.d_model, config.max_seq_len)
    return LearnedPositions(config.d_model, config.max_seq_len, **factory)


def _default_positions(token_ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Each token's position in its document."""
    if segment_ids is None:
        return torch.arange(token_ids.shape[-1], device=token_ids.device)
    return document_positions(segment_ids)


def _check_segments(side: str, segment_ids: Tensor | None, token_ids: Tensor) -> None:
    check_integers(f"{side}_ids", token_ids)
    if token_ids.ndim == 0:
        raise ShapeError(f"{side}_ids must be (..., seq), but it is a single number; {side}_ids[None] makes it one.")
    if segment_ids is not None:
        check_segments(segment_ids, token_ids.shape, name=f"{side}_segment_ids")
