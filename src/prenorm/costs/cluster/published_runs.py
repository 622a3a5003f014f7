"""Step times that others published, with their hardware and layout, to hold step_time.py against.

All are bfloat16 runs of dense models. Nothing is fitted to a row: each is predicted from the rates of its hardware
alone. Where a source leaves open what a prediction needs, the note says what was assumed.
"""

from dataclasses import dataclass, replace
from typing import Any

from ...config import ModelConfig
from ...distributed.layout import Layout
from ...published import PUBLISHED
from ..architecture import Architecture, architecture_of
from ..flops import six_n_and_attention
from .hardware import CLUSTERS, Cluster
from .plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRun:
    """A measured step, and what is needed to predict it."""

    name: str
    plan: Plan
    cluster: Cluster
    seconds: float
    """Of a step, as published, or worked out from the published rate of tokens or FLOPs."""

    published: str
    """The figure as it was published."""

    source: str
    note: str = ""


def published_runs() -> list[PublishedRun]:
    """All runs, by source. They keep all but the master weights in bfloat16."""
    runs = [*_torchtitan(), *_llm_foundry(), *_megatron(), *_llama_3()]
    return [replace(run, plan=replace(run.plan, wide=NARROW)) for run in runs]


NARROW = 2  # bytes

TORCHTITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
ASYNC_TP = "torchtitan, benchmarks/asyncTP_llama3_h100_2025-06_torchtitan.md, the runs without async TP"
LLM_FOUNDRY = "llm-foundry, scripts/train/benchmarking/README.md"
MEGATRON = "Korthikanti et al. 2022, arXiv:2205.05198, tables 3 and 5"
LLAMA_3 = "Grattafiori et al. 2024, arXiv:2407.21783, table 4"


def _torchtitan() -> list[PublishedRun]:
    # H100 of 96 GB with HBM2e at 2.4 TB/s and a power limit of 500 W, 400 Gb/s for each.
    cluster = replace(CLUSTERS["h100-sxm"], name="H100, 500 W", memory=96 * 10**9, memory_bytes_per_second=2.4e12)
    limited = "the power limit lowers the rate of products, by how much is not published"
    half = f"{limited}; every second product is run again, counted as every second block"

    def run(model: str, source: str, rate: int, rows: int, every: int, note: str = half, **layout: int) -> PublishedRun:
        spread = Layout(**layout)
        plan = Plan(
            model=_named(model),
            layout=spread,
            batch=rows * spread.data_ranks,
            micro_batch=rows,
            context=8192,
            every=every,
        )
        return _by_tokens(f"{model}, {spread.world_size} GPUs", plan, cluster, rate, source, note)

    return [
        run("llama-3-8b", TORCHTITAN, 6667, 2, 2, fsdp=8),
        run("llama-3-8b", TORCHTITAN, 6514, 2, 2, fsdp=128),
        run("llama-3-8b", ASYNC_TP, 4378, 12, 2, fsdp=8, tp=8),
        run("llama-3-70b", ASYNC_TP, 597, 16, 1, limited, fsdp=32, tp=8),
    ]


def _llm_foundry() -> list[PublishedRun]:
    h100 = replace(CLUSTERS["h100-sxm"], name="H100")
    a100 = replace(CLUSTERS["a100-80gb"], name="A100 80 GB")  # 1,600 Gb/s for a node of eight
    small = replace(a100, name="A100 40 GB", memory=40 * 10**9, memory_bytes_per_second=1.555e12)
    not_named = "the network is not named: 400 Gb/s assumed"
    sizes = {"mpt-7b": (4096, 32), "mpt-13b": (5120, 40), "mpt-30b": (7168, 48), "mpt-70b": (8192, 80)}
    rows = [  # cluster, model, devices, tokens per second and device, micro-batch, batch, checkpointing
        *((h100, "mpt-7b", 8, 10643, 6, 48, 0), (h100, "mpt-13b", 64, 4800, 2, 128, 0)),
        *((h100, "mpt-30b", 32, 2308, 14, 1344, 1), (h100, "mpt-70b", 64, 1039, 8, 2048, 1)),
        *((a100, "mpt-7b", 8, 4641, 6, 96, 0), (a100, "mpt-13b", 8, 2262, 2, 48, 0)),
        *((a100, "mpt-30b", 8, 916, 3, 504, 1), (a100, "mpt-70b", 64, 410, 8, 2048, 1)),
        *((small, "mpt-13b", 128, 1972, 16, 2048, 1), (small, "mpt-70b", 128, 376, 4, 512, 1)),
    ]
    runs = []
    for cluster, name, devices, rate, micro, batch, every in rows:
        plan = Plan(
            model=mpt(*sizes[name], 2048),
            layout=Layout(fsdp=devices),
            batch=batch,
            micro_batch=micro,
            context=2048,
            every=every,
        )
        note = not_named if cluster is h100 and devices > 8 else ""
        runs.append(_by_tokens(f"{name}, {devices} GPUs", plan, cluster, rate, LLM_FOUNDRY, note))
    return runs


def _megatron() -> list[PublishedRun]:
    cluster = replace(CLUSTERS["a100-80gb"], name="A100 80 GB")  # in Selene: 200 Gb/s for each
    attention = "attention is not fused, and its scores are computed again"
    sizes = {"22B": (6144, 48, 64), "175B": (12288, 96, 96), "530B": (20480, 105, 128), "1T": (25600, 128, 160)}
    rows = [  # model, pp, dp, pp_stages, batch, micro-batch, seconds
        *(("22B", 1, 1, 1, 4, 4, 1.10), ("175B", 8, 1, 3, 64, 1, 13.75), ("530B", 35, 1, 3, 280, 1, 37.83)),
        *(("1T", 64, 1, 1, 512, 1, 71.49), ("530B", 35, 8, 3, 2240, 1, 39.15)),
    ]
    runs = []
    for name, pp, dp, pp_stages, batch, micro, seconds in rows:
        layout = Layout(dp=dp, tp=8, pp=pp)
        plan = Plan(
            model=gpt(*sizes[name]),
            layout=layout,
            batch=batch,
            micro_batch=micro,
            context=2048,
            every=0,
            pp_stages=pp_stages,
        )
        note = f"{attention}; gradients are reduced after the backward pass" if dp > 1 else attention
        runs.append(
            PublishedRun(
                name=f"{name}, {layout.world_size} GPUs",
                plan=plan,
                cluster=cluster,
                seconds=seconds,
                published=f"{seconds} s",
                source=MEGATRON if dp == 1 else f"{MEGATRON}, and section 6.3",
                note=note,
            )
        )
    return runs


def _llama_3() -> list[PublishedRun]:
    cluster = replace(CLUSTERS["h100-sxm"], name="H100")
    note = "FLOPs taken as 6N + attention; the schedule is not in the table: 7 stages a device, interleaved, assumed"
    runs = []
    for dp, rows, rate in ((64, 32, 430e12), (128, 16, 400e12)):
        plan = Plan(
            model=_named("llama-3.1-405b"),
            layout=Layout(fsdp=dp, tp=8, pp=16),
            batch=dp * rows,
            micro_batch=1,
            context=8192,
            every=0,
            pp_stages=7,
        )
        tokens, devices = plan.batch * plan.context, plan.layout.world_size
        seconds = six_n_and_attention(plan.model, tokens, plan.context) / (rate * devices)
        runs.append(
            PublishedRun(
                name=f"llama-3.1-405b, {devices:,} GPUs",
                plan=plan,
                cluster=cluster,
                seconds=seconds,
                published=f"{rate / 1e12:.0f} TFLOP/s",
                source=LLAMA_3,
                note=note,
            )
        )
    return runs


def _by_tokens(name: str, plan: Plan, cluster: Cluster, rate: int, source: str, note: str) -> PublishedRun:
    """A run of which the tokens per second and device are published."""
    seconds = plan.batch * plan.context / (rate * plan.layout.world_size)
    published = f"{rate:,} tokens/s/GPU"
    return PublishedRun(
        name=name, plan=plan, cluster=cluster, seconds=seconds, published=published, source=source, note=note
    )


def _named(model: str) -> Architecture:
    return architecture_of(ModelConfig.from_dict(PUBLISHED[model].fields))


def mpt(d_model: int, num_layers: int, context: int) -> Architecture:
    """The MPT model of llm-foundry's benchmarks, whose NumParams this gives to the digit."""
    return _gpt(d_model, num_layers, d_model // 128, 50368, context, tied=True)


def gpt(d_model: int, num_layers: int, num_heads: int) -> Architecture:
    """A GPT of Megatron-LM's tables."""
    return _gpt(d_model, num_layers, num_heads, 51200, 2048, tied=True)


def _gpt(d_model: int, num_layers: int, num_heads: int, vocab_size: int, context: int, *, tied: bool) -> Architecture:
    biases: dict[str, Any] = {"qkv_bias": True, "o_bias": True, "ffn_bias": True}
    return Architecture(
        vocab_size=vocab_size, d_model=d_model, num_layers=num_layers, num_heads=num_heads, num_kv_heads=num_heads,
        head_dim=d_model // num_heads, d_ff=4 * d_model, max_seq_len=context, gated=False, activation="gelu",
        norm="layer", norm_vectors=2, learned_positions=True, tie_embeddings=tied, **biases,
    )  # fmt: skip
