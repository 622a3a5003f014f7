"""The recorded calls: every C++ function on small inputs of its kinds, and what the formulas give in float64."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from prenorm import ModelConfig, TransformerLM, use_backend
from prenorm.functional import linear, rms_norm
from prenorm.ops.attention import scaled_dot_product_attention
from prenorm.ops.cross_entropy import losses_and_gradient
from prenorm.ops.quantized import dequantize, pack, quantize, quantized_linear, round_rows
from prenorm.ops.rope import rotate
from prenorm.ops.swiglu import silu_gate

from ...oracle.inputs import integers, mask_of, normal, randomise
from .format import Call, Output, Table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def all_calls() -> Iterator[Call]:
    """All of them; record.py asserts that no function of the library is left out."""
    kinds = (rms_norms, silu_gates, ropes, cross_entropies, argmaxes, skinny_linears, quantized_linears, matmuls)
    for calls in (*kinds, decode_attentions, attentions, decode_steps):
        yield from calls()


def rms_norms() -> Iterator[Call]:
    for rows, width in ((70, 1000), (3, 77)):
        for name, dtype, weight_dtype in (
            ("float32_float32", torch.float32, torch.float32),
            ("bfloat16_bfloat16", torch.bfloat16, torch.bfloat16),
            ("bfloat16_float32", torch.bfloat16, torch.float32),
        ):
            x, g = normal(rows, width, dtype=dtype), normal(rows, width, seed=1, dtype=dtype)
            weight = normal(width, seed=2, dtype=weight_dtype)
            sizes = {"x": x, "weight": weight, "rows": rows, "width": width, "eps": 1e-6}
            (y,) = both(rms_norm, x, weight)
            yield Call(f"rms_norm_{name}", "RmsNormCall", {**sizes, "y": y})
            dx, dw = gradients(rms_norm, x, weight, g)
            for wanted in ({"dx": dx, "dw": dw}, {"dx": dx}, {"dw": dw}):
                yield Call(f"rms_norm_backward_{name}", "RmsNormCall", {**sizes, "g": g, **wanted})


def silu_gates() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        gate, up, g = (normal(70_001, seed=seed, dtype=dtype) * 3 for seed in range(3))
        (y,) = both(silu_gate, gate, up)
        sizes = {"gate": gate, "up": up, "count": gate.numel()}
        yield Call(f"silu_gate_{name}", "SiluGateCall", {**sizes, "y": y})
        dgate, dup = gradients(silu_gate, gate, up, g)
        yield Call(f"silu_gate_backward_{name}", "SiluGateCall", {**sizes, "g": g, "dgate": dgate, "dup": dup})


def ropes() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        for interleaved in (False, True):
            for half in (16, 21):
                x = normal(2, 50, 9, 2 * half, dtype=dtype).transpose(1, 2)  # heads side by side, as projections are
                angles = normal(50, half, seed=1, dtype=torch.float32)
                cos, sin = angles.cos(), angles.sin()
                (y,) = both(lambda x, c, s, i=interleaved: rotate(x, c, s, interleaved=i), x, cos, sin)
                (back,) = both(lambda x, c, s, i=interleaved: rotate(x, c, -s, interleaved=i), x, cos, sin)
                for backwards, result in ((0, y), (1, back)):
                    batch, heads, seq, _ = x.shape
                    strides = {
                        "x_strides": x.stride()[:3],
                        "y_strides": (heads * seq * 2 * half, seq * 2 * half, 2 * half),
                    }
                    strides |= {"cos_strides": (0, 0, half), "sin_strides": (0, 0, half)}
                    sizes = {"batch": batch, "heads": heads, "seq": seq, "half": half}
                    options = {"interleaved": interleaved, "backwards": backwards}
                    fields = {"x": x, "y": result, "cos": cos, "sin": sin, **sizes, **strides, **options}
                    yield Call(f"rope_{name}", "RopeCall", fields)


def cross_entropies() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        logits = (3 * normal(70, 2111)).to(dtype)
        targets = integers(70, limit=2111).where(integers(70, limit=3, seed=1) > 0, -100)
        losses, gradient = both(lambda x, t: losses_and_gradient(x, t, -100, True), logits, targets)
        losses = Output(losses.expected, losses.plain.float())
        sizes = {"targets": targets, "losses": losses, "rows": 70, "width": 2111, "ignored": -100}
        yield Call(f"cross_entropy_{name}", "CrossEntropyCall", {**sizes, "logits": logits, "gradient": 0})
        filled = Output(gradient.expected, gradient.plain, before=logits)
        yield Call(f"cross_entropy_{name}", "CrossEntropyCall", {**sizes, "logits": filled, "gradient": 1})


def argmaxes() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        x = normal(9, 8111).to(dtype)
        x[4, 8110], x[5, 7] = math.inf, math.nan
        right = torch.tensor([int(row.numpy().argmax()) for row in x.double()])
        right[4:6] = -1
        fields = {"x": x, "indices": Output(right, right), "rows": 9, "width": 8111}
        yield Call(f"argmax_{name}", "ArgmaxCall", fields)


def skinny_linears() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        for rows in range(1, 9):
            x, weight = normal(rows, 333, dtype=dtype), normal(170, 333, seed=1, dtype=dtype)
            bias = normal(170, seed=2, dtype=dtype) if rows % 2 else None
            (y,) = both(linear, x, weight, bias)
            sizes = {"rows": rows, "in_features": 333, "out_features": 170}
            fields = {"x": x, "weight": weight, "bias": bias, "y": y, **sizes}
            yield Call(f"skinny_linear_{name}", "SkinnyLinearCall", fields)


def quantized_linears() -> Iterator[Call]:
    for kind in ("int8", "int4"):
        for name, dtype in DTYPES.items():
            for rows in (1, 43):
                x, bias = normal(rows, 500, dtype=dtype), normal(130, seed=1, dtype=dtype) if rows > 1 else None
                numbers, scales = quantize(normal(130, 500, seed=2, dtype=torch.float32), kind)
                weight, scale = pack(numbers, scales, kind)
                right = round_rows(x).double() @ dequantize(numbers, scales).double().T
                right = right if bias is None else right + bias.double()
                with use_backend("reference"):
                    plain = quantized_linear(x, weight, scale, bias, out_features=130)
                fields = {"x": x, "weight": weight, "scale": scale, "bias": bias, "y": Output(right, plain)}
                sizes = {"rows": rows, "in_features": 500, "out_features": 130}
                yield Call(f"quantized_linear_{kind}_{name}", "QuantizedLinearCall", {**fields, **sizes})


def matmuls() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        for rows, depth, columns in ((1, 1, 64), (5, 31, 33), (13, 257, 8), (29, 600, 100), (70, 131, 1700)):
            for transposed in (False, True):
                a, b = normal(rows, depth, dtype=dtype), normal(depth, columns, seed=1, dtype=dtype)
                if transposed:
                    a, b = a.t().contiguous().t(), b.t().contiguous().t()
                c = normal(rows, columns, seed=2, dtype=torch.float32)
                exact, plain = a.double() @ b.double(), a.float() @ b.float()
                sizes = {"rows": rows, "columns": columns, "depth": depth, "c_stride": columns}
                fields = {"a": a, "b": b, "a_strides": a.stride(), "b_strides": b.stride(), **sizes}
                for add, output in ((0, Output(exact, plain)), (1, Output(exact + c.double(), plain + c, before=c))):
                    yield Call(f"matmul_{name}", "MatmulCall", {**fields, "c": output, "add": add})


def decode_attentions() -> Iterator[Call]:
    for name, dtype in DTYPES.items():
        for num_heads, num_kv_heads, keys, masked in ((4, 4, 300, False), (12, 4, 77, True), (10, 1, 511, True)):
            q = normal(2, num_heads, 1, 64, dtype=dtype)
            k, v = (normal(2, num_kv_heads, keys + 3, 64, seed=seed, dtype=dtype)[:, :, :keys] for seed in (1, 2))
            mask = mask_of(2, 1, 1, keys) if masked else None
            (y,) = both(scaled_dot_product_attention, q, k, v, mask)
            sizes = {"batch": 2, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "keys": keys, "head_dim": 64}
            strides = {"k_strides": k.stride()[:3], "v_strides": v.stride()[:3]}
            strides |= {"mask_strides": (keys, 1) if masked else (0, 0)}
            fields = {"q": q, "k": k, "v": v, "mask": mask, "y": y, **sizes, **strides}
            yield Call(f"decode_attention_{name}", "DecodeAttentionCall", fields)


def attentions() -> Iterator[Call]:
    shapes = ((3, 2, 1, 70, 70, 32), (1, 2, 2, 150, 300, 48), (2, 3, 1, 9, 140, 16), (1, 6, 2, 300, 300, 64))
    for name, dtype in DTYPES.items():
        for i, (batch, num_heads, num_kv_heads, queries, keys, head_dim) in enumerate(shapes):
            causal, window, masked = i != 2, 33 if i == 3 else None, i in (1, 2)
            q = normal(batch, num_heads, queries, head_dim, dtype=dtype)
            k, v = (normal(batch, num_kv_heads, keys, head_dim, seed=seed, dtype=dtype) for seed in (1, 2))
            g = normal(*q.shape, seed=3, dtype=dtype)
            mask = mask_of(batch, 1, queries, keys) if masked else None
            allowed = None if mask is None else mask.expand(batch, num_heads, queries, keys)

            def attend(q: Tensor, k: Tensor, v: Tensor, m: Any = mask, c: bool = causal, w: Any = window) -> Tensor:
                return scaled_dot_product_attention(q, k, v, m, causal=c, window=w)

            (y,) = both(attend, q, k, v)
            (sums,) = both(lambda q, k, m=mask, c=causal, w=window: score_sums(q, k, m, c, w), q.float(), k.float())
            strides = {f"{one}_strides": x.stride()[:3] for one, x in (("q", q), ("k", k), ("v", v), ("y", q))}
            strides |= {f"{one}_strides": x.stride()[:3] for one, x in (("g", g), ("dq", q), ("dk", k), ("dv", v))}
            strides |= {"mask_strides": (0, 0, 0) if allowed is None else allowed.stride()[:3]}
            sizes = {"batch": batch, "num_heads": num_heads, "num_kv_heads": num_kv_heads, "queries": queries}
            sizes |= {"keys": keys, "head_dim": head_dim, "causal": causal, "window": window or 0}
            given = {"q": q, "k": k, "v": v, "mask": allowed, **sizes, **strides}
            yield Call(f"attention_{name}", "AttentionCall", {**given, "y": y, "sums": sums})
            yield Call(f"attention_{name}", "AttentionCall", {**given, "y": y})
            dq, dk, dv = gradients(attend, q, k, v, g)
            kept = {"y": y.expected.to(dtype), "sums": sums.expected.float(), "g": g}
            for wanted in ({"dq": dq, "dk": dk, "dv": dv}, {"dq": dq}, {"dk": dk, "dv": dv}):
                yield Call(f"attention_backward_{name}", "AttentionCall", {**given, **kept, **wanted})


def score_sums(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, window: int | None) -> Tensor:
    """What the backward pass needs of each query: see struct Sums in attention.h."""
    queries, keys = q.shape[2], k.shape[2]
    scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * (math.log2(math.e) / math.sqrt(q.shape[-1]))
    behind = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    allowed = (behind >= 0) | (not causal)
    allowed = allowed if window is None else allowed & (behind < window)
    scores = scores.masked_fill(~(allowed if mask is None else allowed & mask), -math.inf)
    most = scores.amax(-1).clamp_min(-1e30)
    total = (scores - most[..., None]).exp2().sum(-1)
    most, inverse = most.where(total > 0, 0), (1 / total).where(total > 0, 0)
    return torch.stack((most, inverse), -1)


def decode_steps() -> Iterator[Call]:
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"num_kv_heads": 2, "qkv_bias": True, "o_bias": True},
        {"num_kv_heads": 1, "qk_norm": True, "rope_interleaved": True, "tie_embeddings": True},
        {"window": 9},
    )
    for name, dtype in DTYPES.items():
        for i, options in enumerate(kinds):
            for rows, seq, quantized in ((1, 1, None), (3, 1, "int8"), (8, 1, None), (2, 3, "int4"), (1, 13, None)):
                config = ModelConfig(131, 128, 2, **{"num_heads": 4, "d_ff": 200, "max_seq_len": 48} | options)
                model = randomise(TransformerLM(config), seed=i).to(dtype).eval()
                if quantized and not options.get("tie_embeddings"):
                    model = model.quantize(quantized)
                held = 9 if seq == 1 else 0 if options.get("window") and seq > 9 else 5
                if not (options.get("window") and held + seq > 9 and seq > 1):  # a ring takes them one by one
                    yield from decode_step(f"decode_step_{name}", model, rows, held, seq)


def decode_step(symbol: str, model: TransformerLM, rows: int, held: int, seq: int) -> Iterator[Call]:
    """The next tokens of rows that hold some already; and the same with a token that does not exist."""
    decoder: Any = model._decoder()
    prompt, token_ids = integers(rows, held, limit=131), integers(rows, seq, limit=131, seed=1)
    with torch.inference_mode(), use_backend("reference"):
        caches = [model.make_cache(rows, 48), model.make_cache(rows, 48, dtype=torch.float64)]
        wide = copy.deepcopy(model).double()
        # Activations next to a tie are rounded up by one and down by another, so the oracle does not round any.
        unrounded = patch("prenorm.ops.quantized.round_rows", lambda x: x)
        if held:
            model._next_logits(prompt, segment_ids=None, cache=caches[0])
            with unrounded:
                wide._next_logits(prompt, segment_ids=None, cache=caches[1])
        known = decoder._tensors(caches[0])
        before = [{name: x.clone() for name, x in layer.tensors().items() if x is not None} for layer in known.layers]
        plain = model._next_logits(token_ids, segment_ids=None, cache=caches[0])
        with unrounded:
            right = wide._next_logits(token_ids, segment_ids=None, cache=caches[1])
        cos, sin = decoder.blocks[0].attn.rope.cos_sin(held + torch.arange(seq), torch.float32)
    layers: list[dict[str, Any]] = before
    for layer, one, other in zip(layers, *caches, strict=True):
        for name in ("keys", "values"):
            layer[name] = Output(getattr(other, name), getattr(one, name), before=layer[name])
    unchanged = [{**one, **{name: one[name].before for name in ("keys", "values")}} for one in layers]
    sizes, cached = known.sizes, known.layers[0].cache[0]
    fields = {
        **{"embedding": known.embedding, "final_norm": known.final_norm, "cos": cos, "sin": sin},
        **{"head_numbers": known.head.numbers, "head_scales": known.head.scales},
        **{"lengths": torch.full((rows,), held), "num_layers": len(layers), "rows": rows, "seq": seq},
        **{"d_model": 128, "d_ff": sizes.d_ff, "vocab": 131, "num_heads": sizes.num_heads},
        **{"num_kv_heads": sizes.num_kv_heads, "head_dim": sizes.head_dim, "slots": cached.shape[2] - 1},
        **{"interleaved": sizes.interleaved, "bits": known.bits, "head_bits": known.head.bits},
        **{"angles_stride": 0, "eps": sizes.eps, "tokens": token_ids},
    }
    logits = Output(right, plain)
    yield Call(symbol, "DecodeStepCall", {**fields, "layers": Table("LayerPointers", layers), "logits": logits})
    wrong = token_ids.clone()
    wrong[-1, -1] = 131
    nothing = {"layers": Table("LayerPointers", unchanged), "logits": torch.zeros_like(plain), "tokens": wrong}
    yield Call(symbol, "DecodeStepCall", {**fields, **nothing}, returns=2)


def both(formula: Callable[..., Any], *inputs: Any) -> list[Output]:
    """What a formula gives in float64, and as it is in the dtype of its inputs."""
    wide = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    with use_backend("reference"):
        exact, plain = formula(*wide), formula(*inputs)
    pairs = [(exact, plain)] if isinstance(exact, Tensor) else zip(exact, plain, strict=True)
    return [Output(one.detach().contiguous(), other.detach().contiguous()) for one, other in pairs]


def gradients(formula: Callable[..., Tensor], *inputs: Tensor) -> list[Output]:
    """The gradients of all inputs but the last, which is the gradient of the result."""

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in given[:-1]]
        return torch.autograd.grad(formula(*leaves), leaves, given[-1])

    return both(run, *inputs)
