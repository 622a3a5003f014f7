"""The language model: tokens -> embedding -> blocks -> norm -> logits -> loss."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..blocks import transformer
from ..blocks.activation_checkpointing import run_block
from ..blocks.families import block as family_block
from ..blocks.families.stack import family_blocks
from ..blocks.plan import plan_for
from ..blocks.transformer import TransformerBlock
from ..checkpoint import folder
from ..config import ModelConfig
from ..errors import ConfigError, RangeError, ShapeError
from ..generation import decoding
from ..generation.logits import NextLogits
from ..generation.native_decode.decoder import native_decoder
from ..generation.native_decode.supported import has_classic_layers
from ..generation.padding import last_of_each_row
from ..generation.prompts import token_lists
from ..generation.speculation import DRAFT_TOKENS, Speculation
from ..layers.cache import KVCache, one_pass
from ..layers.embedding import Embedding
from ..layers.family_norm import family_norm
from ..layers.linear import Linear
from ..layers.norm import RMSNorm
from ..layers.plan import Call
from ..layers.positions import LearnedPositions
from ..layers.quantized import QuantizedLinear
from ..layers.rope import RotaryEmbedding
from ..layers.scaled_embedding import ScaledEmbedding
from ..layers.sharded import check_gathered, has_sharded, may_gather
from ..ops.documents import check_segments, document_mask, document_positions
from ..ops.integers import check_integers
from ..validation import as_size
from .generative import GenerativeModel
from .init import initialise
from .quantize import quantize_


class TransformerLM(GenerativeModel):
    """A causal language model of pre-norm blocks, from token ids (..., seq) to logits (..., seq, vocab_size).

    With tie_embeddings the head is the embedding's weight, and there is no lm_head.
    `eos_token_ids` are the ids that end a text, () when none is known.
    Saved folders have Hugging Face's layout.
    """

    checkpoint: ClassVar = folder

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        family, sizes = config.family, (config.vocab_size, config.d_model)
        if family is None:
            self.embedding = Embedding(*sizes, device=device, dtype=dtype)
            self.layers = _blocks(config, device, dtype)
        else:
            self.embedding = ScaledEmbedding(*sizes, family.embedding_scale, device=device, dtype=dtype)
            self.layers = family_blocks(config, family, device, dtype)
        self.positions = None
        if family is not None and family.learned_positions:
            self.positions = LearnedPositions(config.d_model, config.max_seq_len, device=device, dtype=dtype)
        norm = RMSNorm if family is None else partial(family_norm, family)
        self.final_norm = norm(config.d_model, config.eps, device=device, dtype=dtype)
        self.lm_head: Linear | QuantizedLinear | None = (
            None if config.tie_embeddings else Linear(config.d_model, config.vocab_size, device=device, dtype=dtype)
        )
        initialise(self, config.num_layers)

    def forward(
        self,
        token_ids: Int[Tensor, "*batch seq"],
        token_positions: Int[Tensor, "*positions seq"] | None = None,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: KVCache | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, "*batch seq vocab"]:
        """The logits of the token after each token. Arguments as in `TransformerBlock.forward`.

        use_checkpointing: in training without a cache, keep only the inputs of all blocks (True) or of every k-th block
        (k), and run those blocks again in the backward pass; results are the same bit for bit.
        Raises RangeError for ids outside the vocabulary, and whatever the block raises.
        """
        options: dict[str, Any] = {"segment_ids": segment_ids, "use_checkpointing": use_checkpointing}
        with one_pass(cache):
            return self._head(self.hidden(token_ids, token_positions, cache=cache, **options))

    def hidden(
        self,
        token_ids: Int[Tensor, "*batch seq"],
        token_positions: Int[Tensor, "*positions seq"] | None = None,
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        cache: KVCache | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, "*batch seq d_model"]:
        """The hidden states that the head is applied to, after the final norm. Arguments as in `forward`."""
        check_integers("token ids", token_ids)
        if token_ids.ndim == 0:
            raise ShapeError("token_ids must be (..., seq), but it is a single number; token_ids[None] makes it one.")
        if cache is not None:
            self.check_cache(cache)
            if token_ids.ndim != 2:
                raise ShapeError(f"with a cache token_ids must be (batch, seq), but they are {tuple(token_ids.shape)}.")
        mask = None
        if segment_ids is not None:
            check_segments(segment_ids, token_ids.shape)
        if segment_ids is not None and cache is None and not self._asks_for_lengths():
            # Documents are the same in every block, so the mask is computed once.
            mask = document_mask(segment_ids)
            token_positions = document_positions(segment_ids) if token_positions is None else token_positions
            segment_ids = None
        with one_pass(cache):
            x = self.embedding(token_ids)
            call = Call(x, token_positions, mask=mask, segment_ids=segment_ids, cache=cache)
            if self.positions is not None:
                x = self.positions(x, call.positions(self.config.max_seq_len))
            forward = transformer.FORWARD if self.config.family is None else family_block.FORWARD
            for i, block in enumerate(self.layers):
                layer = None if cache is None else cache[i]
                options = plan_for(block, forward, "attn", x, call, layer)
                if segment_ids is not None:
                    options["segment_ids"] = segment_ids
                if layer is None:
                    options["mask"] = mask
                    x = run_block(block, i, x, token_positions, use_checkpointing=use_checkpointing, **options)
                else:  # never checkpointed: running twice would store the tokens twice
                    x = block(x, token_positions, cache=layer, **options)
            x = self.final_norm(x)
            call.done()
            return x

    def loss(
        self,
        token_ids: Int[Tensor, "*batch seq"],
        targets: Int[Tensor, "*batch seq"],
        *,
        segment_ids: Int[Tensor, "*batch seq"] | None = None,
        use_checkpointing: bool | int = False,
    ) -> Float[Tensor, ""]:
        """The mean cross-entropy in nats per token: targets[t] is the token after token_ids[t]; nothing is shifted.

        Targets of -100 and targets at padding (negative segment_ids) are ignored. The logits of a long sequence are
        never all in memory at once; in training, that requires the head to be a plain prenorm `Linear` or the
        embedding. A forward of a subclass, and hooks on the model, count: the loss is then that of their logits, whole.
        use_checkpointing: as in `forward`.
        """
        check_gathered(self, "loss")
        check_integers("targets", targets)
        options: dict[str, Any] = {"segment_ids": segment_ids, "use_checkpointing": use_checkpointing}
        if self.gives_other_logits(FORWARD):
            return self._loss_of_call((token_ids,), options, targets, segment_ids)
        hidden = self.hidden(token_ids, **options)
        return self._loss(hidden, targets, segment_ids, self.config.vocab_size)

    def quantize(self, kind: str) -> "TransformerLM":
        """Quantise all matrices except the embedding to "int8" or "int4", in place, and return the model.

        Each group of 32 weights in a row shares a bfloat16 scale: 8.5 or 4.5 bits per weight. On a CPU, decoding gets
        faster roughly in proportion to the bytes saved. Activations are rounded to 8 bits before each product, token by
        token. `save_pretrained` and `from_pretrained` keep the integers.

        The model can no longer be trained: it is put in eval mode, and its parameters no longer require gradients. A
        tied head becomes a matrix of its own.
        Raises ConfigError for other kinds, a model that is already quantised, weights that are not finite, and layers
        with hooks or a forward of their own; the model is then unchanged.
        """
        quantize_(self, kind)
        return self

    def make_cache(
        self, batch_size: int, max_seq_len: int, dtype: torch.dtype | None = None, *, rewind: int = 0
    ) -> KVCache:
        """An empty KV cache with room for max_seq_len tokens per row. Arguments as in `SelfAttention.make_cache`."""
        max_seq_len = as_size("max_seq_len", max_seq_len)
        if max_seq_len > self.config.max_seq_len:
            raise RangeError(
                f"a cache can hold at most the model's max_seq_len = {self.config.max_seq_len} tokens, not "
                f"{max_seq_len}."
            )
        blocks = cast("list[TransformerBlock]", self.layers)
        return KVCache([block.make_cache(batch_size, max_seq_len, dtype, rewind=rewind) for block in blocks])

    def check_cache(self, cache: object) -> None:
        """Raise ConfigError or ShapeError unless it is a cache that fits this model."""
        if not isinstance(cache, KVCache):
            raise ConfigError(f"a model takes a KVCache, from make_cache, not a {type(cache).__name__}.")
        cache.check(len(self.layers))

    @overload
    def generate(
        self, prompts: decoding.Prompts, *, logprobs: Literal[False] = False, **options: Any
    ) -> list[list[int]]: ...
    @overload
    def generate(
        self, prompts: decoding.Prompts, *, logprobs: Literal[True], **options: Any
    ) -> tuple[list[list[int]], list[list[float]]]: ...
    def generate(self, prompts: decoding.Prompts, *, logprobs: bool = False, **options: Any) -> Any:
        """A list of new token ids for each prompt; options, defaults and errors are those of `stream`.

        logprobs: return (replies, logprobs), two lists of the same shape.
        """
        check_gathered(self, "generate")
        rows = token_lists(prompts)
        options = self._decoding(rows, logprobs=logprobs, exclusive=True, **options)
        return decoding.generate(self._decoder(exclusive=True), self.make_cache, rows, **options)

    @overload
    def stream(
        self, prompts: decoding.Prompts, *, logprobs: Literal[False] = False, **options: Any
    ) -> Iterator[decoding.Step]: ...
    @overload
    def stream(
        self, prompts: decoding.Prompts, *, logprobs: Literal[True], **options: Any
    ) -> Iterator[tuple[decoding.Step, decoding.Logprobs]]: ...
    def stream(self, prompts: decoding.Prompts, *, logprobs: bool = False, **options: Any) -> Any:
        """One new token id per prompt at each step, None once a prompt has ended.

        prompts: lists of token ids, or integer tensors, of any lengths. Options: max_new_tokens=128, temperature=1.0
        (0 = greedy), top_k=None, top_p=None, min_p=None, repetition_penalty=None, seed=None (an int, or one per
        prompt), eos_token_id=None (the model's eos_token_ids), stop=() (sequences of ids). See
        `prenorm.generation.decoding.stream`.
        logprobs: yield (tokens, logprobs) at each step: natural logs of the model's own probabilities, before penalty,
        temperature and truncation.
        cache: from `make_cache`, owned by the caller; the prompts then continue after its tokens. repetition_penalty
        counts only these prompts and their replies.
        draft: a smaller TransformerLM with the same vocabulary that proposes draft_tokens=4 tokens at a time, which
        this model verifies in one call. Greedy replies are the same as without it. Sampled replies have the same
        distribution, but a given seed yields other tokens, which also depend on draft_tokens and max_new_tokens. Cannot
        be combined with `cache`. See `prenorm.generation.speculation`.
        """
        check_gathered(self, "stream")
        rows = token_lists(prompts)
        options = self._decoding(rows, logprobs=logprobs, **options)
        return decoding.stream(self._decoder(), self.make_cache, rows, **options)

    def _next_logits(
        self,
        token_ids: Int[Tensor, "batch seq"],
        *,
        segment_ids: Int[Tensor, "batch seq"] | None,
        cache: KVCache,
    ) -> Float[Tensor, "batch vocab"]:
        if segment_ids is not None:
            # segment_ids only mark padding here: each row continues the document in its cache.
            documents = cache.documents.clone()
            segment_ids = torch.where(segment_ids >= 0, documents.clamp_min(0)[:, None], -1)
        with may_gather(self), one_pass(cache):
            if self.runs_unmodified(FORWARD):  # the head is applied only to each row's last token
                hidden = self.hidden(token_ids, segment_ids=segment_ids, cache=cache)
                logits = self._head(last_of_each_row(hidden, segment_ids))
            else:
                logits = last_of_each_row(self(token_ids, segment_ids=segment_ids, cache=cache), segment_ids)
        if segment_ids is not None:
            cache.documents.copy_(documents)
        return logits

    def _decoding(
        self,
        rows: list[list[int]],
        *,
        cache: KVCache | None = None,
        draft: object = None,
        draft_tokens: int | None = None,
        exclusive: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        max_seq_len, held = self.config.max_seq_len, None
        if cache is not None:
            self.check_cache(cache)
            cache.timeline.check_batch(len(rows))
            max_seq_len, held = cache.timeline.max_seq_len, cache.lengths.tolist()
        settings = self._settings(options, vocab_size=self.config.vocab_size, max_seq_len=max_seq_len)
        speculation = self._speculation(draft, draft_tokens, exclusive=exclusive)
        return settings | {"cache": cache, "held": held, "speculation": speculation}

    def _decoder(self, *, exclusive: bool = False) -> NextLogits:
        """The function that decoding calls for the next logits. exclusive: no other code runs between steps."""
        is_unmodified = type(self) is TransformerLM and self.runs_unmodified(FORWARD)
        return native_decoder(self, self._next_logits, exclusive=exclusive) if is_unmodified else self._next_logits

    @property
    def decodes_layer_by_layer(self) -> bool:
        """Whether it has what the kernel of decoding has no code for. See `prenorm.explain`."""
        return not has_classic_layers(self.config)

    def _asks_for_lengths(self) -> bool:
        """Whether rotary frequencies depend on the length of a document; blocks then need the segment_ids."""
        family = self.config.family
        scalings = (self.config.rope_scaling, None if family is None else family.window_rope_scaling)
        return any(scaling is not None and scaling.by_length for scaling in scalings)

    def _speculation(self, draft: object, draft_tokens: int | None, *, exclusive: bool) -> Speculation | None:
        if draft is None:
            if draft_tokens is not None:
                raise ConfigError("draft_tokens needs a draft; give one, or leave draft_tokens out.")
            return None
        if not isinstance(draft, TransformerLM):
            raise ConfigError(f"a draft must be a TransformerLM, not a {type(draft).__name__}.")
        if has_sharded(self) or has_sharded(draft):
            raise ConfigError(
                "a draft and its model need whole weights, but some are sharded (DTensor); leave the draft out."
            )
        here, there = self.device, draft.device
        if here != there:
            raise ConfigError(
                f"a draft must be on the model's device, {here}, but it is on {there}; draft.to('{here}') would do."
            )
        return Speculation(
            all_logits=self,
            draft_logits=draft._decoder(exclusive=exclusive),
            make_draft_cache=draft.make_cache,
            draft_vocab_size=draft.config.vocab_size,
            draft_max_seq_len=draft.config.max_seq_len,
            draft_tokens=DRAFT_TOKENS if draft_tokens is None else draft_tokens,
        )


FORWARD = TransformerLM.forward  # kept, so that a later replacement is noticed


def _blocks(config: ModelConfig, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.ModuleList:
    angles = (config.rope_theta, config.rope_interleaved, config.rope_scaling)
    rope = RotaryEmbedding(config.head_dim, config.max_seq_len, *angles, device=device)
    same = ("eps", "num_kv_heads", "head_dim", "window", "qk_norm", "qkv_bias", "o_bias", "dropout")
    options: dict[str, Any] = {name: getattr(config, name) for name in same}
    sizes = (config.d_model, config.num_heads, config.d_ff)
    options |= {"device": device, "dtype": dtype, "causal": True, "rope": rope}
    return nn.ModuleList(TransformerBlock(*sizes, **options) for _ in range(config.num_layers))
