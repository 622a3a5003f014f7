"""What a constructor's arguments get: what their names and annotations say, and nothing counts that a guess causes."""

from pathlib import Path

import pytest

from prenorm.checks.check import check
from prenorm.checks.start.build_lines import builds

from .. import small
from ..strangers.projects import HEAD, PARTS, _halves
from .test_start import TAKES, started

SIZES = {
    "layer_idx: int, n_state, n_head": "n_state=d_model, n_head=num_heads",
    "input_dim: int, hide_dim: int, n_q_heads: int": "input_dim=d_model, hide_dim=d_ff, n_q_heads=num_heads",
    "hidden: int, n_heads: int, intermediate: int": "hidden=d_model, n_heads=num_heads, intermediate=d_ff",
    "hid_dim, n_heads, pf_dim": "hid_dim=d_model, n_heads=num_heads, pf_dim=d_ff",
    "model_dims, num_heads, hidden_dims": "model_dims=d_model, num_heads=num_heads, hidden_dims=d_ff",
    "decoder_embed_dim, decoder_attention_heads, decoder_ffn_embed_dim": "Block(d_model, num_heads, d_ff)",
    "n_units, n_ways, n_inside": "Block(d_model, num_heads, d_ff)",
}


@pytest.mark.parametrize("takes", SIZES)
def test_sizes_go_to_the_arguments_that_are_named_so(takes: str, tmp_path: Path) -> None:
    width = next(one for one in takes.replace(": int", "").split(", ") if one != "layer_idx")
    case = started(HEAD + TAKES.format(takes, f"self.part = nn.Linear({width}, {width})"), tmp_path)
    assert SIZES[takes] in case.learner.recipe.build.written()


ANNOTATED = {
    "extra_embeddings: bool": "extra_embeddings=False",
    "use_rotary_position_embeddings: bool": "use_rotary_position_embeddings=True",
    "hidden: Literal['wide', 'narrow']": "hidden='wide'",
    "norm: Literal['layer', 'rms']": "norm='rms'",
    "qk_norm: Literal['rms', 'none']": "qk_norm='none'",
    "activation: Literal['relu', 'silu']": "activation='silu'",
    "ff_activation: Literal['relu', 'swish']": "ff_activation='swish'",
    "position_encoding: Literal['learned', 'rope']": "position_encoding='rope'",
    "tie_embeddings: object": "tie_embeddings=False",
}


@pytest.mark.parametrize("takes", ANNOTATED)
@pytest.mark.parametrize("owner", ["block", "configuration"])
def test_an_annotation_goes_before_a_name(owner: str, takes: str, tmp_path: Path) -> None:
    head = HEAD + "from typing import Literal\n"
    config = f"\n\n@dataclass\nclass Config:\n    d_model: int\n    n_heads: int\n    {takes}\n\n"
    if owner == "block":
        case = started(head + TAKES.format(f"d_model, {takes}", "self.part = nn.Linear(d_model, d_model)"), tmp_path)
    else:
        part = "self.part = nn.Linear(config.d_model, config.d_model)"
        case = started(head + config + TAKES.format("config: Config", part), tmp_path)
    assert ANNOTATED[takes] in case.learner.recipe.build.written()


def test_the_size_of_a_cache_or_a_batch_is_no_length(tmp_path: Path) -> None:
    takes = "d_model, cache_max_batch_size, cache_max_seq_len, max_batch_size"
    case = started(HEAD + TAKES.format(takes, "self.part = nn.Linear(d_model, d_model)"), tmp_path)
    line = "Block(d_model=d_model, cache_max_batch_size=None, cache_max_seq_len=None, max_batch_size=64)"
    assert case.learner.recipe.build.written() == line
    takes = "d_model, cache_max_batch_size=None, max_cache_len=None, rope_max_seq_len=None"
    case = started(HEAD + TAKES.format(takes, "self.part = nn.Linear(d_model, d_model)"), tmp_path)
    assert case.learner.recipe.build.written() == "Block(d_model=d_model, rope_max_seq_len=max_seq_len)"


GUESSED = {
    "the numbers with a number whose name says nothing": ("d_model, num_heads, num_kv_heads, zork: int", "zork", "x"),
    "an error of the constructor with it": ("d_model, num_heads, zork: int", "torch.zeros(2).view(zork).numel()", "x"),
    "an error of forward with sizes that go by place": ("d_model, n_ways, zork", "n_ways", "x.view(self.inner) + x"),
}


@pytest.mark.parametrize("case", GUESSED)
def test_what_a_size_that_was_not_understood_causes_is_no_fault(case: str, tmp_path: Path) -> None:
    takes, inner, y = GUESSED[case]
    block = f"""
class Block(nn.Module):
    def __init__(self, {takes}):
        super().__init__()
        inner = self.inner = {inner}
        self.n1, self.n2 = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.qkv, self.o = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)
        self.w1, self.w3 = nn.Linear(d_model, inner, bias=False), nn.Linear(d_model, inner, bias=False)
        self.w2 = nn.Linear(inner, d_model, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(self.n1(x)).unflatten(-1, (3, 4, -1)).movedim(-3, 0).transpose(-2, -3)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2))
        return {y} + self.w2(F.silu(self.w1(self.n2(x))) * self.w3(self.n2(x)))
"""
    (tmp_path / "model.py").write_text(HEAD + block)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids[-1:], verdict.exit_code) == (["arguments_unknown"], 2), verdict.findings
    assert "--build" in verdict.findings[-1].evidence


def test_a_configuration_may_have_parts(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(args.MODEL.DIM, args['model_args'].DIM)"
    case = started(HEAD + TAKES.format("args", part), tmp_path)
    line = "Block(args=config(MODEL=config(DIM=d_model), model_args=config(DIM=d_model)))"
    assert case.learner.recipe.build.written() == line
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("args", "assert args.model == 'llama'"))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)


ROTARY = """
@dataclass
class Shape:
    d_model: int
    n_heads: int


class Rotary(nn.Module):
    def __init__(self, cfg: Shape):
        super().__init__()
        self.width = cfg.d_model // cfg.n_heads

"""


@pytest.mark.parametrize(
    ("takes", "width", "line"),
    [
        ("cfg: Shape, rotary: Rotary", "cfg.d_model", "cfg=(config := Shape(d_model=d_model, n_heads=num_heads))"),
        ("rotary: Rotary, cfg: Shape", "cfg.d_model", "cfg=(config := Shape(d_model=d_model, n_heads=num_heads))"),
        ("d_model, rotary: Rotary", "d_model", "d_model=d_model"),
    ],
)
def test_a_rotation_gets_the_configuration_that_it_needs(takes: str, width: str, line: str, tmp_path: Path) -> None:
    part = f"self.part = nn.Linear({width}, {width}); assert rotary.width == 8"
    case = started(HEAD + ROTARY + TAKES.format(takes, part), tmp_path)
    assert line in case.learner.recipe.build.written()
    assert "rotary=Rotary(cfg=config)" in case.learner.recipe.build.written()


OF_TRANSFORMERS = (
    "from transformers import PretrainedConfig\n\n\nclass Settings(PretrainedConfig):\n"
    "    def __init__(self, hidden_size=64, num_attention_heads=4, **kwargs):\n"
    "        self.hidden_size, self.num_attention_heads = hidden_size, num_attention_heads\n"
    "        super().__init__(**kwargs)\n\n"
)


@pytest.mark.parametrize(
    ("part", "id"), [("{}[settings.model_type]", "arguments_unknown"), ("settings.zork = zork", "constructor_error")]
)
def test_an_error_with_a_configuration_of_another_release_is_no_fault(part: str, id: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "model.py").write_text(HEAD + OF_TRANSFORMERS + TAKES.format("settings: Settings", part))
    assert check(f"{tmp_path}/model.py:Block").ids == [id]


def test_a_configuration_of_transformers_has_an_attention(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    part = "width = settings.hidden_size; self.part = {'eager': nn.Linear}[settings._attn_implementation](width, width)"
    case = started(HEAD + OF_TRANSFORMERS + TAKES.format("settings: Settings", part), tmp_path)
    assert "attn_implementation='eager'" in case.learner.recipe.build.written()
    plain = "self.part = nn.Linear(settings.hidden_size, settings.hidden_size)"
    case = started(HEAD + OF_TRANSFORMERS + TAKES.format("settings: Settings", plain), tmp_path)
    assert "eager" not in case.learner.recipe.build.written()


def test_an_error_with_a_size_that_is_nearly_named_so_is_no_fault(tmp_path: Path) -> None:
    part = "self.part = nn.Linear(config.stem_channels, 4); torch.zeros(2).view(config.stem_channels)"
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("config", part))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    (tmp_path / "model.py").write_text(HEAD + TAKES.format("config", part.replace("stem_channels", "d_model")))
    assert check(f"{tmp_path}/model.py:Block").ids == ["constructor_error"]


CONFIGURED = "@dataclass\nclass Config:\n    d_model: int\n    n_heads: int\n\n\n"


@pytest.mark.parametrize("takes", ["rotary_emb: Turning", "embedder: RotaryEmbedding"])
def test_a_rotation_that_is_a_plain_class_is_no_configuration(takes: str, tmp_path: Path) -> None:
    name, _, owner = takes.partition(": ")
    plain = f"{CONFIGURED}class {owner}:\n    def __init__(self, dim): self.dim = dim\n\n"
    part = f"assert {name}.dim == 8; self.part = nn.Linear(d_model, d_model)"
    case = started(HEAD + plain + TAKES.format(f"d_model, num_heads, d_ff, {takes}", part), tmp_path)
    assert case.learner.recipe.build.written().endswith(f"{name}={owner}(dim=head_dim))")


def test_an_error_with_a_configuration_of_another_class_is_no_fault(tmp_path: Path) -> None:
    classes = f"{CONFIGURED}class Cache:\n    def __init__(self, pages): ...\n\n"
    part = "self.part = nn.Linear(d_model, d_model); self.cache = cache.pages"
    (tmp_path / "model.py").write_text(HEAD + classes + TAKES.format("d_model, num_heads, d_ff, cache: Cache", part))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)


ROTATION = """
class RoPE(nn.Module):
    def __init__(self, theta, d_k, max_seq_len, device=None, dtype=None):
        super().__init__()
        self.dtype, self.device = dtype, device

"""


@pytest.mark.parametrize(("more", "dtype"), [("dtype=None, device=None", "torch.bfloat16"), ("d_ff=None", "None")])
def test_a_rotation_has_the_dtype_that_the_block_is_built_with(more: str, dtype: str, tmp_path: Path) -> None:
    part = f"self.part = nn.Linear(d_model, d_model); assert rope.dtype in (None, {dtype}), rope.dtype"
    case = started(HEAD + ROTATION + TAKES.format(f"d_model, num_heads, rope: RoPE, {more}", part), tmp_path)
    rotation = "RoPE(theta=theta, d_k=head_dim, max_seq_len=max_seq_len{})"
    assert rotation.format("") in case.learner.recipe.build.written()
    built = case.build(dtype={"dtype": "bfloat16"})  # does not raise
    assert len(built.parameters) == 2
    asked = case.learner.recipe.build.written(frozenset({"dtype"}))
    assert (rotation.format(", dtype=dtype") in asked) == ("dtype" in more)


def test_a_rotation_in_a_call_has_the_dtype_of_the_input(tmp_path: Path) -> None:
    rotation = ROTATION.replace("super", "assert dtype == torch.float32\n        super") + (
        "    def forward(self, t):\n        angles = torch.arange(t.shape[-2])[:, None] / 9 ** torch.arange(4)\n"
        "        return t * angles.cos().repeat(1, 2) + rotate_half(t) * angles.sin().repeat(1, 2)\n"
    )
    source = _halves("rope", "rope(t)").replace("intermediate_size)", "intermediate_size, dtype=None, device=None)", 1)
    call = started(source + rotation, tmp_path).learner.recipe.call.written()
    assert "max_seq_len=max_seq_len, device=device, dtype=dtype)" in call


@pytest.mark.parametrize(("takes", "id"), [("rope: RoPE", "forward_error"), ("rope", "arguments_unknown")])
def test_an_annotation_with_a_class_of_the_file_is_no_guess(takes: str, id: str, tmp_path: Path) -> None:
    part = "self.part = nn.Linear(d_model, d_model); self.dtype = rope.dtype"
    block = TAKES.format(f"d_model, num_heads, d_ff, {takes}", part).replace("self.part(x)", "torch.zeros(2)[x > 0]")
    (tmp_path / "model.py").write_text(HEAD + ROTATION + block)
    assert check(f"{tmp_path}/model.py:Block").ids == [id]


@pytest.mark.parametrize(
    ("takes", "given"), [("dim, ratio: float = 10_000.0", "ratio=theta"), ("dim", "dim=head_dim)")]
)
def test_a_theta_that_the_rotation_does_not_get_is_not_ignored(takes: str, given: str, tmp_path: Path) -> None:
    rotation = (
        f"\n\nclass Rotary:\n    def __init__(self, {takes}):\n"
        "        self.frequencies = RATIO ** -(torch.arange(0, dim, 2) / dim)\n\n"
    ).replace("RATIO", "ratio" if "ratio" in takes else "1e4")
    angles = "torch.outer(torch.arange(t.shape[-2]), self.rotary.frequencies).repeat(1, 2)"
    source = _halves("ignored=None", f"t * {angles}.cos() + rotate_half(t) * {angles}.sin()")
    source = source.replace("intermediate_size):", "intermediate_size, rotary_emb: Rotary, theta=1e4):", 1)
    source = source.replace("        self.heads =", "        self.rotary = rotary_emb\n        self.heads =")
    (tmp_path / "model.py").write_text(source.replace("class Block", f"{rotation.lstrip()}\nclass Block"))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert verdict.judged
    assert "rope_theta_ignored" not in verdict.ids
    assert given in verdict.build


TAKES_WEIGHTS = (
    PARTS
    + """

class Block(nn.Module):
    def __init__(self, d_model: int, num_heads: int, d_ff: int, max_seq_len: int, theta: float, {}):
        super().__init__()
        self.ln1, self.ln2 = RMSNorm(d_model), RMSNorm(d_model)
        rope = RotaryPositionalEmbedding(theta, d_model // num_heads, max_seq_len)
        self.attn, self.ffn = CausalSelfAttention(d_model, num_heads, rope), SwiGLU(d_model, d_ff)
        {}

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))
"""
)
TAKEN = {
    "as a state": ("weights: dict[str, Tensor]", "self.load_state_dict(weights)"),
    "one by one": ("weights", "for n, p in self.named_parameters(): p.data = weights[n]"),
    "as parameters": ("state_dict: 'Mapping[str, Tensor]'", "self.ln1.weight = nn.Parameter(state_dict['ln1.weight'])"),
}


@pytest.mark.parametrize("how", TAKEN)
def test_a_class_that_takes_a_dictionary_of_weights_gets_those_of_the_course(how: str, tmp_path: Path) -> None:
    takes, use = TAKEN[how]
    (tmp_path / "model.py").write_text(TAKES_WEIGHTS.format(takes, use))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == ([], 0)
    assert f"{takes.partition(':')[0]}=weights" in verdict.build


def test_a_class_that_takes_weights_under_names_of_its_own_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(TAKES_WEIGHTS.format("weights", "weights['wq']"))
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    given = verdict.build.replace("=weights", "={'wq': torch.ones(d_model)}")
    assert check(f"{tmp_path}/model.py:Block", build=given).ids == []


def test_a_class_that_keeps_the_dictionary_of_weights_is_not_judged(tmp_path: Path) -> None:
    source = HEAD + TAKES.format("d_model, weights", "self.part = lambda x: x @ weights['attn.q_proj.weight']")
    (tmp_path / "model.py").write_text(source)
    verdict = check(f"{tmp_path}/model.py:Block")
    assert (verdict.ids, verdict.exit_code) == (["arguments_unknown"], 2)
    assert "has no parameters: it keeps the dictionary" in verdict.findings[0].evidence


@pytest.mark.parametrize("takes", ["params: Config", "weights: float", "weights: dict | None = None"])
def test_what_is_called_weights_may_be_something_else(takes: str, tmp_path: Path) -> None:
    config = "\n\n@dataclass\nclass Config:\n    d_model: int\n    n_heads: int\n\n"
    source = HEAD + config + TAKES.format(f"d_model, {takes}", "self.part = nn.Linear(d_model, d_model)")
    assert "=weights" not in started(source, tmp_path).learner.recipe.build.written()


PROBABILITIES = {
    "attn_pdrop=0.0, residual_pdrop=0.1": "attn_pdrop=dropout, residual_pdrop=dropout",
    "attn_dropout=0, drop_path_rate=0.2": "attn_dropout=dropout, drop_path_rate=dropout",
    "attn_pdrop=None, residual_pdrop: float | None = None": "attn_pdrop=dropout, residual_pdrop=dropout",
    "attn_dropout: nn.Module | None = None, residual_pdrop=None": "Block(d_model=d_model, residual_pdrop=dropout)",
    "use_dropout=False, dropout_layers=2, dropout_type='alpha', dropout_layer=nn.Dropout": "Block(d_model=d_model)",
}


@pytest.mark.parametrize("takes", PROBABILITIES)
def test_every_probability_of_dropout_is_handed_over_whatever_it_drops(takes: str, tmp_path: Path) -> None:
    case = started(HEAD + TAKES.format(f"d_model, {takes}", "self.part = nn.Linear(d_model, d_model)"), tmp_path)
    assert PROBABILITIES[takes] in case.learner.recipe.build.written()


def test_a_probability_of_dropout_takes_the_place_of_no_other_candidate(tmp_path: Path) -> None:
    """Few lines are tried for a part that a block is handed."""
    case = started(HEAD + TAKES.format("d_model, attn_pdrop=0.1, ffn_pdrop=0.1", "pass"), tmp_path)
    assert len([*builds(case.learner.made)]) == 1


LOOSE_DROPOUT = """

class Block(Right):
    def __init__(self, d_model, num_heads, d_ff, resid_pdrop={default}):
        super().__init__(d_model, num_heads, d_ff)
        self.p = resid_pdrop

    def projected(self, x, y):
        return self.o(y) if self.p is None else F.dropout(self.o(y), self.p{training})
"""


@pytest.mark.parametrize("default", ["0.0", "None"])
@pytest.mark.parametrize("training", ["", ", training=self.training"])
def test_dropout_in_eval_mode_is_found_under_any_name(default: str, training: str, tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    block = LOOSE_DROPOUT.format(default=default, training=training)
    file.write_text(Path(small.__file__).read_text().partition("# --- what counts")[0] + block)
    verdict = check(f"{file}:Block")
    assert verdict.ids == ([] if training else ["dropout_in_eval"])
    assert "dropout in eval mode" in [one.name for one in verdict.checks]
