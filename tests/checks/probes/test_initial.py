"""The weights that a constructor leaves, and the code beside a block that excuses them."""

import pytest
import torch
from torch import nn

from prenorm.checks.formula.parameters import Piece
from prenorm.checks.formula.spec import Spec
from prenorm.checks.probes.case import Report
from prenorm.checks.probes.initial import constructed, widths
from prenorm.checks.search.explanation import Explanation

from ..small import DeviationOfOne, Frozen, NeverFilled, Right
from .started import started


def judged(block: type[nn.Module], beside: str) -> Report:
    case = started(block)
    constructed(case, beside)
    return case.report


PART = """class Part:
    def __init__(self):
        self.{call}

    def _init_params(self):
        normal_(self.w)

"""
BLOCK = "class DeviationOfOne:\n    def __init__(self):\n        self.part = Part()\n\n"
LOADS = "def load(path, model):\n    model.load_state_dict(torch.load(path))\n"


@pytest.mark.parametrize(
    ("beside", "counts"),
    [
        ("", True),
        (LOADS, False),  # for inference: the weights are never those of the constructor
        (LOADS + "optimizer = AdamW(model.parameters())", True),
        (LOADS + "loss.backward()", True),
        (LOADS + "# an optimized kernel", False),
        ("def _init_weights(self, module): ...", False),
        (BLOCK + PART.format(call="_init_params()"), True),  # what the constructor runs is no later code
        (BLOCK + PART.format(call="apply(self._init_params)"), True),
        (BLOCK + "def init_weights(model): ...", False),
        (BLOCK.replace("Part", "init_params") + "def init_params(layer): ...", True),
        (BLOCK + PART.format(call="w = None"), False),  # a model calls it
        (PART.format(call="_init_params()") + BLOCK.replace("Part", "Linear"), False),  # a model does
    ],
)
def test_a_checkpoint_excuses_weights_only_where_nothing_is_trained(beside, counts):
    assert ("weight_init_scale" in judged(DeviationOfOne, beside).faults()) is counts


class LeftOverEmbedding(Right):
    """torch gives it a standard deviation of one."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.positions = nn.Embedding(100, d_model)


def test_an_embedding_is_no_matrix_of_the_block():
    assert not judged(LeftOverEmbedding, "").findings


def test_the_fix_of_a_norms_weight_is_one_for_a_norm():
    assert "torch.ones" in judged(NeverFilled, "").mends["weights_uninitialised"]


def zeros(*names: str) -> type[nn.Module]:
    class ZeroMatrices(Right):
        def __init__(self, d_model, num_heads, d_ff):
            super().__init__(d_model, num_heads, d_ff)
            for name in names:
                nn.init.zeros_(getattr(self, name).weight)

    return ZeroMatrices


class KeptInAnotherLayout(Right):
    """(heads, d_model, head_dim), with a standard deviation of one."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.heads_first = nn.Parameter(torch.randn(num_heads, d_model, d_model // num_heads))
        self.qkv, self.d_model = None, d_model

    def attention(self, x):
        q = torch.einsum("bsd,hdk->bhsk", x, self.heads_first)
        return self.projected(x, self.mixed(q, q, q).transpose(-3, -2).flatten(-2))


class AllEqual(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        nn.init.ones_(self.up.weight)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (KeptInAnotherLayout, "; 1/sqrt(d_model) is 0.18"),
        (AllEqual, "all entries of up.weight are initialised to 1: what is equal"),
    ],
)
def test_the_numbers_of_a_scale_are_those_of_the_block(block, said):
    assert said in judged(block, "").findings["weight_init_scale"]


class QueriesAtZero(Right):
    """They get no gradient before the output projection is no longer zero."""

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        nn.init.zeros_(self.o.weight)
        self.q = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.q.weight)

    def attention(self, x):
        _, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for t in self.qkv(x).chunk(3, -1))
        y = self.mixed(self.q(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2), k, v)
        return self.projected(x, y.transpose(-3, -2).flatten(-2))


@pytest.mark.parametrize(
    "block", [zeros("o"), zeros("o", "down"), zeros("gate", "o"), zeros("up"), zeros("down"), QueriesAtZero]
)
def test_a_matrix_at_zero_that_comes_alive_is_no_fault(block):
    assert not judged(block, "").findings


@pytest.mark.parametrize("names", [("qkv", "o"), ("gate", "up"), ("up", "down"), ("gate", "up", "down")])
def test_matrices_that_keep_each_other_at_zero_are_a_fault(names):
    report = judged(zeros(*names), "")
    assert [*report.faults()] == ["weight_init_scale"]
    assert all(f"{name}.weight" in str(report.findings["weight_init_scale"]) for name in names)
    assert "at most one at zero" in report.mends["weight_init_scale"]
    lines = [frame["code"] for frame in report.errors["weight_init_scale"]["frames"] if frame["file"] == __file__]
    assert lines[-1].startswith("nn.init.zeros_(")


class Empty(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.down.weight = nn.Parameter(torch.empty(d_model, d_ff))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Right, "initialised, with a usual scale"),
        (Empty, "nothing fills down.weight"),
        (Frozen, "requires_grad is False for down.weight"),
    ],
)
def test_the_reason_of_a_failed_check_is_what_failed(block, reason):
    assert [one.reason for one in judged(block, "").checks] == [reason]


def random_weights(rows: int, columns: int) -> nn.Parameter:
    weight = torch.empty(rows, columns)
    nn.init.trunc_normal_(weight)
    return nn.Parameter(weight)


class ByAFunction(Right):
    """Its norms and its other weights are filled elsewhere."""

    def norms(self, d_model):
        norms = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        for norm in norms:
            nn.init.trunc_normal_(norm.weight, mean=1.0, std=1e-6)
        return norms

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        self.o.weight = random_weights(d_model, d_model)


class ByItsOwnMethod(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for name in ("up", "down"):
            self.fill(getattr(self, name))
        self.gate.weight.data = self.gate.weight * 0.5

    def fill(self, linear):
        linear.weight.data.normal_()


class TimesANumber(Right):
    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        table = torch.randn(d_model, d_ff) * 2.0
        self.down.weight = nn.Parameter(table.view(d_model, -1))


@pytest.mark.parametrize(
    ("block", "id", "code"),
    [
        (ByAFunction, "weight_init_scale", "nn.init.trunc_normal_(weight)"),
        (ByItsOwnMethod, "weight_init_scale", "linear.weight.data.normal_()"),
        (TimesANumber, "weight_init_scale", "table = torch.randn(d_model, d_ff) * 2.0"),
        (Empty, "weights_uninitialised", "self.down.weight = nn.Parameter(torch.empty(d_model, d_ff))"),
    ],
)
def test_the_line_is_the_one_that_gave_the_weight_its_numbers(block, id, code):
    report = judged(block, "")
    assert [*report.findings] == [id]
    assert [frame["code"] for frame in report.errors[id]["frames"] if frame["file"] == __file__][-1] == code


class OfASublayer(Right):
    """Matrices of these names begin with the root to this power of 2 / (d_in + d_out); the others are torch's."""

    names: tuple[str, ...] = ("gate", "up", "down")
    power = 1.0

    def __init__(self, d_model, num_heads, d_ff):
        super().__init__(d_model, num_heads, d_ff)
        for name in self.names:
            weight = getattr(self, name).weight
            std = (2 / sum(weight.shape)) ** self.power
            nn.init.trunc_normal_(weight, 0, std, -3 * std, 3 * std)


class OfTheLastAlone(OfASublayer):
    names = ("o", "down")


class AsStandardDeviations(OfASublayer):
    power = 0.5


class FadesInASublayer(OfASublayer):
    power = 1.2


@pytest.mark.parametrize(
    ("block", "says"),
    [
        (OfASublayer, "gate.weight, up.weight, down.weight: initialised with standard deviation 0.02"),
        (FadesInASublayer, "it decreases too fast"),
        (OfTheLastAlone, ""),
        (AsStandardDeviations, ""),
        (Right, ""),
    ],
)
def test_a_scale_that_is_wrong_in_one_sublayer_is_wrong(block, says):
    found = judged(block, "").findings
    assert says in found["weight_init_scale"] if says else not found


class IgnoresItsWidth(Right):
    def __init__(self, d_model, num_heads, filter_size):
        super().__init__(d_model, num_heads, 4 * d_model)


class HasAWidthOfItsOwn(Right):
    """A rule of this author's: the argument is no width under that name."""

    def __init__(self, d_model, num_heads, filter_size):
        super().__init__(d_model, num_heads, (2 * filter_size // 3 + 63) // 64 * 64)


@pytest.mark.parametrize(("block", "ids"), [(IgnoresItsWidth, {"d_ff_ignored"}), (HasAWidthOfItsOwn, set())])
def test_a_width_of_any_name_that_changes_no_shape_is_ignored(block, ids):
    case = started(block)
    case.built = case.build()
    case.raw = case.built.draw(case.generator)
    down = Piece(("down.weight",))
    case.explanation = Explanation(Spec(), {"down": down}, 0)
    widths(case)
    assert case.report.faults() == ids
    assert case.report.conventions["d_ff"].endswith("for filter_size=52")
