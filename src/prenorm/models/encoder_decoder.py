"""The encoder-decoder: source tokens -> encoder; target tokens -> decoder that reads it -> logits -> loss."""

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
    """Two ids in, logits out: source ids (..., source_seq), target ids (..., seq) -> logits (..., seq, vocab).

    Pre-norm blocks with LayerNorm, exact GELU and biases, causal in the target. Embeddings are multiplied by
    sqrt(d_model), then positions are added. With tie_embeddings one matrix embeds both sides and is the head.
    `eos_token_ids` are the ids that end a target, () when none is known.
    A folder has the names of our parameters.
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
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        block = (d_model, config.num_heads, config.d_ff, config.dropout, config.eps)
        tied = config.tie_embeddings
        self.embedding = Embedding(config.vocab_size, d_model, **place)
        self.target_embedding = None if tied else Embedding(config.target_vocab_size, d_model, **place)
        self.source_positions = _positions(config, **place)
        self.target_positions = _positions(config, **place)
        self.encoder = TransformerEncoder(config.num_layers, *block, **place)
        self.decoder = TransformerDecoder(config.num_decoder_layers, *block, **place, causal=True)
        self.lm_head = None if tied else Linear(d_model, config.target_vocab_size, **place)
        self.dropout = Dropout(config.dropout)
        for module in self.modules():  # rows of length 1, so that logits of a tied head start at a sensible size
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

        source_segment_ids, target_segment_ids: a negative id is padding. Several documents may be packed into a row
        when both are given: a target document reads the source document of the same id, and nothing else.
        use_checkpointing: as in `TransformerEncoder.forward`, in encoder and decoder.
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
        """The mean cross-entropy in nats a token: targets[t] is the token after target_ids[t]; nothing is shifted here.

        Targets of -100, and those at padding (negative target_segment_ids), are left out of the mean.
        """
        check_gathered(self, "loss")
        check_integers("targets", targets)
        segments = {"source_segment_ids": source_segment_ids, "target_segment_ids": target_segment_ids}
        hidden = self.hidden(source_ids, target_ids, use_checkpointing=use_checkpointing, **segments)
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
        """What the head sees. Arguments as in `forward`."""
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
            self._embed_target(target_ids, _places(target_ids, target_segment_ids)),
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
        """What the encoder makes of the sources, every token seeing all of its document."""
        check_gathered(self, "encode")
        _check_segments("source", segment_ids, source_ids)
        x = self.embedding(source_ids) * math.sqrt(self.config.d_model)
        x = self.dropout(self.source_positions(x, _places(source_ids, segment_ids)))
        return self.encoder(x, use_checkpointing=use_checkpointing, segment_ids=segment_ids)

    def decode(
        self,
        target_ids: Int[Tensor, "batch seq"],
        *,
        cache: DecoderCache,
        segment_ids: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """The logits of `forward` for the target tokens that follow those in `cache`, which has read the sources.

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
        """Encode the sources, and keep every decoder block's keys and values of them, with room for target tokens."""
        check_gathered(self, "make_cache")
        max_seq_len = as_size("max_seq_len", max_seq_len)
        if max_seq_len > self.config.max_seq_len:
            raise RangeError(
                f"a cache can have room for at most the model's max_seq_len = {self.config.max_seq_len} tokens, "
                f"not for {max_seq_len}."
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

        logprobs: give (replies, logprobs), two lists of the same shape.
        """
        check_gathered(self, "generate")
        rows, prompts = self._rows(sources, prompts)
        options = self._decoding({"logprobs": logprobs, **options})
        return decoding.generate(*self._way_to_decode(rows), prompts, **options)

    def stream(
        self, sources: Prompts, prompts: Prompts | None = None, *, logprobs: bool = False, **options: Any
    ) -> Any:
        """One new target id per source a step, None once a target has ended.

        sources: lists of token ids, or integer tensors, of any lengths. prompts: how each target begins, also of any
        lengths; default: the config's start_token_id. Options: as in `TransformerLM.stream`, without a cache or a
        draft; for repetition_penalty only the target's tokens count.
        The model runs in the mode that it is in, so in training with dropout.
        """
        check_gathered(self, "stream")
        rows, prompts = self._rows(sources, prompts)
        options = self._decoding({"logprobs": logprobs, **options})
        return decoding.stream(*self._way_to_decode(rows), prompts, **options)

    def _embed_target(self, target_ids: Tensor, places: Tensor) -> Tensor:
        embedding = self.embedding if self.target_embedding is None else self.target_embedding
        return self.dropout(self.target_positions(embedding(target_ids) * math.sqrt(self.config.d_model), places))

    def _decode(self, target_ids: Tensor, cache: DecoderCache, segment_ids: Tensor | None) -> Tensor:
        if not isinstance(cache, DecoderCache):
            raise ConfigError(f"a decoder takes a DecoderCache, from make_cache, not a {type(cache).__name__}.")
        check_integers("target_ids", target_ids)
        if target_ids.ndim != 2:
            raise ShapeError(f"with a cache target_ids must be (batch, seq), but they are {tuple(target_ids.shape)}.")
        _check_segments("target", segment_ids, target_ids)
        token_positions = cache.arrive(target_ids[..., None], segment_ids).places.clamp_min(0)  # nobody sees padding
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
            raise ShapeError(f"there must be one prompt a source, but {len(prompts)} came with {len(rows)} sources.")
        return rows, prompts

    def _way_to_decode(self, rows: list[list[int]]) -> tuple[NextLogits, Callable[..., Any]]:
        """What gives the logits of the next token for these sources, and what makes its cache."""
        source_ids, source_segment_ids = pad(rows, self.device)

        def make_cache(batch_size: int, max_seq_len: int) -> DecoderCache:
            with torch.inference_mode(), may_gather(self):
                return self.make_cache(source_ids, max_seq_len, source_segment_ids=source_segment_ids)

        def through_forward(token_ids: Tensor, *, segment_ids: Tensor | None, cache: list[list[int]]) -> Tensor:
            marks = torch.zeros_like(token_ids) if segment_ids is None else segment_ids
            for row, ids, real in zip(cache, token_ids.tolist(), (marks >= 0).tolist(), strict=True):
                row += itertools.compress(ids, real)
            target_ids, target_segment_ids = pad(cache, self.device)
            segments = {"source_segment_ids": source_segment_ids, "target_segment_ids": target_segment_ids}
            with may_gather(self):
                return last_of_each_row(self(source_ids, target_ids, **segments), target_segment_ids)

        if self.runs_plainly(OUR_FORWARD):
            return self._next_logits, make_cache
        return through_forward, lambda batch_size, max_seq_len: [[] for _ in rows]  # targets, read anew each time

    def _decoding(self, options: dict[str, Any]) -> dict[str, Any]:
        if options.get("cache") is not None:
            raise ConfigError("the sources make their own cache; leave cache out, or call decode with it.")
        if options.pop("draft", None) is not None:
            raise ConfigError(
                "an EncoderDecoder takes no draft, which would have to read the sources too; leave it out."
            )
        options.pop("cache", None)
        return self._settings(options, vocab_size=self.config.target_vocab_size, max_seq_len=self.config.max_seq_len)


OUR_FORWARD = EncoderDecoder.forward  # whatever may be put in its place later


def _positions(config: EncoderDecoderConfig, **place: Any) -> SinusoidalPositions | LearnedPositions:
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.d_model, config.max_seq_len)
    return LearnedPositions(config.d_model, config.max_seq_len, **place)


def _places(token_ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    """Each token's place in its document."""
    if segment_ids is None:
        return torch.arange(token_ids.shape[-1], device=token_ids.device)
    return document_positions(segment_ids)


def _check_segments(side: str, segment_ids: Tensor | None, token_ids: Tensor) -> None:
    check_integers(f"{side}_ids", token_ids)
    if token_ids.ndim == 0:
        raise ShapeError(f"{side}_ids must be (..., seq), but it is a single number; {side}_ids[None] makes it one.")
    if segment_ids is not None:
        check_segments(segment_ids, token_ids.shape, name=f"{side}_segment_ids")
