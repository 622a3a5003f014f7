"""Stand-ins that trust the code they are given, so that tests need no sandbox: a subject, and a judge of numbers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from prenorm import TransformerBlock
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Check, Finding, Verdict

SIZES = {"d_model": 12, "num_heads": 3, "d_ff": 20, "max_seq_len": 32, "rope_theta": 100.0, "eps": 0.3}
ROLES = {
    "norm1": ("norm1", "n_a", "input_layernorm"),
    "norm2": ("norm2", "n_f", "post_attention_layernorm"),
    "attn.q_proj": ("attn.q_proj", "wq", "self_attn.q"),
    "attn.k_proj": ("attn.k_proj", "wk", "self_attn.k"),
    "attn.v_proj": ("attn.v_proj", "wv", "self_attn.v"),
    "attn.o_proj": ("attn.o_proj", "wo", "self_attn.out"),
    "ffn.gate_proj": ("ffn.gate_proj", "w1", "mlp.gate"),
    "ffn.up_proj": ("ffn.up_proj", "w3", "mlp.up"),
    "ffn.down_proj": ("ffn.down_proj", "w2", "mlp.down"),
}


@contextlib.contextmanager
def open_local(folder: Path) -> Iterator[LocalSubject]:
    yield LocalSubject()


def judge_numbers(subject: str) -> Verdict:
    """A verdict by comparison with our own block. It knows no fault's name: "unexplained", or that it cannot be run."""
    file, name = subject.rsplit(":", 1)
    problem = _problem(Path(file), name)
    if problem is None:
        return Verdict(subject=subject, checks=(Check(name="values", result="passed", reason="as they should be"),))
    fault, evidence = problem
    finding = Finding(id=fault, message="the numbers differ", evidence=evidence, mend="mend it")
    return Verdict(subject=subject, findings=(finding,))


def _problem(file: Path, name: str) -> tuple[str, str] | None:
    ask = LocalSubject().ask
    loaded = ask({"op": "load", "root": str(file.parent), "module": file.stem, "file": str(file), "name": name})
    if "error" in loaded:
        return "import_error", loaded["error"]["message"]
    for dtype, size in ((torch.float32, 1.0), (torch.float16, 300.0)):
        spelled = {"dtype": str(dtype).removeprefix("torch.")}
        built = ask({"op": "build", "arguments": {**SIZES, "dtype": spelled}})
        if "error" in built:
            return "constructor_error", built["error"]["message"]
        ours = TransformerBlock(**SIZES)
        theirs = _renamed([one["name"] for one in built["parameters"]])
        if theirs.keys() != dict(ours.named_parameters()).keys():
            return "unexplained", f"its parameters are {list(theirs.values())}"
        parameters = _drawn(ours)
        x = (size * torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))).to(dtype)
        for positions in (None, torch.tensor([4, 0, 11, 31, 3])):
            problem = _compared(ask, built["block"], ours, theirs, parameters, x, positions)
            if problem is not None:
                return problem
    return None


def _compared(ask: Any, block: int, ours: Any, theirs: Any, parameters: Any, x: Any, positions: Any) -> Any:
    inputs = [x] if positions is None else [x, positions]
    request = {"op": "run", "block": block, "inputs": inputs}
    plain = ask(request)
    if "y" in plain and not torch.equal(plain["x_after"], x):
        return "modifies_input", "x was changed"
    given = {theirs[name]: value for name, value in parameters.items()}
    reply = ask({**request, "parameters": given, "cotangent": torch.ones_like(x)})
    if "error" in reply:
        return "forward_error", reply["error"]["message"]
    ours.load_state_dict(parameters)
    mine = ours.float()
    leaf = x.clone().float().requires_grad_()
    y = mine(leaf, positions)
    y.sum().backward()
    half = x.dtype == torch.float16
    if reply["y"].dtype != x.dtype or not _close(reply["y"] - x, y - x, 0.3 if half else 1e-4):
        return "unexplained", f"y differs, {x.dtype}, positions {positions}"
    if not half and (reply["x_gradient"] is None or not _close(reply["x_gradient"], leaf.grad, 1e-3)):
        return "gradient_wrong", "the gradient of x differs"
    if any(gradient is None for gradient in reply["gradients"].values()):
        return "gradient_missing", "a weight has none"
    return None


def _renamed(names: list[str]) -> dict[str, str]:
    """Our names to theirs."""
    found = {}
    for name in names:
        module = name.rsplit(".", 1)[0]
        role = [ours for ours, others in ROLES.items() if module in others]
        found[f"{role[0]}.weight" if role and not name.endswith("bias") else name] = name
    return found


def _drawn(ours: TransformerBlock) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=generator) * (0.5 if p.ndim == 2 else 0.2) + (p.ndim == 1)
        for name, p in ours.named_parameters()
    }


def _close(a: torch.Tensor, b: torch.Tensor, bound: float) -> bool:
    difference = (a.float() - b.float()).square().mean().sqrt()
    return bool(difference <= bound * b.float().square().mean().sqrt())
