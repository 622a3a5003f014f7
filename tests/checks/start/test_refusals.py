"""What is no block, or takes no tensor: it is said, with what to do, and is no fault."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prenorm import testing
from prenorm.checks.check import check
from prenorm.checks.source.containers import container

from .. import small
from ..small import Right

SMALL = Path(small.__file__).read_text()


class Model(nn.Module):
    def __init__(self, vocab_size, d_model, num_heads, d_ff, depth=3):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(Right(d_model, num_heads, d_ff) for _ in range(depth))

    def forward(self, tokens):
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


class Trunk(nn.Sequential):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(*(Right(d_model, num_heads, d_ff) for _ in range(2)))


class AttentionAlone(Right):
    def __init__(self, d_model, num_heads):
        super().__init__(d_model, num_heads, 4)
        del self.gate, self.up, self.down, self.norm2

    def forward(self, x):
        return x + self.attention(self.norm1(x))


class FeedForwardAlone(Right):
    def __init__(self, d_model, d_ff):
        super().__init__(d_model, 4, d_ff)
        del self.qkv, self.o, self.norm1

    def forward(self, x):
        return x + self.feed_forward(self.norm2(x))


class Pairs(nn.Module):
    """Layers without a class of their own."""

    def __init__(self, d_model, num_heads, d_ff, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([AttentionAlone(d_model, num_heads), FeedForwardAlone(d_model, d_ff)]) for _ in range(depth)
        )

    def forward(self, x):
        for pair in self.layers:
            for part in pair.children():
                x = part(x)
        return x


@pytest.mark.parametrize(
    ("made", "evidence", "mend"),
    [
        (Model, "Model stacks layers of the class Right", "check the class of one layer: Right"),
        (Trunk, "Trunk stacks layers of the class Right", "check the class of one layer: Right"),
        (Pairs, "Pairs stacks several layers", '--build "Pairs(..., depth=1)"'),
        (AttentionAlone, "can be a feed-forward", "check the class that holds both"),
        (FeedForwardAlone, "can be queries, keys and values", "check the class that holds both"),
    ],
)
def test_what_is_more_or_less_than_a_block_is_no_fault(made, evidence, mend):
    verdict = testing.check(made).verdict
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["unreadable"], (), 2)
    assert evidence in verdict.findings[0].evidence
    assert mend in verdict.findings[0].mend


class OfPairs(Right):
    def forward(self, inputs):
        x, lengths = inputs
        return super().forward(x), lengths


class OfDictionary(Right):
    def forward(self, batch):
        return {"hidden": super().forward(batch["hidden"])}


@pytest.mark.parametrize(("made", "value"), [(OfPairs, "(x, lengths)"), (OfDictionary, '{"hidden": x}')])
def test_an_input_that_holds_the_tensor_is_said(made, value):
    verdict = testing.check(made).verdict
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    call = f"block({value})"
    assert f"--call '{call}'" in verdict.findings[0].evidence
    if "lengths" not in call:
        assert testing.check(made, call=call).verdict.exit_code == 0


@pytest.mark.parametrize(
    "body",
    [
        "b, s, d = x.shape",
        "q, k = self.qk(x)",
        "x, scale = x * 2, 3; a, b = x",
        "first = x[0]; last = x[..., -1]",
        "y = names['key'][x]",
    ],
)
def test_what_a_tensor_allows_is_no_sign_of_another_input(body: str):
    source = f"class Block:\n    def forward(self, x):\n        {body}\n        return x\n"
    assert container(source, "Block") is None
    assert container("no python", "Block") is None


class ListOfModules(Right):
    """A plain list: its modules are not part of the block."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.parts = [self.gate, self.up, self.down]
        del self.gate, self.up, self.down

    def feed_forward(self, x):
        gate, up, down = self.parts
        return down(F.silu(gate(x)) * up(x))


class ListBeside(Right):
    """The same modules twice: as parts, and in a list."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.parts = [self.gate, self.up, self.down]


def test_modules_in_a_plain_list_get_no_gradient():
    verdict = testing.check(ListOfModules).verdict
    assert {one.id for one in verdict.faults} >= {"gradient_missing"}
    assert "unexplained" not in verdict.ids
    (said,) = [one.evidence for one in verdict.faults if one.id == "gradient_missing"]
    assert "parts.0.weight" in said
    assert testing.check(ListBeside).verdict.ids == []


OFF = ("@torch.no_grad()", "@torch.inference_mode()", "@torch.no_grad")
TRAINS = "\n\ndef train(block, loss):\n    loss.backward()\n"


@pytest.mark.parametrize("decorator", OFF)
@pytest.mark.parametrize("trains", [False, True])
def test_a_forward_without_gradients_is_meant_for_inference_where_nothing_is_trained(
    decorator: str, trains: bool, tmp_path: Path
):
    forward = f"    {decorator}\n    def forward(self, x):\n        x = x + self.attention("
    source = SMALL.replace("    def forward(self, x):\n        x = x + self.attention(", forward, 1)
    (tmp_path / "learner.py").write_text(source + TRAINS * trains)
    verdict = check(f"{tmp_path / 'learner.py'}:Right")
    assert [one.id for one in verdict.faults] == ["gradient_missing"] * trains
    assert ("gradients" in verdict.conventions) is not trains


SETTINGS = """
torch.set_default_dtype(torch.bfloat16)
torch.set_grad_enabled(False)
torch.set_num_threads(4)
torch.autograd.set_detect_anomaly(True)
torch.set_float32_matmul_precision("medium")
"""


def test_settings_of_the_process_that_a_script_changes_are_no_fault_of_its_block(tmp_path: Path):
    (tmp_path / "learner.py").write_text(SMALL + SETTINGS)
    verdict = check(f"{tmp_path / 'learner.py'}:Right")
    assert (verdict.ids, verdict.exit_code) == ([], 0)
    assert "default dtype: bfloat16" in str(verdict.conventions["at_import"])
    assert torch.get_default_dtype() == torch.float32


CONFIGURED = (
    "from dataclasses import dataclass\n"
    + SMALL
    + """

@dataclass
class BlockConfig:
    d_model: int
    num_heads: int
    d_ff: int


class Block(Right):
    def __init__(self, config: BlockConfig):
        super().__init__(config.d_model, config.num_heads, config.d_ff)
        self.gated = config.ENTRY
"""
)


@pytest.mark.parametrize(
    ("entry", "build", "code", "told"),
    [
        ("gru_gating", None, 2, '--build "Block(config(gru_gating=VALUE))"'),
        ("gru_gating", "Block(config(gru_gating=False))", 0, ""),
        ("num_head", None, 1, "no attribute 'num_head'"),
    ],
)
def test_an_entry_that_callers_may_add_to_a_configuration_is_asked_for(tmp_path: Path, entry, build, code, told):
    """One that is nearly the name of another is misspelt."""
    (tmp_path / "learner.py").write_text(CONFIGURED.replace("ENTRY", entry))
    verdict = check(f"{tmp_path / 'learner.py'}:Block", build=build)
    assert verdict.exit_code == code
    assert told in str([one.evidence for one in verdict.findings])
