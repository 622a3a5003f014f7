"""Blocks as strangers publish them are imported, built and called; PRENORM_ALL_CHECKS=1 tries all of them."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest
import torch

from prenorm.checks.check import check
from prenorm.checks.judge import judge
from prenorm.checks.probes.case import Case, Report
from prenorm.checks.source.code import Code, locate
from prenorm.checks.start.refusals import UnknownArgumentsError, is_further
from prenorm.checks.start.start import start
from prenorm.checks.subject.learner import Learner
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.subject.raised import LearnerError
from prenorm.checks.targets import Target
from prenorm.errors import ConfigError

from .. import small
from ..strangers.projects import (
    CACHED_TABLES,
    COURSE,
    COURSE_BLOCK,
    HABITS,
    HEAD,
    PARTS,
    PROJECTS,
    Project,
    _block,
    _halves,
)

FEW = ("package that asks for its version", "layer_id, args, start_pos", "one line that builds it")
CHOSEN = [one for one in PROJECTS if os.environ.get("PRENORM_ALL_CHECKS") or one.name in FEW or one in HABITS]


def written(project: Project, folder: Path) -> str:
    """Its files, in the folder; what to judge."""
    for path, text in project.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return f"{folder / project.judged}"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("project", CHOSEN, ids=lambda one: one.name)
def test_a_right_block_is_judged_and_passes(project: Project, tmp_path: Path) -> None:
    verdict = check(written(project, tmp_path), build=project.build, call=project.call)
    assert [one.id for one in verdict.findings if one.counts] == []
    assert verdict.passed
    said = f"{verdict.build} {verdict.call} {verdict.conventions}"
    assert [words for words in project.said if words not in said] == []


def test_a_layer_of_an_installed_package_is_judged_as_it_is() -> None:
    verdict = check("transformers.models.llama.modeling_llama:LlamaDecoderLayer")
    assert verdict.ids == []
    assert "LlamaConfig(" in verdict.build
    assert "LlamaRotaryEmbedding(config=config)(x, positions[None])" in verdict.call


def started(source: str, folder: Path, name: str = "Block", target: Target | None = None, **lines: str) -> Case:
    """The lines that are found for a source, without a judgement of its numbers."""
    file = folder / "learner.py"
    file.write_text(source)
    case = Case(Learner(LocalSubject()), target or Target(), torch.Generator().manual_seed(1), Report())
    case.learner.load(Code(root=str(folder), module="learner", file=str(file), name=name))
    start(case, **lines)
    return case


MASKS = {
    "added to the scores": ("mask", "y = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask).softmax(-1) @ v"),
    "True where a query may attend": ("mask", "y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.bool())"),
    "True where a query may not attend": (
        "mask",
        "y = (q @ k.transpose(-1, -2)).masked_fill(mask, -torch.inf).softmax(-1) @ v",
    ),
}


@pytest.mark.parametrize("sense", MASKS)
def test_the_sense_of_a_required_mask_is_found_out(sense: str, tmp_path: Path) -> None:
    mask, masking = MASKS[sense]
    case = started(_halves("cos, sin, mask", "t * cos + rotate_half(t) * sin", mask, masking), tmp_path)
    assert sense in case.report.conventions["mask_handed_in"]


@pytest.mark.parametrize("sense", MASKS)
def test_a_causal_target_hands_its_mask_to_an_optional_argument(sense: str, tmp_path: Path) -> None:
    masking = f"{MASKS[sense][1]} if mask is not None else F.scaled_dot_product_attention(q, k, v)"
    turn = "t * cos + rotate_half(t) * sin"
    source = _halves("cos, sin, attention_mask=None", turn, "attention_mask", masking)
    masked = started(source, tmp_path, target=Target(causal=True))
    assert sense in masked.report.conventions["mask_handed_in"]
    assert "mask_handed_in" not in started(source, tmp_path).report.conventions


@pytest.mark.parametrize(
    ("signature", "turn", "line"),
    [
        ("cos, sin", "t * cos + rotate_half(t) * sin", "cos=torch.cat((cos, cos), -1)"),
        (
            "cos, sin",
            "t * cos + torch.stack((-t[..., 1::2], t[..., ::2]), -1).flatten(-2) * sin",
            "cos=cos.repeat_interleave(2, -1)",
        ),
        (
            "rope",
            "t * rope[0] + rotate_half(t) * rope[1]",
            "rope=(torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))",
        ),
        (
            "freqs_cis, start_pos: int",
            "torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * freqs_cis).flatten(-2)",
            "freqs_cis=freqs_cis, start_pos=0",
        ),
    ],
)
def test_the_form_of_tables_is_found_out(signature: str, turn: str, line: str, tmp_path: Path) -> None:
    case = started(_halves(signature, turn), tmp_path)
    assert line in case.learner.recipe.call.written()


@pytest.mark.parametrize("name", ["pos_cis", "freq_cis", "cis", "rope_cis"])
def test_complex_tables_are_known_by_usual_names(name: str, tmp_path: Path) -> None:
    turned = f"torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * {name}"
    source = _halves(name, f"torch.view_as_real({turned}).flatten(-2)")
    assert started(source, tmp_path).learner.recipe.call.written() == f"block(x, {name}=freqs_cis)"
    tables = (
        f"\n\ndef precompute_{name}(dim, end, theta=1e4):\n"
        "    angles = torch.outer(torch.arange(end), theta ** -(torch.arange(0, dim, 2) / dim))\n"
        "    return torch.polar(torch.ones_like(angles), angles)\n"
    )
    own = f"{name}=rows(precompute_{name}(dim=head_dim, end=max_seq_len, theta=theta), positions)"
    assert started(source + tables, tmp_path).learner.recipe.call.written() == f"block(x, {own})"


@pytest.mark.parametrize(
    ("name", "turn", "line"),
    [
        ("cos_sin", "t * cos_sin[0].repeat(1, 2) + rotate_half(t) * cos_sin[1].repeat(1, 2)", "(cos, sin)"),
        ("sincos", "t * sincos[1].repeat(1, 2) + rotate_half(t) * sincos[0].repeat(1, 2)", "(sin, cos)"),
        ("angles", "t * angles.cos().repeat(1, 2) + rotate_half(t) * angles.sin().repeat(1, 2)", "angles"),
    ],
)
def test_real_tables_are_known_by_usual_names(name: str, turn: str, line: str, tmp_path: Path) -> None:
    assert started(_halves(name, turn), tmp_path).learner.recipe.call.written() == f"block(x, {name}={line})"


def test_the_files_own_tables_go_before_ours(tmp_path: Path) -> None:
    case = started(_halves("cos, sin", "t * cos + rotate_half(t) * sin") + CACHED_TABLES, tmp_path)
    assert "rows(build_rope_cache(seq_len=max_seq_len, n_elem=head_dim, base=theta), positions)[0]" in (
        case.learner.recipe.call.written()
    )


def test_what_fails_at_a_length_without_positions_is_not_helped_by_them(tmp_path: Path) -> None:
    whole = "torch.arange(self.attn.rope.cos.shape[0]) if token_positions is None else token_positions"
    source = PARTS + _block(
        "d_model, num_heads, d_ff, max_seq_len=64",
        "        rope = RotaryPositionalEmbedding(1e4, d_model // num_heads, max_seq_len)\n"
        "        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)\n"
        "        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)\n",
        "x, token_positions=None",
        f"self.attn(self.ln1(x), {whole})",
    )
    (tmp_path / "learner.py").write_text(source)
    verdict = check(f"{tmp_path / 'learner.py'}:TransformerBlock")
    assert [finding.id for finding in verdict.findings if finding.counts] == ["sequence_length_fixed"]


def test_a_default_of_positions_that_only_fits_the_whole_table_is_told(tmp_path: Path) -> None:
    source = _halves(
        "token_positions=None", "t * self.cos[token_positions] + rotate_half(t) * self.sin[token_positions]"
    )
    tables = (
        "        angles = torch.arange(max_seq_len)[:, None] / 9 ** torch.arange(4)\n"
        "        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)\n"
    )
    source = source.replace("intermediate_size)", "intermediate_size, max_seq_len)", 1)
    case = started(source.replace("        self.heads =", f"{tables}        self.heads ="), tmp_path)
    assert case.learner.recipe.call.written() == "block(x, token_positions=positions)"
    assert "token_positions is passed in every call" in case.report.conventions["without_optional_arguments"]


def test_positions_that_choose_rows_of_tables_are_not_passed_with_them(tmp_path: Path) -> None:
    rows = "rope[{0}] if position_ids is None else rope[{0}][position_ids].unsqueeze(1)"
    turn = f"t * ({rows.format(0)}) + rotate_half(t) * ({rows.format(1)})"
    (tmp_path / "model.py").write_text(_halves("rope, position_ids=None", turn))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == ([], 0)
    assert verdict.conventions["positions"].startswith("position_ids chooses rows of the tables")
    (tmp_path / "model.py").write_text(_halves("rope, position_ids=None", "t * rope[0] + rotate_half(t) * rope[1]"))
    assert "positions" not in check(f"{tmp_path}/model.py:Block").conventions


BESIDE_POSITIONS = {
    "nothing is wrong": ("", ""),
    "heads are cut out of several tokens, so that their order counts without a rotation": (
        ".view(batch, seq, self.num_heads, -1).transpose(1, 2)",
        ".view(batch, self.num_heads, seq, -1)",
    ),
    "the last token attends to nothing, so that no order shows": ("masked_fill(~mask", "masked_fill(mask"),
}


@pytest.mark.parametrize("wrong", BESIDE_POSITIONS)
def test_what_rotates_only_with_positions_gets_them_and_says_so(wrong: str, tmp_path: Path) -> None:
    old, new = BESIDE_POSITIONS[wrong]
    assert old in PARTS
    source = PARTS.replace(old, new) + _block(
        "d_model, num_heads, d_ff, max_seq_len=64",
        "        rope = RotaryPositionalEmbedding(1e4, d_model // num_heads, max_seq_len)\n"
        "        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)\n"
        "        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads), SwiGLU(d_model, d_ff)\n"
        "        self.rope = rope\n",
        "x, token_positions=None",
        "self.attn(self.ln1(x), token_positions, None if token_positions is None else self.rope)",
    )
    case = started(source, tmp_path, "TransformerBlock")
    assert case.learner.recipe.call.written() == "block(x, token_positions=positions)"
    assert "only if token_positions is passed" in case.report.conventions["rotates"]


def test_a_call_that_passes_positions_differs_in_nothing_else(tmp_path: Path) -> None:
    hidden = "scores.masked_fill(mask == True, -torch.inf)"  # the wrong way round, so that the last query sees nothing
    masking = (
        "mask = torch.ones(len(y), len(y)).tril() if mask is None else mask; "
        "scores = q @ k.transpose(-1, -2); y = torch.nan_to_num(" + hidden + ".softmax(-1)) @ v"
    )
    turn = "t * torch.arange(t.shape[-2])[:, None]"
    source = _halves("positions=None, mask=None", turn, "mask", masking.replace("len(y)", "q.shape[-2]"))
    assert started(source, tmp_path).learner.recipe.call.written() == "block(x)"


def test_sizes_are_changed_only_where_the_constructor_refuses_them(tmp_path: Path) -> None:
    plain = next(one for one in COURSE if one.name == "one file").files["model.py"]
    assert started(plain, tmp_path, "TransformerBlock").sizes.d_model == 32
    refusing = plain.replace("self.ln1, self.ln2", "assert d_ff % 64 == 0\n        self.ln1, self.ln2")
    assert started(refusing, tmp_path, "TransformerBlock").sizes.d_ff == 320


TAKES = """
class Block(nn.Module):
    def __init__(self, {}):
        super().__init__()
        {}

    def forward(self, x):
        return self.part(x)
"""


@pytest.mark.parametrize(
    ("signature", "written"),
    [
        ("dim, n_heads, d_ff, scale=False", "scale=True"),
        ("dim, n_heads, d_ff, rope: bool = False", "rope=True"),
        ("dim, d_ff, dim_heads=64", "dim_heads=head_dim"),
        ("dim, n_heads, d_ff, window_size=4", "window_size=max_seq_len"),
        ("dim, n_heads, d_ff, window_size=512", "d_ff=d_ff)"),
        ("dim, n_heads, filter_size, multiple_of", "multiple_of=1"),
    ],
)
def test_what_has_a_default_is_passed_where_the_design_or_the_sizes_need_it(
    signature: str, written: str, tmp_path: Path
) -> None:
    case = started(HEAD + TAKES.format(f"{signature}", "self.part = nn.Linear(dim, dim)"), tmp_path)
    assert written in case.learner.recipe.build.written()


def test_a_switch_that_does_not_run_keeps_its_default(tmp_path: Path) -> None:
    part = "self.part = (lambda x: x * None) if rope else nn.Linear(dim, dim)"
    case = started(HEAD + TAKES.format("dim, n_heads, d_ff, rope: bool = False", part), tmp_path)
    assert case.learner.recipe.build.written() == "Block(dim=d_model, n_heads=num_heads, d_ff=d_ff)"


def test_a_mask_of_each_sequence_may_be_true_where_it_masks(tmp_path: Path) -> None:
    masking = FILLED_FOR_EACH.format("mask")
    case = started(_halves("cos, sin, mask", "t * cos + rotate_half(t) * sin", "mask", masking), tmp_path)
    assert "may not attend" in case.report.conventions["mask_handed_in"]


FILLED_FOR_EACH = (
    "y = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill({}.transpose(1, 2).unsqueeze(1).mT, -1e9)"
    ".softmax(-1) @ v"
)
"""A mask (batch, seq, seq): no other number of axes has these."""
OF_WEIGHTS = (
    HEAD
    + """
def block(d_model, num_heads, theta, weights, in_features, token_positions=None):
    places = 0 if token_positions is None else token_positions[:, None] * theta
    return in_features + (in_features + places) @ weights["attn.q_proj.weight"].T * weights["ln1.weight"]
"""
)


def test_a_function_that_takes_its_weights_gets_those_of_the_course(tmp_path: Path) -> None:
    case = started(OF_WEIGHTS, tmp_path, "block")
    build = "weighted(block, d_model=d_model, num_heads=num_heads, theta=theta)"
    assert case.learner.recipe.build.written() == build
    built = case.build()
    assert built.positions_name == "token_positions"
    shapes = {one["name"]: one["shape"] for one in built.parameters}
    assert len(shapes) == 9
    assert shapes["ffn.w2.weight"] == [case.sizes.d_model, case.sizes.d_ff]


def test_a_function_that_takes_weights_under_names_of_its_own_needs_one_line(tmp_path: Path) -> None:
    source = OF_WEIGHTS.replace("attn.q_proj.weight", "Wq").replace("ln1.weight", "g1")
    with pytest.raises(UnknownArgumentsError, match=r"KeyError: 'Wq'.* --build \"weighted\(block,"):
        started(source, tmp_path, "block")
    names = "{'Wq': (d_model, d_model), 'g1': (d_model,)}"
    line = f"weighted(block, {names}, d_model=d_model, num_heads=num_heads, theta=theta)"
    case = started(source, tmp_path, "block", build=line)
    assert [one["name"] for one in case.build().parameters] == ["Wq", "g1"]


def test_a_function_that_copies_its_weights_into_modules_is_not_judged(tmp_path: Path) -> None:
    source = (
        OF_WEIGHTS.replace("weights[", "copied(weights)[")
        + """

def copied(weights):
    return {name: nn.Parameter(one.detach()) for name, one in weights.items()}
"""
    )
    with pytest.raises(UnknownArgumentsError, match=r"block copies its weights .* check the class"):
        started(source, tmp_path, "block")


def test_a_line_that_is_given_is_what_runs(tmp_path: Path) -> None:
    source = HEAD + TAKES.format("part", "self.part = part")
    case = started(source, tmp_path, build="Block(nn.Linear(d_model, d_model))", call="block(x * 2)")
    assert case.learner.recipe.call.written() == "block(x * 2)"
    assert [one["name"] for one in case.build().parameters] == ["part.weight", "part.bias"]


def test_names_of_other_files_in_a_line_that_is_given_are_told(tmp_path: Path) -> None:
    (tmp_path / "sizes_beside.py").write_text("n_units = 32\nmask = 3\n")
    (tmp_path / "model.py").write_text(
        HEAD + "import sizes_beside\n" + TAKES.format("width", "self.part = nn.Linear(width, width)")
    )
    told = {
        ("Block(n_units)", None): "n_units is that of sizes_beside.py",
        ("Block(sizes_beside.n_units)", None): None,
        ("Block(d_model)", "block(x + 0 * mask.sum())"): None,
        ("Block(d_model)", "block(x + 0 * n_units)"): "n_units is that of sizes_beside.py",
        ("Block(mask)", None): "mask is that of sizes_beside.py",
    }
    for (build, call), said in told.items():
        if build == "Block(mask)":
            (tmp_path / "sizes_beside.py").write_text("mask = 32\n")
        verdict = check(f"{tmp_path}/model.py:Block", build=build, call=call)
        assert verdict.conventions.get("names_of_other_files") == said
    assert "names_of_other_files" not in check(f"{tmp_path}/model.py:Block").conventions


def test_what_nobody_could_guess_says_how_to_say_it(tmp_path: Path) -> None:
    source = (
        HEAD
        + "class Block(nn.Module):\n    def __init__(self, zork):\n        super().__init__()\n        zork.width\n"
    )
    with pytest.raises(UnknownArgumentsError, match=r"constructor's zork .* --build \"Block\("):
        started(source, tmp_path)
    with pytest.raises(ConfigError, match="--build is one Python expression"):
        started(source, tmp_path, build="Block(")


def test_a_function_that_computes_an_output_builds_no_block(tmp_path: Path) -> None:
    signature = "(d_model: int, num_heads: int, d_ff: int, first: Tensor, in_features: Tensor) -> Tensor"
    source = f"{HEAD}\n\ndef block{signature}:\n    return in_features + in_features @ first.mT\n"
    with pytest.raises(UnknownArgumentsError, match=r"block takes tensors \(first, in_features\)"):
        started(source, tmp_path, "block")
    source = source.replace("first: Tensor", "weights: dict[str, Tensor]").replace("first.mT", "weights['w'].mT")
    with pytest.raises(UnknownArgumentsError, match=r"KeyError: 'w'; correct .* --build \"weighted\(block,"):
        started(source, tmp_path, "block")


def test_a_wrong_guess_is_no_fault_and_still_a_verdict(tmp_path: Path) -> None:
    source = _halves("cos, sin", "t * cos[..., :3] + rotate_half(t) * sin[..., :3]")
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["arguments_unknown"], (), 2)
    assert '--call "block(x, cos=' in verdict.findings[0].evidence
    (tmp_path / "model.py").write_text(source.replace("cos[..., :3]", "self.nowhere"))
    assert check(f"{tmp_path}/model.py:Block").ids == ["forward_error"]


OWN_ERRORS = {
    "the same with any table": (("d_model, rope", "self.rope = rope"), "x.view(3)", "forward_error"),
    "only with this table": (("d_model, rope", "self.rope = rope"), "x.view(self.rope)", "arguments_unknown"),
    "the same with any argument": (("d_model, zork", "torch.zeros(2).view(3)"), "x", "constructor_error"),
    "only with this argument": (("d_model, zork", "torch.zeros(2).view(zork)"), "x", "arguments_unknown"),
    "the same with any sizes by place": (("a, b, c", "torch.zeros(2).view(3)"), "x", "constructor_error"),
    "only with these sizes by place": (("a, b, c", "torch.zeros(2).view(b)"), "x", "arguments_unknown"),
    "after a size by place is used": (("d, n, f", "nn.Linear(d, n).nowhere"), "x", "constructor_error"),
    "whatever a size by place is": (
        ("d, n, f", "self.part = nn.Linear(d, d // n * n + f)"),
        "self.part(x).transpose(-2, -5)",
        "forward_error",
    ),
    "with a size that is no number": (("d, n, f", "self.part = f"), "self.part(x)", "arguments_unknown"),
    "with a size that is a name": (
        ("d, n, f", "self.f = f"),
        "self.f == 'pre' and x or {}['post']",
        "arguments_unknown",
    ),
    "with a size that is a switch": (("d, n, f", "self.f = f"), "{}['cache'] if self.f else x", "arguments_unknown"),
    "with a size that must be longer": (("d, n, f", "self.n = n"), "x + torch.zeros(self.n)[6]", "arguments_unknown"),
    "with a size that is refused": (("d, n, f", "assert n % 3 == 0"), "x", "arguments_unknown"),
    "with sizes of any names": (("*sizes", "torch.zeros(2).view(sizes[1])"), "x", "arguments_unknown"),
    "whatever sizes of any names are": (("*sizes", "torch.zeros(2).view(3)"), "x", "constructor_error"),
    "only for a batch": (
        ("d_model, zork", "self.later = lambda y: y @ zork.T"),
        "self.later(x.view(len(x), 32))",
        "arguments_unknown",
    ),
    "the same with any default": (("config: Config", "self.multiple = config.piece"), "x.view(3)", "forward_error"),
    "only with this default": (
        ("config: Config", "self.piece = config.piece"),
        "x.view(self.piece)",
        "arguments_unknown",
    ),
    "sizes of the file's own": (
        ("", "self.part = nn.Linear(Config().d_model, 4)"),
        "self.part(x)",
        "arguments_unknown",
    ),
    "sizes that do arrive": (("d_model", "self.part = nn.Linear(768, 4)"), "self.part(x)", "forward_error"),
}


DEMANDS = {
    "by their names": (
        "dropout=None, frames=None, height=None",
        "if frames is None or height is None: raise ValueError('no frames, height')",
    ),
    "in words": ("rope_scale=None, cache=None", "if cache is None: raise ValueError('a place for keys is needed')"),
    "by an assertion": ("frames=None", "assert frames is not None"),
}


@pytest.mark.parametrize("case", DEMANDS)
@pytest.mark.parametrize("stage", ["constructor", "forward"])
def test_optional_arguments_that_are_demanded_are_no_fault(stage: str, case: str, tmp_path: Path) -> None:
    takes, demand = DEMANDS[case]
    source = HEAD + TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)")
    after = {"constructor": ("d_model):", "super().__init__()"), "forward": ("self, x):", "def forward(self, x):")}
    signature, before = after[stage]
    source = source.replace(before, f"{before}\n        {demand}").replace(signature, f"{signature[:-2]}, {takes}):")
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    assert f"without its optional {'cache' if case == 'in words' else 'frames'}" in verdict.findings[0].evidence
    assert verdict.findings[0].place is not None
    assert verdict.findings[0].place.code == demand


@pytest.mark.parametrize("refusal", ["assert x.shape[-1] == 3", "raise ValueError('for this mask')"])
def test_what_optional_arguments_do_not_change_is_refused_by_the_block(refusal: str, tmp_path: Path) -> None:
    source = HEAD + TAKES.format("d_model", refusal.replace("x.shape[-1]", "d_model"))
    (tmp_path / "model.py").write_text(source.replace("d_model):", "d_model, mask=None, scale=None):"))
    assert check(f"{tmp_path}/model.py:Block").ids == ["constructor_error"]
    forward = HEAD + TAKES.format("d_model", "pass").replace("self, x):", "self, x, mask=None, scale=None):")
    (tmp_path / "model.py").write_text(forward.replace("return", f"{refusal}\n        return"))
    assert check(f"{tmp_path}/model.py:Block").ids == ["forward_error"]


ROTATION_BELOW = """
class Block(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.part = nn.Linear(d_model, d_model)

    def mixed(self, x, rope, token_positions):
        return x if token_positions is None else rope(x, token_positions)

    def forward(self, x, rope=None, token_positions=None):
        {}


class RoPE(nn.Module):  # for heads of half this size
    def __init__(self, theta, d_k, max_seq_len):
        super().__init__()
        angles = torch.arange(max_seq_len)[:, None] * theta ** (-torch.arange(0, d_k, 2) / d_k)
        self.register_buffer("cos", angles.cos(), persistent=False)

    def forward(self, x, token_positions):
        return x[..., ::2] * self.cos[token_positions]
"""
WITH_A_ROTATION = {
    "before an argument is used": ("return self.part(math.sqrt(x))", "forward_error"),
    "of an attribute that lacks": ("return self.mixed(x, rope, token_positions) + self.nowhere", "forward_error"),
    "with None for the rotation": ("return self.mixed(x, rope, token_positions) * rope.scale", "arguments_unknown"),
}


@pytest.mark.parametrize("case", WITH_A_ROTATION)
def test_an_error_of_the_plainest_call_is_the_blocks_own(case: str, tmp_path: Path) -> None:
    line, id = WITH_A_ROTATION[case]
    (tmp_path / "model.py").write_text(HEAD + ROTATION_BELOW.format(line))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert verdict.ids == [id]
    if id == "forward_error":
        assert verdict.call == "block(x)"
        assert verdict.findings[0].place is not None
        assert verdict.findings[0].place.code == line


def test_a_call_got_further_only_by_lines_of_one_function() -> None:
    def error(*steps: tuple[str, int], **more: object) -> LearnerError:
        frames = [{"file": f"{name}.py", "function": "forward", "line": line, "code": ""} for name, line in steps]
        return LearnerError("forward", {"type": "ValueError", "message": "", "frames": frames, **more})

    block = error(("block", 20), ("norm", 5))
    assert is_further(error(("block", 23)), block)
    assert not is_further(block, error(("block", 23)))
    assert not is_further(error(("block", 20), ("attention", 40)), block)
    assert is_further(block, error(("rope", 44), entered=False))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("case", OWN_ERRORS)
def test_an_error_is_the_blocks_own_if_no_guess_changes_it(case: str, tmp_path: Path) -> None:
    (signature, part), y, id = OWN_ERRORS[case]
    config = "\n\n@dataclass\nclass Config:\n    d_model: int = 768\n    n_heads: int = 12\n    piece: int = 64\n\n"
    (tmp_path / "model.py").write_text(HEAD + config + TAKES.format(signature, part).replace("self.part(x)", y))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert verdict.ids[-1:] == [id]
    assert verdict.exit_code == (2 if id == "arguments_unknown" else 1)


def test_defaults_that_do_not_run_are_told(tmp_path: Path) -> None:
    def told(signature: str, inner: str) -> str | None:
        part = f"{inner}; self.part = nn.Linear(d_model, d_model)"
        case = started(HEAD + TAKES.format(f"d_model, num_heads, {signature}", part), tmp_path)
        return case.report.conventions.get("constructor_defaults")

    assert told("d_ff=None, theta=1e4", "self.up = nn.Linear(d_model, 4 if d_ff is None else d_ff)") is None
    inner = "self.up = nn.Linear(d_model, mlp_ratio * d_model if d_ff is None else d_ff)"
    assert told("d_ff=None, mlp_ratio: int = 4", inner) is None  # with our ratio, it is no integer
    said = (
        "without d_ff it raises TypeError: unsupported operand type(s) for *: 'int' and 'NoneType'; always passed here"
    )
    assert told("d_ff=None, max_seq_len=None", "self.up = nn.Linear(d_model, 2 * d_ff)") == said
    both = "without max_seq_len, theta it raises AssertionError: ; always passed here"
    assert told("d_ff, max_seq_len=None, theta=None", "assert max_seq_len or theta") == both
    assert told("d_ff, max_seq_len=None, theta=None", "assert bool(max_seq_len) == bool(theta)") is None


def test_a_default_that_raises_for_a_name_that_nothing_defines_is_an_error(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(d_model, d_model); self.theta = theta or undefined"
    source = HEAD + TAKES.format("d_model, num_heads, d_ff, theta=None", part)
    case = started(source, tmp_path, text=source)
    assert case.report.faults() == {"constructor_error"}
    assert "without theta it raises NameError" in case.report.findings["constructor_error"]


def test_tables_of_the_file_are_not_rounded_where_it_lets_one_choose(tmp_path: Path) -> None:
    tables = CACHED_TABLES.replace("base: int = 10000", "dtype: torch.dtype = torch.bfloat16")
    case = started(
        _halves("cos, sin", "t * cos + rotate_half(t) * sin") + tables.replace("base **", "1e4 **"), tmp_path
    )
    assert "n_elem=head_dim, dtype=torch.float32)" in case.learner.recipe.call.written()


def test_a_file_of_a_package_is_found_through_it(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").touch()
    late = TAKES.format("d_model", "import lm.model; self.part = lm.model.Norm(d_model)")
    (tmp_path / "lm" / "model.py").write_text(f"{HEAD}\nclass Norm(nn.RMSNorm): ...\n\n{late}")
    verdict = check(f"{tmp_path}/lm/model.py:Block")
    assert "constructor_error" not in verdict.ids


def test_dropouts_that_cannot_be_none_get_a_number(tmp_path: Path) -> None:
    parts = "self.drops = nn.Dropout(attn_pdrop), nn.Dropout(resid_pdrop)"
    case = started(HEAD + TAKES.format("d_model, attn_pdrop=None, resid_pdrop=None", parts), tmp_path)
    assert case.learner.recipe.build.written() == "Block(d_model=d_model, attn_pdrop=dropout, resid_pdrop=dropout)"


def test_numbers_without_which_nothing_rotates_are_given(tmp_path: Path) -> None:
    numbers = "num_heads, d_ff, rope_context_len, rope_max_seq_len: int | None = None, rotary_base_freq=None"
    part = "self.part = nn.Linear(d_model, d_model); sum([rope_context_len, rope_max_seq_len, rotary_base_freq])"
    case = started(HEAD + TAKES.format(f"d_model, {numbers}", part), tmp_path)
    given = "rope_context_len=max_seq_len, rope_max_seq_len=max_seq_len, rotary_base_freq=theta)"
    assert case.learner.recipe.build.written().endswith(given)


def test_a_module_without_super_is_told_as_such(tmp_path: Path) -> None:
    part = "class Part(nn.Module):\n    def __init__(self, d_model):\n        self.width = d_model\n\n"
    (tmp_path / "model.py").write_text(HEAD + part + TAKES.format("d_model", "self.part = Part(d_model)"))
    (finding,) = check(f"{tmp_path}/model.py:Block").findings
    assert "Part.__init__ never calls super().__init__()" in finding.evidence
    assert finding.place is not None
    assert finding.place.code == "def __init__(self, d_model):"


def test_an_error_that_only_leads_to_another_is_shown_with_it(tmp_path: Path) -> None:
    text = "try: 1 / 0\n        except ZeroDivisionError as error: raise ValueError('it failed:') from error"
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("d_model", text))
    (finding,) = check(f"{tmp_path}/model.py:Block").findings
    assert finding.evidence == "ValueError: it failed: ZeroDivisionError: division by zero"


def test_to_cuda_does_nothing_where_there_is_no_gpu(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(d_model, d_model).to('cuda').to(device='cuda:0', dtype=torch.float64)"
    case = started(HEAD + TAKES.format("d_model", part), tmp_path, call="block(x)")
    assert [one["dtype"] for one in case.build().parameters] == ["float64"] * 2
    assert "to('cuda')" in case.learner.made["notes"]["cuda"]


def test_an_import_error_points_at_the_line_that_failed(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").touch()
    (tmp_path / "lm" / "rope.py").write_text("import torch\n\nx = torch.nothing_of_this_name\n")
    (tmp_path / "lm" / "block.py").write_text("from .rope import x\n\nclass Block: ...\n")
    code = locate(f"{tmp_path}/lm/block.py:Block")
    (finding,) = judge(LocalSubject(), code).findings
    assert finding.id == "import_error"
    assert finding.place is not None
    assert (Path(finding.place.file).name, finding.place.line) == ("rope.py", 3)


def test_a_version_is_known_of_the_learners_own_project_alone(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "my-lm"\nversion = "3.1"\n')
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").touch()
    text = "import importlib.metadata as m\nVERSION = m.version('my_lm'), m.version('lm')\nclass Block: ...\n"
    (tmp_path / "lm" / "block.py").write_text(text)
    code = locate(f"{tmp_path}/lm/block.py:Block")
    assert code.distributions == {"my-lm": "3.1", "lm": "0"}
    Learner(LocalSubject()).load(code)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn_of_nobody")


def test_a_missing_package_that_a_block_uses_is_named(tmp_path: Path) -> None:
    source = "import xformers.ops as xops\n" + _halves(
        "cos, sin", "t * cos + rotate_half(t) * sin", masking="y = xops.memory_efficient_attention(q, k, v)"
    )
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.faults, verdict.exit_code) == ((), 2)
    (finding,) = [one for one in verdict.findings if one.id == "forward_error"]
    assert "xformers is not installed here: pip install xformers" in finding.evidence
    assert finding.place is not None
    assert "xops" in finding.place.code


def test_a_missing_package_is_no_fault_of_the_block(tmp_path: Path) -> None:
    source = HEAD + "from fairscale.nn import Part\n" + TAKES.format("d_model", "self.part = Part(d_model)")
    (tmp_path / "model.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["constructor_error"], (), 2)
    assert "pip install fairscale" in verdict.findings[0].evidence


UNKNOWN = "import tracking_of_our_lab as lab\n\n"


def test_a_package_that_nobody_knows_and_no_block_uses_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        HEAD + UNKNOWN + TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)")
    )
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/model.py:Block"))
    assert "pip install tracking_of_our_lab, or put tracking_of_our_lab.py" in str(learner.made["notes"])


def test_a_package_that_nobody_knows_and_a_block_uses_cannot_be_judged(tmp_path: Path) -> None:
    source = HEAD + UNKNOWN + TAKES.format("d_model", "self.part = lab.Part(d_model)")
    (tmp_path / "model.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["constructor_error"], (), 2)
    assert (
        "put tracking_of_our_lab.py (or the folder tracking_of_our_lab) beside this file"
        in verdict.findings[0].evidence
    )


def test_names_of_a_missing_package_are_computed_with_only_while_files_are_imported(tmp_path: Path) -> None:
    errors = "import boto3\nfrom boto3 import scale\n\nERRORS = set(boto3.client.Scheme.errors + (ValueError,))\n\n"
    (tmp_path / "model.py").write_text(HEAD + errors + TAKES.format("d_model", "self.scale = 2 * scale"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert (verdict.ids, verdict.exit_code) == (["constructor_error"], 2)
    assert "pip install boto3" in verdict.findings[0].evidence
    assert verdict.findings[0].place is not None
    assert verdict.findings[0].place.code == "self.scale = 2 * scale"


@pytest.mark.parametrize("inner", ["lab_tools/lab_tools", "lab_tools/src/lab_tools"])
@pytest.mark.parametrize("line", ["from lab_tools.parts import part", "from lab_tools import part"])
def test_a_package_is_found_in_the_checkout_beside(line: str, inner: str, tmp_path: Path) -> None:
    for folder in (tmp_path / inner, tmp_path / "lm"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (tmp_path / "lab_tools" / "setup.py").touch()
    (tmp_path / inner / "parts.py").write_text(HEAD + "def part(width):\n    return nn.Linear(width, width)\n")
    (tmp_path / inner / "__init__.py").write_text("from .parts import part\n")
    (tmp_path / "lm" / "model.py").write_text(HEAD + line + "\n" + TAKES.format("d_model", "self.part = part(d_model)"))
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/lm/model.py:Block"))
    assert not learner.made["notes"]


def test_the_folder_itself_goes_before_a_checkout_in_it(tmp_path: Path) -> None:
    for name in ("attention", "kinds_of_layers"):
        (tmp_path / "kinds_of_layers" / name).mkdir(parents=True)
        (tmp_path / "kinds_of_layers" / name / "__init__.py").write_text("WIDTH = 3\n")
    line = "from kinds_of_layers.attention import WIDTH\nfrom kinds_of_layers.kinds_of_layers import WIDTH\n"
    (tmp_path / "model.py").write_text(HEAD + line + TAKES.format("d_model", "pass"))
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/model.py:Block"))
    assert not learner.made["notes"]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_package_without_init_is_found_however_deep_its_files_lie(depth: int, tmp_path: Path) -> None:
    inner = [f"kinds_of_parts_{depth}", *(f"level{number}" for number in range(depth))]
    folder = tmp_path.joinpath(*inner)
    folder.mkdir(parents=True)
    (folder / "parts.py").write_text("WIDTH = 3\n")
    line = f"from {'.'.join(inner)}.parts import WIDTH\n"
    (folder / "model.py").write_text(HEAD + line + TAKES.format("d_model", "pass"))
    learner = Learner(LocalSubject())
    learner.load(locate(f"{folder}/model.py:Block"))
    assert not learner.made["notes"]


def test_an_installed_package_goes_before_its_checkout(tmp_path: Path) -> None:
    (tmp_path / "einops" / "einops").mkdir(parents=True)
    (tmp_path / "einops" / "einops" / "__init__.py").touch()
    (tmp_path / "model.py").write_text("from einops import rearrange\n\nclass Block: ...\n")
    assert locate(f"{tmp_path}/model.py:Block").beside.get("einops") != f"{tmp_path}/einops/einops"


def test_a_folder_that_may_not_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kept_closed").mkdir()
    (tmp_path / "model.py").write_text("import kept_closed\n\nclass Block: ...\n")
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent.name == "kept_closed":
            raise PermissionError(str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    assert "kept_closed" not in locate(f"{tmp_path}/model.py:Block").beside


@pytest.mark.parametrize(("top", "line"), [("mesh_kinds", ""), ("mesh_sorts", "import mesh_sorts as sorts\n")])
def test_a_file_beside_is_not_the_package_of_its_name(top: str, line: str, tmp_path: Path) -> None:
    """line: in a file of that name, which cannot mean itself."""
    (tmp_path / "lm").mkdir()
    for name in ("__init__", top):
        (tmp_path / "lm" / f"{name}.py").write_text(line)
    source = HEAD + f"from {top}.checker import typecheck\n" + TAKES.format("d_model", "pass")
    (tmp_path / "lm" / "model.py").write_text(source)
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/lm/model.py:Block"))
    assert f"pip install {top}" in learner.made["notes"][top]


def test_a_file_that_is_imported_as_one_stays_where_another_import_means_a_package(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").touch()
    (tmp_path / "common_parts.py").write_text("WIDTH = 3\n")
    line = "try:\n    from common_parts.inner import WIDTH\nexcept ImportError:\n    from common_parts import WIDTH\n"
    (tmp_path / "lm" / "model.py").write_text(HEAD + line + TAKES.format("d_model", "assert WIDTH == 3"))
    code = locate(f"{tmp_path}/lm/model.py:Block")
    learner = Learner(LocalSubject())
    learner.load(code)
    assert not learner.made["notes"]


def test_what_raises_after_a_guess_is_pointed_at(tmp_path: Path) -> None:
    forward = "    def forward(self, x, rope_cache):\n        return rope_cache * x @ x"
    part = f"self.part = nn.Linear(d_model, d_model)\n\n{forward}"
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("d_model", part).rpartition("\n    def forward")[0] + "\n")
    (finding,) = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block")).findings
    assert finding.id == "arguments_unknown"
    assert finding.place is not None
    assert finding.place.code == "return rope_cache * x @ x"


def test_a_norm_over_positions_begins_at_one_and_fixes_the_length(tmp_path: Path) -> None:
    source = (
        Path(small.__file__).read_text().replace("d_model, num_heads, d_ff):", "d_model, num_heads, d_ff, seq_len):")
    )
    source = source.replace("self.norms(d_model)", "nn.RMSNorm((seq_len, d_model)), nn.RMSNorm(d_model)")
    (tmp_path / "model.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Right"))
    found = {one.id: one for one in verdict.findings}
    assert "sequence_length_fixed" in found
    assert "weight_init_scale" not in found
    place = found["sequence_length_fixed"].place
    assert place is not None
    assert "nn.RMSNorm((seq_len" in place.code


@pytest.mark.parametrize(
    "line",
    [
        "import toch",
        "from numpyy import array",
        "from .parts import Part",
        "from typing import Optinal",
        "class A[: ...",
    ],
)
def test_a_name_that_is_misspelt_or_of_the_learners_own_is_a_fault(line: str, tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").touch()
    (tmp_path / "lm" / "model.py").write_text(HEAD + line + "\n" + TAKES.format("d_model", "pass"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/lm/model.py:Block"))
    assert (verdict.ids, verdict.exit_code) == (["import_error"], 1)


@pytest.mark.parametrize(
    "line",
    [
        "import six, codec, typed, torchx, qtorch, pathlib2",
        "from abc import ABC\nimport lab_calls\nclass Noted(lab_calls.Callback, ABC): ...",
        "import lab_hooks\nclass Noted(lab_hooks.Callback, nn.Module): ...",
    ],
)
def test_a_package_that_is_missing_and_unused_is_no_fault(line: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HEAD + line + "\n" + TAKES.format("d_model", "pass"))
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/model.py:Block"))
    assert learner.made["notes"]


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("lab_kinds", "class Kind(lab_kinds.Kind, enum.Enum):"),
        ("lab_release", "NEW = lab_release.__version__ > '1.0'"),
        ("lab_sizes", "SMALL = Part < 3"),
    ],
)
def test_what_cannot_stand_in_for_a_missing_package_is_no_fault(package: str, line: str, tmp_path: Path) -> None:
    body = "    A = 1\n" if line.endswith(":") else ""
    head = f"{HEAD}import enum\nimport {package}\nfrom {package} import Part\n"
    (tmp_path / "model.py").write_text(f"{head}{line}\n{body}" + TAKES.format("d_model", "pass"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert [(one.id, one.counts) for one in verdict.findings] == [("import_error", False)]
    assert f"{package} is not installed here" in verdict.findings[0].evidence
    assert verdict.findings[0].place is not None
    assert verdict.findings[0].place.code == line


def test_a_circle_of_imports_that_a_missing_package_opens_is_no_fault(tmp_path: Path) -> None:
    """The package's __init__.py would import parts first, but it cannot run."""
    (tmp_path / "lm_in_circles").mkdir()
    line = "import lab_opener\nNEW = lab_opener.__version__ > '1'\nfrom . import parts\n"
    (tmp_path / "lm_in_circles" / "__init__.py").write_text(line)
    (tmp_path / "lm_in_circles" / "parts.py").write_text("WIDTH = 3\nfrom .model import Block\n")
    source = HEAD + "from .parts import WIDTH\n" + TAKES.format("d_model", "pass")
    (tmp_path / "lm_in_circles" / "model.py").write_text(source)
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/lm_in_circles/model.py:Block"))
    assert [(one.id, one.counts) for one in verdict.findings] == [("import_error", False)]
    assert "lab_opener is not installed here" in verdict.findings[0].evidence


def test_an_error_beside_a_missing_package_is_the_files_own(tmp_path: Path) -> None:
    line = "import lab_notes\nHALF = None < 3\n"
    (tmp_path / "model.py").write_text(HEAD + line + TAKES.format("d_model", "pass"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert (verdict.ids, verdict.exit_code) == (["import_error"], 1)


def test_a_folder_without_init_is_imported_again_with_the_package_around_it(tmp_path: Path) -> None:
    (tmp_path / "lm_of_ours" / "layers").mkdir(parents=True)
    (tmp_path / "lm_of_ours" / "__init__.py").touch()
    (tmp_path / "lm_of_ours" / "layers" / "norm.py").write_text("import lacking_in_our_lab\nWIDTH = 3\n")
    source = HEAD + "from lm_of_ours.layers.norm import WIDTH\n" + TAKES.format("d_model", "pass")
    (tmp_path / "lm_of_ours" / "layers" / "block.py").write_text(source)
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/lm_of_ours/layers/block.py:Block"))
    assert [*learner.made["notes"]] == ["lacking_in_our_lab"]


def test_a_folder_that_lacks_what_is_imported_is_not_the_package_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "tts" / "codec_parts").mkdir(parents=True)
    (tmp_path / "tts" / "__init__.py").touch()
    source = HEAD + "from codec_parts.model.base import Part\n" + TAKES.format("d_model", "pass")
    (tmp_path / "tts" / "codec_parts" / "block.py").write_text(source)
    learner = Learner(LocalSubject())
    learner.load(locate(f"{tmp_path}/tts/codec_parts/block.py:Block"))
    assert "pip install codec_parts" in learner.made["notes"]["codec_parts"]


@pytest.mark.parametrize("parts", [["layers"], ["layers", "model.base"]])
def test_a_package_that_lacks_all_that_is_imported_by_its_name_is_another(parts: list[str], tmp_path: Path) -> None:
    """One that lacks a single part has it misspelt, or lost."""
    package = f"codec_with_{len(parts)}"  # this process keeps what it imported
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    lines = "".join(f"from {package}.{part} import Part\n" for part in parts)
    (tmp_path / package / "block.py").write_text(HEAD + lines + TAKES.format("d_model", "pass"))
    learner = Learner(LocalSubject())
    code = locate(f"{tmp_path}/{package}/block.py:Block")
    if len(parts) == 1:
        with pytest.raises(LearnerError, match=rf"No module named '{package}\.layers'"):
            learner.load(code)
    else:
        learner.load(code)
        assert f"pip install {package}" in learner.made["notes"][package]


@pytest.mark.parametrize("name", ["Trainer", "OurTrainer", "trainer", "shapes"])
@pytest.mark.parametrize("file", ["block.py", "blocks/block.py", "speed_parts/block.py"])
def test_a_folder_in_a_package_that_lacks_a_name_is_not_the_package_of_its_name(
    file: str, name: str, tmp_path: Path
) -> None:
    """name: imported from a folder of which it is known what it has."""
    (tmp_path / "lm" / "speed_parts").mkdir(parents=True)
    (tmp_path / "lm" / file).parent.mkdir(exist_ok=True)
    for folder in ("", "speed_parts", Path(file).parent):
        (tmp_path / "lm" / folder / "__init__.py").touch()
    (tmp_path / "lm" / "speed_parts" / "__init__.py").write_text("from .trainer import OurTrainer\n")
    (tmp_path / "lm" / "speed_parts" / "trainer.py").write_text("class OurTrainer: ...\n")
    lines = f"from speed_parts.trainer import OurTrainer\nfrom speed_parts import {name}\n"
    (tmp_path / "lm" / file).write_text(HEAD + lines + TAKES.format("d_model", "pass"))
    found = locate(f"{tmp_path}/lm/{file}:Block").beside.get("speed_parts")
    assert found == (f"{tmp_path}/lm/speed_parts" if name in ("OurTrainer", "trainer") else None)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has it")
def test_a_name_of_a_newer_python_comes_from_typing_extensions(tmp_path: Path) -> None:
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").write_text("from .model import Block\n")
    plain = next(one for one in COURSE if one.name == "one file").files["model.py"]
    newer = "from typing import override\n" + plain.replace("    def forward", "    @override\n    def forward")
    (tmp_path / "lm" / "model.py").write_text(newer)
    verdict = check(f"{tmp_path}/lm/model.py:TransformerBlock")
    assert (verdict.ids, verdict.exit_code) == ([], 0)
    assert "typing.override: new in Python 3.12" in verdict.conventions["at_import"]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has them")
@pytest.mark.parametrize(
    ("line", "part", "id"),
    [
        ("from itertools import batched", "pass", "import_error"),
        ("import itertools", "self.pairs = list(itertools.batched(range(d_model), 2))", "constructor_error"),
        ("class Box[T]: ...", "pass", "import_error"),
        ("type Sizes = tuple[int, int]", "pass", "import_error"),
        ("def first[\n    T,\n](values: list[T]) -> T: ...", "pass", "import_error"),
    ],
)
def test_what_only_a_newer_python_has_is_no_fault(line: str, part: str, id: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(HEAD + line + "\n" + TAKES.format("d_model", part))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert [(one.id, one.counts) for one in verdict.findings] == [(id, False)]
    assert "needs Python 3.12, and this is Python 3.11" in verdict.findings[0].evidence
    assert verdict.exit_code == 2


@pytest.mark.parametrize(("default", "counts"), [("Sizes()", False), ("[]", True)])
def test_defaults_that_only_an_older_python_takes_are_no_fault(default: str, counts: bool, tmp_path: Path) -> None:
    classes = "from dataclasses import dataclass\n\n@dataclass\nclass Sizes:\n    width: int = 3\n\n"
    classes += f"@dataclass\nclass Config:\n    sizes: object = {default}\n\n"
    (tmp_path / "model.py").write_text(HEAD + classes + TAKES.format("d_model", "pass"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert [(one.id, one.counts) for one in verdict.findings] == [("import_error", counts)]
    assert ("needs Python 3.10 or older" in verdict.findings[0].evidence) is not counts


FILE_OF_NUMBERS = """
n_embd, n_head, block_size, dropout = 384, 6, 256, 0.2

class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(n_embd, n_embd // n_head * n_head)
        self.register_buffer("tril", torch.ones(block_size, block_size).tril())

    def forward(self, x):
        return self.inner(x)
"""


@pytest.mark.parametrize("takes", ["", "n_embd, n_head"])
def test_sizes_that_a_file_has_as_plain_numbers_are_set(takes: str, tmp_path: Path) -> None:
    source = HEAD + FILE_OF_NUMBERS + TAKES.format(takes, "self.part = Part()").replace("self, ):", "self):")
    case = started(source, tmp_path)
    changed = "changed(n_embd=d_model, n_head=num_heads, block_size=max_seq_len, dropout=dropout).Block("
    assert case.learner.recipe.build.written().startswith(changed)
    built = case.build(max_seq_len=11)
    assert [one["shape"] for one in built.parameters + built.tensors] == [[32, 32], [32], [11, 11]]


def test_numbers_of_a_file_that_nothing_depends_on_stay(tmp_path: Path) -> None:
    source = HEAD + FILE_OF_NUMBERS + TAKES.format("n_embd", "self.part = nn.Linear(n_embd, n_embd)")
    assert started(source, tmp_path).learner.recipe.build.written() == "Block(n_embd=d_model)"


def test_a_third_argument_that_is_a_ratio_is_no_width(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(hidden_size, int(hidden_size * mlp_ratio))"
    case = started(HEAD + TAKES.format("hidden_size, num_heads, mlp_ratio: float", part), tmp_path, call="x")
    assert "mlp_ratio=d_ff / d_model" in case.learner.recipe.build.written()
    assert [one["shape"] for one in case.build().parameters] == [[52, 32], [52]]


def _reading(text: str) -> str:
    reads = f"self.part = nn.Linear(d_model, d_model)\n\n    def forward(self, x):\n        {text}"
    return (HEAD + TAKES.format("d_model", reads)).replace(
        "\n    def forward(self, x):\n        return", "        return"
    )


@pytest.mark.parametrize(
    "text", ["seq, width = x.shape", "x = x.view(len(x), 32)", "x = x[torch.arange(7), :].addmm(x, torch.eye(32))"]
)
def test_a_block_of_one_sequence_is_called_with_each(text: str, tmp_path: Path) -> None:
    case = started(_reading(text), tmp_path)
    assert case.learner.recipe.call.written() == "each(block)(x)"
    assert case.report.conventions["axes"] == "(seq, d_model), a sequence at a time"


def test_a_block_that_takes_a_batch_of_one_is_not_of_one_sequence(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(_reading("x = x + torch.ones(x.shape[:-1])[..., None, :, None].squeeze(0)"))
    verdict = judge(LocalSubject(), locate(f"{tmp_path}/model.py:Block"))
    assert (verdict.ids, verdict.call) == (["forward_error"], "block(x)")


def test_a_default_that_is_a_member_of_an_enumeration_is_not_plain(tmp_path: Path) -> None:
    kind = "import enum\n\nclass Kind(str, enum.Enum):\n    SILU = 'silu'\n\n"
    source = HEAD + kind + TAKES.format("d_model, kind=Kind.SILU", "self.part = nn.Linear(d_model, d_model)")
    constructor = started(source, tmp_path).learner.made["constructor"]
    assert [(one["name"], one["default"]) for one in constructor] == [("d_model", None), ("kind", None)]


def test_an_object_of_the_file_that_needs_nothing_is_made(tmp_path: Path) -> None:
    classes = (
        "class Cache(dict): ...\n\n@dataclass\nclass ModelConfig:\n    d_model: int = 768\n    n_heads: int = 12\n"
    )
    part = "self.part = nn.Linear(config.d_model, config.d_model)\n        cache['part'] = self.part.weight"
    case = started(HEAD + classes + TAKES.format("config: ModelConfig, cache: Cache", part), tmp_path)
    line = "Block(config=ModelConfig(d_model=d_model, n_heads=num_heads), cache=Cache())"
    assert case.learner.recipe.build.written() == line


def test_a_default_that_does_not_run_is_said_to_be_avoided(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(d_model, d_model)"
    takes = TAKES.replace("forward(self, x)", "forward(self, x, token_positions=None)")
    takes = takes.replace("return", "assert token_positions is not None\n        return")
    case = started(HEAD + takes.format("d_model", part), tmp_path)
    assert case.learner.recipe.call.written() == "block(x, token_positions=positions)"
    said = case.report.conventions["without_optional_arguments"]
    assert said == "block(x) raises AssertionError: ; token_positions is passed in every call"
    case = started(HEAD + TAKES.format("d_model", part), tmp_path)
    assert "without_optional_arguments" not in case.report.conventions


def test_a_configuration_of_the_file_rotates_and_keeps_what_only_looks_like_a_width(tmp_path: Path) -> None:
    config = (
        "@dataclass\nclass Config:\n    d_model: int = 768\n    n_heads: int = 12\n    mlp_ratio: int = 4\n"
        "    rope: bool = False\n    rope_full_precision: bool = False\n    cutoff_factor: Optional[float] = None\n"
    )
    part = "self.part = nn.Linear(config.d_model, config.d_model)"
    case = started(HEAD + config + TAKES.format("config: Config", part), tmp_path)
    line = "Block(config=Config(d_model=d_model, n_heads=num_heads, mlp_ratio=4, rope=True))"
    assert case.learner.recipe.build.written() == line


def test_arguments_that_are_handed_up_to_the_base_class_are_known(tmp_path: Path) -> None:
    base = TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)").replace("Block", "Base")
    block = "class Block(Base):\n    def __init__(self, **sizes):\n        super().__init__(**sizes)\n"
    assert started(HEAD + base + block, tmp_path).learner.recipe.build.written() == "Block(d_model=d_model)"


def test_what_is_judged_reads_nothing_outside_its_bounds(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layers.py").write_text(
            "from ..ann.layers import Block\nfrom ann import layers\nclass Block: ...\n"
        )
    code = locate(f"{tmp_path}/bob/layers.py:Block", within=tmp_path / "bob")
    assert not [one for one in (*code.readable, *code.beside.values(), *code.files) if "ann" in Path(one).parts]
    (tmp_path / "carl.py").write_text("import dora\nclass Block: ...\n")
    (tmp_path / "dora.py").touch()
    code = locate(f"{tmp_path}/carl.py:Block", within=tmp_path / "carl.py")
    assert code.readable == code.files == (str(tmp_path / "carl.py"),)


NAMES = {
    "hidden": (
        "self, hidden, dim, heads",
        "dim, heads, hidden",
        "x",
        "self.attn(self.ln1(x))",
        "Block(hidden=d_ff, dim=d_model, heads=num_heads)",
    ),
    "constants in capitals": (
        "self",
        "EMBED_DIM, NUM_HEADS, FFN_DIM",
        "x",
        "self.attn(self.ln1(x))",
        "changed(EMBED_DIM=d_model, NUM_HEADS=num_heads, FFN_DIM=d_ff).Block()",
    ),
    "allowed": (
        "self, dim, heads, hidden",
        "dim, heads, hidden",
        "x, allowed",
        "self.attn(self.ln1(x)).masked_fill(~allowed[-1, :, None], 0.0)",
        "block(x, allowed=mask)",
    ),
    "a rotation with a prefix": (
        "self, dim, heads, hidden",
        "dim, heads, hidden",
        "x, rope",
        "self.attn(self.ln1(x), None, rope)",
        "RotaryAfter(theta=theta, d_k=head_dim, max_seq_len=max_seq_len, prefix_length=0)",
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_usual_names_are_understood(name: str, tmp_path: Path) -> None:
    signature, sizes, arguments, attended, line = NAMES[name]
    width, heads, inner = sizes.split(", ")
    constants = "EMBED_DIM, NUM_HEADS, FFN_DIM = 128, 4, 256\n"
    source = f"""{PARTS.replace("class RotaryPositionalEmbedding(nn.Module):", "class Plain(nn.Module):")}
{constants}

class RotaryAfter(Plain):
    def __init__(self, theta: float, d_k: int, max_seq_len: int, prefix_length: int):
        super().__init__(theta, d_k, max_seq_len + prefix_length)


class Block(nn.Module):
    def __init__({signature}):
        super().__init__()
        self.ln1, self.ln2 = RMSNorm({width}), RMSNorm({width})
        self.attn, self.ffn = CausalSelfAttention({width}, {heads}), SwiGLU({width}, {inner})

    def forward(self, {arguments}):
        x = x + {attended}
        return x + self.ffn(self.ln2(x))
"""
    recipe = started(source, tmp_path).learner.recipe
    assert line in f"{recipe.build.written()} {recipe.call.written()}"


def test_a_package_that_forward_imports_and_nobody_has_is_no_fault(tmp_path: Path) -> None:
    block = COURSE_BLOCK.replace(
        "def forward(self, x: Tensor) -> Tensor:", "def forward(self, x):\n        import apex.normalization"
    )
    (tmp_path / "learner.py").write_text(PARTS + block)
    verdict = judge(LocalSubject(), locate(f"{tmp_path / 'learner.py'}:TransformerBlock"))
    assert verdict.ids == ["forward_error"]
    assert verdict.exit_code == 2
    assert "pip install apex" in verdict.findings[0].evidence


@pytest.mark.parametrize(("there", "exit_code"), [(True, 0), (False, 2)])
def test_what_a_file_reads_at_import_lies_beside_it(there: bool, exit_code: int, tmp_path: Path) -> None:
    reads = 'from pathlib import Path\nwords = open("words.txt").read() + Path("words.txt").read_text()\n'
    (tmp_path / "learner.py").write_text(reads + Path(small.__file__).read_text())
    if there:
        (tmp_path / "words.txt").write_text("to be")
    verdict = check(f"{tmp_path / 'learner.py'}:Right")
    assert (verdict.exit_code, verdict.ids) == (exit_code, [] if there else ["import_error"])
    if not there:
        assert verdict.findings[0].evidence.startswith("words.txt is read, and is not there")


@pytest.mark.parametrize(("there", "exit_code"), [(True, 0), (False, 2)])
def test_what_a_file_downloads_at_import_lies_beside_it(there: bool, exit_code: int, tmp_path: Path) -> None:
    downloads = (
        "import os, subprocess\nfrom pathlib import Path\n"
        'if not (os.path.exists("words.txt") and Path("words.txt").exists()):\n'
        '    subprocess.check_output(["wget", "https://example.org/words.txt"])\n'
    )
    (tmp_path / "learner.py").write_text(downloads + Path(small.__file__).read_text())
    if there:
        (tmp_path / "words.txt").write_text("to be")
    verdict = check(f"{tmp_path / 'learner.py'}:Right")
    assert (verdict.exit_code, verdict.ids) == (exit_code, [] if there else ["import_error"])
    if not there:
        assert verdict.findings[0].evidence.startswith("the sandbox refuses another process, or the network")
        assert "put what is fetched beside the file" in verdict.findings[0].evidence


@pytest.mark.parametrize(
    "refused",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import urllib.request; urllib.request.urlopen('https://example.org')",
        "import huggingface_hub; huggingface_hub.hf_hub_download('gpt2', 'vocab.json')",
        "import threading; threading.Thread(target=print).start()",
        "import multiprocessing; multiprocessing.Lock()",
        "import os; os.remove(__file__)",
        "import os; torch.save({}, os.path.join(os.path.dirname(__file__), 'block.pt'))",
    ],
)
@pytest.mark.parametrize(
    ("before", "id"), [("super().__init__()", "constructor_error"), ("x = x + self.attn", "forward_error")]
)
@pytest.mark.sampled(4)
def test_what_the_sandbox_refuses_is_no_fault(refused: str, before: str, id: str, tmp_path: Path) -> None:
    block = COURSE_BLOCK.replace(before, f"{refused}\n        {before}", 1)
    (tmp_path / "learner.py").write_text(f"import torch\n{PARTS}{block}")
    verdict = check(f"{tmp_path / 'learner.py'}:TransformerBlock")
    assert (verdict.exit_code, verdict.ids) == (2, [id])
    assert "the sandbox refuses" in verdict.findings[0].evidence


@pytest.mark.parametrize(
    ("build", "call", "said"),
    [
        ("Right(d_model, nheads, d_ff)", None, '--build "Right(d_model, nheads, d_ff)" raises NameError'),
        ("Right(d_model, num_heads, d_ff, bogus=1)", None, "raises TypeError"),
        (None, "block(nothing)", '--call "block(nothing)" raises NameError'),
        (None, "block(x, bogus=1)", "raises TypeError"),
    ],
)
def test_a_given_line_that_raises_itself_is_no_fault_of_the_block(
    build: str | None, call: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "learner.py").write_text(
        Path(small.__file__).read_text()
    )  # alone: a line may use the names of neighbours
    verdict = check(f"{tmp_path / 'learner.py'}:Right", build=build, call=call)
    assert (verdict.exit_code, verdict.ids) == (2, ["arguments_unknown"])
    assert said in verdict.findings[0].evidence


@pytest.mark.parametrize(
    ("first", "exit_code", "said"),
    [
        ("from transformers.cache_utils import CacheOfAnotherRelease\n", 2, "has no CacheOfAnotherRelease"),
        ("from transformers import AutoModle\n", 1, "cannot import name"),  # misspelt
        ("import transformers.models.of_another_release\n", 2, "has no of_another_release"),
        ("from torch.nn import Linaer\n", 1, "cannot import name"),
        ("import torch.nn.model_parallel\n", 1, "No module named"),
        (
            "from lacking_in_this_lab.everything import *\nlogger = a_name_of_it\n",
            2,
            "lacking_in_this_lab.everything.a_name",
        ),
        ("logger = a_name_of_nobody\n", 1, "not defined"),
    ],
)
def test_names_of_another_release_or_of_a_missing_package_are_no_fault(
    first: str, exit_code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "learner.py").write_text(first + Path(small.__file__).read_text())
    verdict = check(f"{tmp_path / 'learner.py'}:Right")
    assert (verdict.exit_code, verdict.ids) == (exit_code, ["import_error"])
    assert said in verdict.findings[0].evidence


def test_a_file_that_is_called_like_a_missing_package_is_not_that_package(tmp_path: Path) -> None:
    for folder in ("mine", "mine/shared"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "mine" / "shared" / "zorkshards.py").write_text("import zorkshards as shards\nSHARDED = True\n")
    source = (
        HEAD + "import zorkshards\nfrom zorkshards.runtime import spec\nfrom mine.shared.zorkshards import SHARDED\n"
    )
    (tmp_path / "mine" / "model.py").write_text(
        source + TAKES.format("d_model", "self.part = nn.Linear(d_model, d_model)")
    )
    code = locate(f"{tmp_path}/mine/model.py:Block")
    assert "zorkshards" not in code.beside
    verdict = check(f"{tmp_path}/mine/model.py:Block")
    assert "import_error" not in verdict.ids
    assert "zorkshards: not installed here" in str(verdict.conventions["at_import"])
