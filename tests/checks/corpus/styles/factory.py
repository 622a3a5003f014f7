"""Over-engineered: a frozen configuration, a registry of parts, abstract classes, and a factory function at the end."""

from ..editing import Style

STYLE = Style(
    "factory",
    "make_block",
    '''from __future__ import annotations

import abc
import dataclasses
import enum
import typing as tp

import torch
import torch.nn as nn
import torch.nn.functional as F


class Pairing(enum.Enum):
    NEIGHBOURS = "neighbours"
    HALVES = "halves"


@dataclasses.dataclass(frozen=True)
class RotaryConfig:
    base: float = 10000.0
    max_positions: int = 2048
    pairing: Pairing = Pairing.NEIGHBOURS


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    width: int
    heads: int
    hidden: int
    kv_heads: int
    causal: bool = True
    norm_eps: float = 1e-5
    rotary: RotaryConfig = dataclasses.field(default_factory=RotaryConfig)
    device: tp.Any = None
    dtype: tp.Any = None

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def factory(self) -> dict[str, tp.Any]:
        return {"device": self.device, "dtype": self.dtype}


class Sublayer(nn.Module, abc.ABC):
    """Something that stands beside the residual stream."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.config = config

    @abc.abstractmethod
    def forward(self, stream: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor: ...


class RootMeanSquareNorm(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.epsilon = config.norm_eps
        self.gamma = nn.Parameter(torch.ones(config.width, **config.factory))

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        precise = stream.to(torch.promote_types(stream.dtype, torch.float32))
        power = precise.square().mean(dim=-1, keepdim=True)
        return (self.gamma * (precise * (power + self.epsilon).rsqrt())).to(stream.dtype)


class RotaryEncoder(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.pairing = config.rotary.pairing
        steps = torch.arange(0, config.head_width, 2, device=config.device, dtype=torch.float64) / config.head_width
        rates = torch.exp2(-steps * torch.log2(torch.tensor(config.rotary.base, dtype=torch.float64)).item())
        angles = torch.arange(config.rotary.max_positions, device=config.device)[:, None] * rates
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, vectors: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cosines, sines = self.cosines[positions].unsqueeze(-3), self.sines[positions].unsqueeze(-3)
        if self.pairing is Pairing.NEIGHBOURS:
            left, right = vectors[..., ::2], vectors[..., 1::2]
        else:
            left, right = vectors.chunk(2, dim=-1)
        turned = (left * cosines - right * sines, left * sines + right * cosines)
        if self.pairing is Pairing.NEIGHBOURS:
            joined = torch.stack(turned, dim=-1).flatten(-2)
        else:
            joined = torch.cat(turned, dim=-1)
        return joined.to(vectors.dtype)


class AttentionSublayer(Sublayer):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        kv_width = config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, config.width, bias=False, **config.factory)
        self.key = nn.Linear(config.width, kv_width, bias=False, **config.factory)
        self.value = nn.Linear(config.width, kv_width, bias=False, **config.factory)
        self.mix = nn.Linear(config.width, config.width, bias=False, **config.factory)
        self.rotary = RotaryEncoder(config)

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(-1, (-1, self.config.head_width)).transpose(-2, -3)

    def forward(self, stream: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        queries, keys, values = (self._heads(layer(stream)) for layer in (self.query, self.key, self.value))
        queries, keys = self.rotary(queries, positions), self.rotary(keys, positions)
        # every key-value head serves several query heads: batch the latter
        groups = self.config.heads // self.config.kv_heads
        queries = queries.unflatten(-3, (-1, groups))
        scores = queries @ keys.unsqueeze(-3).mT / self.config.head_width**0.5
        if self.config.causal:
            index = torch.arange(stream.shape[-2], device=stream.device)
            scores = scores.masked_fill(index[None, :] > index[:, None], float("-inf"))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        probabilities = F.softmax(scores, dim=-1)
        heads = (probabilities @ values.unsqueeze(-3)).flatten(-4, -3)
        return self.mix(heads.transpose(-2, -3).flatten(-2))


class FeedForwardSublayer(Sublayer):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.width, config.hidden, bias=False, **config.factory)
        self.value = nn.Linear(config.width, config.hidden, bias=False, **config.factory)
        self.contract = nn.Linear(config.hidden, config.width, bias=False, **config.factory)

    def forward(self, stream: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return self.contract(F.silu(self.gate(stream)) * self.value(stream))


class Residual(nn.Module):
    """stream + sublayer(norm(stream))."""

    def __init__(self, config: BlockConfig, sublayer: type[Sublayer]) -> None:
        super().__init__()
        self.norm = RootMeanSquareNorm(config)
        self.sublayer = sublayer(config)

    def forward(self, stream: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return stream + self.sublayer(self.norm(stream), positions, mask)


class Block(nn.Module):
    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Residual(config, kind) for kind in (AttentionSublayer, FeedForwardSublayer))

    def forward(
        self, x: torch.Tensor, token_positions: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        positions = token_positions
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        for stage in self.stages:
            x = stage(x, positions, mask)
        return x


def make_block(
    d_model: int,
    num_heads: int,
    d_ff: int,
    *,
    num_kv_heads: int | None = None,
    max_seq_len: int = 2048,
    rope_theta: float = 10000.0,
    eps: float = 1e-5,
    causal: bool = True,
    device: tp.Any = None,
    dtype: tp.Any = None,
) -> Block:
    """The one function that others should call."""
    rotary = RotaryConfig(base=rope_theta, max_positions=max_seq_len)
    config = BlockConfig(
        d_model, num_heads, d_ff, num_kv_heads or num_heads, causal, eps, rotary, device=device, dtype=dtype
    )
    return Block(config)
''',
)

NOT_CAUSAL = STYLE.right("both_ways", ("    causal: bool = True,\n", "    causal: bool = False,\n"))
HALVES = STYLE.right("half_split", ("pairing: Pairing = Pairing.NEIGHBOURS", "pairing: Pairing = Pairing.HALVES"))
TILED = STYLE.right(
    "half_split_tiled",
    ("pairing: Pairing = Pairing.NEIGHBOURS", "pairing: Pairing = Pairing.HALVES"),
    ("queries = queries.unflatten(-3, (-1, groups))", "queries = queries.unflatten(-3, (groups, -1))"),
    ("keys.unsqueeze(-3).mT", "keys.unsqueeze(-4).mT"),
    ("values.unsqueeze(-3))", "values.unsqueeze(-4))"),
)
RIGHT = [STYLE.right(), NOT_CAUSAL, HALVES, TILED]

SUM = "return stream + self.sublayer(self.norm(stream), positions, mask)"
POWER = "power = precise.square().mean(dim=-1, keepdim=True)"
NORM = "return (self.gamma * (precise * (power + self.epsilon).rsqrt())).to(stream.dtype)"
TURN = "queries, keys = self.rotary(queries, positions), self.rotary(keys, positions)"
LOOP = "        for stage in self.stages:\n            x = stage(x, positions, mask)\n        return x\n"
MIX = "return self.mix(heads.transpose(-2, -3).flatten(-2))"
GLU = "F.silu(self.gate(stream)) * self.value(stream)"
MADE = "self.stages = nn.ModuleList(Residual(config, kind) for kind in (AttentionSublayer, FeedForwardSublayer))"

fault = STYLE.faulty
FAULTY = [
    fault(
        "post_norm", "in_the_residual_class", (SUM, "return self.norm(stream + self.sublayer(stream, positions, mask))")
    ),
    fault(
        "post_norm",
        "pre_and_post",
        (SUM, "return self.norm(stream + self.sublayer(self.norm(stream), positions, mask))"),
    ),
    fault("no_norm", "both_stages", (SUM, "return stream + self.sublayer(stream, positions, mask)")),
    fault("missing_residual_attention missing_residual_ffn", "sublayer_only", (SUM, SUM.replace("stream + ", ""))),
    fault(
        "missing_residual_attention",
        "first_stage_alone",
        (
            LOOP,
            "        x = self.stages[0].sublayer(self.stages[0].norm(x), positions, mask)\n        return self.stages[1](x, positions, mask)\n",
        ),
    ),
    fault(
        "missing_residual_ffn",
        "second_stage_alone",
        (
            LOOP,
            "        x = self.stages[0](x, positions, mask)\n        return self.stages[1].sublayer(self.stages[1].norm(x), positions, mask)\n",
        ),
    ),
    fault(
        "residual_from_normed",
        "stream_overwritten",
        (SUM, "stream = self.norm(stream)\n        return stream + self.sublayer(stream, positions, mask)"),
    ),
    fault("residual_detached", "both_stages", (SUM, SUM.replace("stream + ", "stream.detach() + "))),
    fault("doubled_residual", "once_in_the_loop", (LOOP, LOOP.replace("x = stage", "x = x + stage"))),
    fault(
        "parallel_sublayers",
        "sum_over_stages",
        (LOOP, "        return x + sum(stage.sublayer(stage.norm(x), positions, mask) for stage in self.stages)\n"),
    ),
    fault(
        "ffn_residual_from_input",
        "stages_by_hand",
        (
            LOOP,
            "        first, second = self.stages\n        h = first(x, positions, mask)\n        return x + second.sublayer(second.norm(h), positions, mask)\n",
        ),
    ),
    fault("shared_norm", "norm_handed_over", (MADE, MADE + "\n        self.stages[1].norm = self.stages[0].norm")),
    fault(
        "norm_created_each_call",
        "in_the_residual",
        (SUM, "return stream + self.sublayer(RootMeanSquareNorm(self.config)(stream), positions, mask)"),
        ("        self.norm = RootMeanSquareNorm(config)\n", "        self.config = config\n"),
        also="wrong_device_buffer",
    ),
    fault(
        "layer_norm",
        "variance",
        (
            POWER,
            "precise = precise - precise.mean(dim=-1, keepdim=True)\n        power = precise.var(dim=-1, keepdim=True, unbiased=False)",
        ),
    ),
    fault("norm_over_sequence", "tuple_of_dims", (POWER, POWER.replace("dim=-1", "dim=(-2, -1)")), base=NOT_CAUSAL),
    fault("norm_without_sqrt", "reciprocal", (NORM, NORM.replace("rsqrt", "reciprocal"))),
    fault("norm_wrong_mean", "amax", (POWER, POWER.replace("mean(", "amax("))),
    fault(
        "norm_without_upcast",
        "stream_itself",
        ("precise = stream.to(torch.promote_types(stream.dtype, torch.float32))", "precise = stream"),
    ),
    fault(
        "eps_ignored",
        "lost_in_the_configuration",
        ("causal, eps, rotary, device=device", "causal, rotary=rotary, device=device"),
    ),
    fault("wrong_eps", "power", ("self.epsilon = config.norm_eps", "self.epsilon = config.norm_eps ** 0.5")),
    fault(
        "eps_outside_sqrt",
        "sqrt_then_sum",
        (NORM, NORM.replace("* (power + self.epsilon).rsqrt()", "/ (power.sqrt() + self.epsilon)")),
    ),
    fault("norm_weight_missing", "gamma_unused", (NORM, NORM.replace("self.gamma * ", ""))),
    fault("missing_rope", "encoder_never_called", (TURN, "assert positions is not None")),
    fault(
        "missing_rope",
        "turned_then_taken_from_the_start",
        (TURN, "turned = self.rotary(queries, positions), self.rotary(keys, positions)"),
    ),
    fault(
        "rope_on_values",
        "generator",
        (TURN, "queries, keys, values = (self.rotary(one, positions) for one in (queries, keys, values))"),
    ),
    fault("rope_on_queries_only", "keys_missing", (TURN, "queries = self.rotary(queries, positions)")),
    fault(
        "rope_in_block",
        "stream_rotated_in_the_sublayer",
        (
            "        queries, keys, values = (self._heads(layer",
            "        stream = self.rotary(self._heads(stream), positions).transpose(-2, -3).flatten(-2)\n        queries, keys, values = (self._heads(layer",
        ),
        (f"        {TURN}\n", ""),
    ),
    fault(
        "rope_half_split",
        "other_enum",
        base=STYLE.right(
            "half_split_both_ways",
            ("pairing: Pairing = Pairing.NEIGHBOURS", "pairing: Pairing = Pairing.HALVES"),
            ("    causal: bool = True,\n", "    causal: bool = False,\n"),
        ),
        target="paper",
    ),
    fault("rope_interleaved", "enum_default", target="llama"),
    fault(
        "rope_wrong_direction",
        "signs",
        (
            "(left * cosines - right * sines, left * sines + right * cosines)",
            "(left * cosines + right * sines, right * cosines - left * sines)",
        ),
        base=HALVES,
        target="llama",
    ),
    fault("gqa_tiled_instead_of_repeated", "groups_first", base=TILED, target="llama"),
    fault(
        "rope_over_heads",
        "unsqueeze_missing",
        (
            "cosines, sines = self.cosines[positions].unsqueeze(-3), self.sines[positions].unsqueeze(-3)",
            "heads = torch.arange(vectors.shape[-3], device=vectors.device)\n        cosines, sines = self.cosines[heads].unsqueeze(-2), self.sines[heads].unsqueeze(-2)",
        ),
        base=HALVES,
        also="missing_rope token_positions_ignored",
    ),
    fault(
        "rope_theta_ignored",
        "configuration_without_base",
        ("RotaryConfig(base=rope_theta, max_positions=max_seq_len)", "RotaryConfig(max_positions=max_seq_len)"),
    ),
    fault(
        "rope_wrong_frequency", "natural_logarithm", ("torch.log2(torch.tensor(config", "torch.log(torch.tensor(config")
    ),
    fault("token_positions_ignored", "argument_shadowed", ("positions = token_positions\n", "positions = None\n")),
    fault(
        "positions_off_by_one",
        "keys_next",
        (TURN, "queries, keys = self.rotary(queries, positions), self.rotary(keys, positions + 1)"),
        also="sequence_length_fixed",
    ),
    fault(
        "causal_off_by_one", "greater_or_equal", ("index[None, :] > index[:, None]", "index[None, :] >= index[:, None]")
    ),
    fault(
        "causal_off_by_one",
        "greater_than_next",
        ("index[None, :] > index[:, None]", "index[None, :] > index[:, None] + 1"),
    ),
    fault("mask_inverted", "less", ("index[None, :] > index[:, None]", "index[None, :] < index[:, None]")),
    fault(
        "mask_inverted",
        "argument",
        ("scores.masked_fill(~mask,", "scores.masked_fill(mask,"),
        base=NOT_CAUSAL,
        target="paper",
    ),
    fault("mask_ignored", "not_in_the_loop", ("x = stage(x, positions, mask)", "x = stage(x, positions, None)")),
    fault(
        "mask_ignored",
        "causal_lost",
        ("num_kv_heads or num_heads, causal, eps", "num_kv_heads or num_heads, False, eps"),
    ),
    fault(
        "mask_value_too_small",
        "finite",
        ('index[None, :] > index[:, None], float("-inf")', "index[None, :] > index[:, None], -60.0"),
    ),
    fault(
        "softmax_wrong_dim", "over_groups", ("F.softmax(scores, dim=-1)", "F.softmax(scores, dim=-3)"), base=NOT_CAUSAL
    ),
    fault("missing_attention_scale", "forgotten", (" / self.config.head_width**0.5", "")),
    fault("wrong_attention_scale", "width_of_the_model", ("self.config.head_width**0.5", "self.config.width**0.5")),
    fault(
        "wrong_head_split",
        "reshaped",
        (
            "return flat.unflatten(-1, (-1, self.config.head_width)).transpose(-2, -3)",
            "return flat.reshape(*flat.shape[:-2], -1, flat.shape[-2], self.config.head_width)",
        ),
    ),
    fault("heads_not_merged", "flattened_at_once", (MIX, "return self.mix(heads.reshape(stream.shape))")),
    fault("missing_output_projection", "heads_returned", (MIX, "return heads.transpose(-2, -3).flatten(-2)")),
    fault("wrong_activation", "mish", (GLU, GLU.replace("F.silu", "F.mish"))),
    fault("gate_after_product", "brackets", (GLU, "F.silu(self.gate(stream) * self.value(stream))")),
    fault("swapped_gate_up", "value_activated", (GLU, "self.gate(stream) * F.silu(self.value(stream))")),
    fault(
        "unexpected_bias",
        "contract",
        (
            "self.contract = nn.Linear(config.hidden, config.width, bias=False,",
            "self.contract = nn.Linear(config.hidden, config.width,",
        ),
        base=HALVES,
        target="llama",
    ),
    fault(
        "modifies_input",
        "in_place_loop",
        (SUM, "stream += self.sublayer(self.norm(stream), positions, mask)\n        return stream"),
    ),
    fault(
        "wrong_dtype",
        "precise_returned",
        (SUM, "return stream.float() + self.sublayer(self.norm(stream), positions, mask)"),
        ("rsqrt())).to(stream.dtype)", "rsqrt())).to(self.gamma.dtype)"),
    ),
    fault(
        "wrong_device_buffer", "device_not_configured", ("rotary, device=device, dtype=dtype", "rotary, dtype=dtype")
    ),
    fault(
        "sequence_length_fixed",
        "positions_of_the_table",
        (
            "positions = torch.arange(x.shape[-2], device=x.device)",
            "positions = torch.arange(len(self.stages[0].sublayer.rotary.cosines), device=x.device)",
        ),
    ),
    fault(
        "gradient_missing",
        "frozen_contract",
        (MADE, MADE + "\n        self.stages[1].sublayer.contract.requires_grad_(False)"),
    ),
    fault(
        "gradient_wrong",
        "half_gradient",
        (SUM, "return stream + Halved.apply(self.sublayer(self.norm(stream), positions, mask))"),
        (
            "class Residual(nn.Module):",
            "class Halved(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        return x.clone()\n\n    @staticmethod\n    def backward(ctx, grad):\n        return grad / 2\n\n\nclass Residual(nn.Module):",
        ),
    ),
    fault(
        "constructor_error",
        "abstract_method",
        (
            "class FeedForwardSublayer(Sublayer):",
            "class FeedForwardSublayer(Sublayer):\n    @abc.abstractmethod\n    def width(self) -> int: ...\n",
        ),
    ),
    fault(
        "constructor_error",
        "frozen_configuration",
        ("    return Block(config)", "    config.kv_heads = num_kv_heads or num_heads\n    return Block(config)"),
    ),
    fault(
        "import_error",
        "default_before_required",
        ("    width: int\n    heads: int\n", "    width: int = 512\n    heads: int\n"),
    ),
    fault("forward_error", "stages_by_name", ("for stage in self.stages:", "for stage in self.stages.values():")),
    fault(
        "timeout",
        "constructor_waits_for_even",
        (
            "    return Block(config)",
            "    while config.width % config.heads != 1:\n        config = dataclasses.replace(config)\n    return Block(config)",
        ),
    ),
]
