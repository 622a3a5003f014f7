"""What to look for in the source for each fault: a list, the surest sign first.

The numbers say which fault it is; these only say which line is most likely to make them.
"""

import re
from dataclasses import dataclass

from ..source.parse import Line

SAYS = re.compile(r"^(print\(|raise\b|warnings?\.|logg(er|ing)\.)")
"""A statement that only says something, perhaps of what is looked for."""


@dataclass(frozen=True, slots=True)
class Look:
    """A line to look for: in a function with one of these roles, matching `has`, of all `kinds` and none in `no`."""

    where: str
    has: str = ""
    kinds: str = ""  # comma-separated, see lines.py
    lacks: str = ""
    no: str = ""  # kinds that it may not be of
    last: bool = False

    def fits(self, line: Line) -> bool:
        """Whether a line matches."""
        if (line.text.startswith("def ") and "^def" not in self.has) or SAYS.search(line.text):
            return False
        kinds = set(filter(None, self.kinds.split(",")))
        if not kinds <= line.kinds or line.kinds & set(filter(None, self.no.split(","))):
            return False
        return bool(re.search(self.has, line.text)) and not (self.lacks and re.search(self.lacks, line.text))


# What several faults look for.
ROOT = r"sqrt|\*\* -?[01]\b|\*\* -?0\.5|pow\(-|reciprocal|/ \(.*(mean|var|eps)"
MEAN = r"\b(?:(mean|sum|amax|median|std|var|std_mean|var_mean|vector_norm|norm|normalize)\(|reduce\(.*'(mean|sum)')"
PAIRS = r"::2|1::2|// 2 ?:|: ?\w+ // 2|chunk\(|split\(|view_as_complex|unflatten\(-1, \(-1, 2|\[\.\.\., :\w+\]|select\("
TABLE = r"\bcos\w*|\bsin\w*|angle|phase|freq|table"
FREQUENCY = r"(theta|base|log\d*\(|1e4|1?0000|self\.t\b).*|.*(pow|exp2?)\("
POWER = r" \*\* |pow\(|exp2?\("
MASK = r"tril|triu|masked_fill|torch\.where|attn_mask|is_causal"
LEAST = r"(-|float\('-|torch\.finfo|torch\.tensor\()"
"""What a score becomes that is masked."""
COMPARED = r"(None|arange|index|place).*[<>]=?|[<>]=?.*(None|arange|index|place)"
SCORES = r"\w \) @ |@ k|\bq\w* @|quer\w* @|matmul\(\w*q|einsum\(.*q.*k|@ \w*k|(@|matmul\().*(\.mT|transpose)"
SHAPES = r"\.(view|reshape|unflatten|flatten|permute|transpose|swapaxes|movedim|split|chunk)\(|rearrange\(|\.m?T\b"
ACTIVATION = r"silu|SiLU|[gsr]?elu|[GER]LU|sigmoid|tanh|softplus|mish|[Hh]ardswish|swish|glu|act(_fn)?\(|exp\(-"
MADE = r"(arange|ones|zeros|full|empty|tensor|eye|rand\w*|as_tensor|from_numpy|linspace)\("
A_NUMBER = r"\btensor\((?![\[(])"
"""A tensor without dimensions, which meets tensors of any device."""
TO_DTYPE = r"\.to\((?!torch|[\w.]*device\b|['\"])"
"""To a dtype that a name says; no device, and no dtype that is written out."""
HALF, SIZE = r"(sqrt|\*\* -?[01]\.?5?)", "(shape|size|dim|head|width)"
QKV = r"^\(?(?i:x?[qkv]|\w*quer\w*|\w*keys?\w*|\w*values?\w*|[qkv]_\w+)\b.* = "
QK = r"^\(?(?i:x?[qk]|\w*quer\w*|\w*keys?|[qk]_\w+)\b.* = "
CACHED = r"past|cache"
UNCHANGED = r"^(\w+) = \1$"
OF_WEIGHTS = r"@|matmul|weight"
"""A shape that is of a weight, not of tokens."""
PROJECTION = r"@ |\b\w*(out|proj|wo|dense|o|mix|fc)\("

ROOT_LINE = [Look("norm", ROOT), Look("norm", MEAN)]
PAIRING = [
    Look("rope", PAIRS),
    Look("rope", r"cat\(|stack\("),
    Look("forward", PAIRS, "rope"),
    Look("forward", "", "rope"),
]
LAST_SHAPES = [
    Look("attention", SHAPES, lacks=QKV + r"|@ k|@ v|@ self|weight", last=True),
    Look("attention", r"cat\(|sum\(|mean\(|einsum", last=True),
    Look("attention", "^return", last=True),
]

INITIAL = [Look("any", r"[a-z]_\(|\brandn?\("), Look("init", r"Parameter\(|empty\(")]
"""Where a class initialises a weight."""
ASSIGNED = [Look("init", r"^self\.\w+(: .*)? = ")]
"""Where it gets one that another function makes."""

KEEPS = Look("forward", r"^self\.\w+(\[.*\])?(, .*)? [-+*/]?= |self\.\w+\.(copy_|append|add_)\(")
"""Where a call keeps something for later ones."""

LOOKS: dict[str, list[Look]] = {
    "post_norm": [Look("stream", "", "post"), Look("stream", "", "norm,sum"), Look("stream", "", "norm")],
    "no_norm": [
        Look("init", r"nn\.Identity"),
        Look("stream", "", "copy", lacks="resid|skip|short"),
        Look("stream", "", "unnormed"),
        Look("stream", "", "sum"),
    ],
    "missing_residual_attention": [
        Look("stream", "", "attention", no="sum", lacks="softmax|masked_fill|scaled_dot"),
        Look("stream", r"self\.\w+\(|@|= \w+$", "overwrites"),
        Look("stream", r"@ self\.\w+", no="sum,norm,ffn", lacks="k|q|einsum"),
        Look("stream", r"^(?!return).*= .*@ self\.", no="sum,norm,ffn", last=True),
        Look("stream", r"\w\(", no="guarded", lacks="arange"),
    ],
    "missing_residual_ffn": [
        Look("stream", "", "ffn", no="sum", last=True),
        Look("stream", "^return", last=True),
    ],
    "residual_from_normed": [
        Look("stream", "", "keeps normed"),
        Look("stream", "", "normed term"),
        Look("stream", ":=", "sum"),
        Look("stream", "", "sum"),
    ],
    "residual_detached": [
        Look("stream", r"no_grad|detach\(|\.data\b|inference_mode"),
        Look("forward", r"no_grad|detach\(|\.data\b"),
        Look("stream", "", "sum"),
    ],
    "doubled_residual": [
        Look("stream", "", "doubled"),
        Look("stream", "alpha|2(\\.0)? \\*|\\* 2", "sum"),
        Look("stream", "", "sum"),
    ],
    "ffn_residual_from_input": [Look("stream", "", "sum", last=True), Look("stream", "^return", last=True)],
    "parallel_sublayers": [
        Look("stream", "", "norm", last=True),
        Look("stream", "", "ffn", last=True),
        Look("stream", "", "sum", last=True),
    ],
    "shared_norm": [
        Look("init", r"norm\w* = self\.|(norm|ln|rms)\w* = .*\.\w*(norm|ln|rms)\w*$", lacks=r"\("),
        Look("init", r"^self\.\w+ = self\.\w+ = .*([Nn]orm|RMS|LN)"),
        Look("stream", "", "again", last=True),
        Look("stream", "", "norm", last=True),
    ],
    "norm_created_each_call": [
        Look("stream", "", "norm,makes"),
        Look("stream", r"ones(_like)?\(", "norm"),
        Look("forward", r"[A-Z]\w*Norm\(|nn\.Parameter\(|torch\.ones", lacks="tril|triu|mask"),
    ],
    "layer_norm": [
        Look("init", r"(?<!RMS)LayerNorm\("),
        Look("init", r"^def .*\bLayerNorm\b"),
        Look("norm", r"- .*\bmean\(|\blayer_norm|\bvar\(|\bstd\("),
        Look("forward", r"- .*\bmean\(|\blayer_norm"),
        Look("norm", MEAN),
        Look("any", r"(?<!RMS)LayerNorm\b"),
    ],
    "norm_without_sqrt": [
        Look("norm", r"reciprocal|\*\* -?1\b|pow\(-1\)|/ \(.*(mean|eps)", lacks="sqrt"),
        Look("norm", r"eps", lacks="sqrt"),
        *ROOT_LINE,
    ],
    "norm_over_sequence": [Look("norm", MEAN + r".*-2"), Look("norm", r"shape\[-2\]"), Look("norm", MEAN)],
    "norm_wrong_mean": [
        Look("norm", r"\b(sum|amax|median|std|var|abs|normalize)\("),
        Look("stream", "normalize"),
        Look("norm", r"pow\(-1 / |/ .*(sqrt|shape)|\.square\(\)$"),
        Look("norm", MEAN),
    ],
    "norm_without_upcast": [
        Look("norm", rf"^\w+ = \w+$|^\w+ = \w+{TO_DTYPE}"),
        Look("norm", r"^\w+ = self\._?\w*norm", lacks="float"),
        Look("norm", MEAN),
    ],
    "eps_ignored": [
        Look("norm", r"^eps\w* = "),
        Look("norm", r"\+ 1e-|\b1e-\d+"),
        Look("init class", r"eps\w*\b.* = [^=]*1e-"),
        Look("norm", ROOT, lacks=r"eps|self\.e\b"),
        Look("init module", r"Norm\(", lacks="eps"),
        Look("forward", r"Config\(", lacks="eps"),
        Look("init", r"eps\w* = "),
    ],
    "wrong_eps": [
        Look("init", r"eps\w* ?(\*\*?|\+|/) |[*+/] \w*eps|eps=eps ."),
        Look("norm", r"[*] \w*\.?(eps|e\b)|eps\w* \*|clamp|max\(|eps \+"),
        Look("norm", r"eps|self\.e\b"),
    ],
    "eps_outside_sqrt": [Look("norm", r"eps|self\.e\b"), *ROOT_LINE],
    "norm_weight_init": [
        Look("init", r"(norm|ln|rms)\w*.*(normal_|uniform_|zeros_|constant_)"),
        Look("init", r"(weight|gain|scale|gamma|g) = .*Parameter\(.*(rand\w*|zeros|ones|empty|full)\("),
    ],
    "norm_weight_missing": [
        Look("init", r"elementwise_affine=False"),
        Look("norm", "^return", lacks="weight|gain|scale|gamma|alpha", last=True),
        Look("norm", ROOT, lacks="weight|gain|scale|gamma|alpha", last=True),
        Look("norm", "", last=True),
    ],
    "missing_rope": [
        Look("class", "", "shadows,rope"),
        Look("attention stream", "", "rope,thrown away"),
        Look("attention stream", "", "rope,unused"),
        Look(
            "attention stream forward",
            r"(?<![\w.])0(\.0)? \*|\* 0(\.0)?(?![\w.])|zeros(_like)?\(.*(position|long|shape)",
            lacks="mask",
        ),
        Look("attention stream", r"rot\w*\(.*rot\w*\(.*-|-p\)", "rope"),
        Look("rope", r"^return \w+$|\*\* 2"),
        Look("attention", r"^(if|assert) .*(rope|rotary)|^assert .*position"),
        Look("attention", QK, lacks=CACHED, last=True),
        Look("attention", QKV, last=True),
        Look("attention", SCORES),
        Look("attention", "scaled_dot|softmax"),
    ],
    "rope_in_block": [
        Look("stream", "", "rope"),
        Look("forward", r"^(x|h|hidden\w*|inputs?|stream)\b.* = ", "rope"),
        Look("attention", "", "rope"),
    ],
    "rope_on_values": [
        Look("attention", r"\b(x?v|values?\w*|v_\w+)\b", "rope"),
        Look("attention", r"^v_\w+"),
        Look("attention", "", "rope"),
    ],
    "rope_on_queries_only": [
        Look("attention", "", "rope,thrown away"),
        Look("attention", "", "rope,unused"),
        Look("forward", "", "unturned"),
        Look("attention", UNCHANGED),
        Look("attention", "_,|, _|^_ ", "rope"),
        Look("attention", "", "rope"),
    ],
    "rope_half_split": PAIRING,
    "rope_interleaved": PAIRING,
    "rope_wrong_direction": [
        Look("attention", r"-p\)|-pos", "rope"),
        Look("rope", r"\w \* [\w.]+ [-+] \w+ \* \w"),
        Look("rope", r"cos.*\+.*sin.*-|-.*\+ |cat\(\(\w+, -"),
        Look("rope", r"cos.*sin"),
        *PAIRING,
    ],
    "rope_not_a_rotation": [
        Look("rope any", "", "plain halves"),
        Look("rope", r"[\w\]] \* [\w.]+(\[.*?\])? [-+] \w+(\[.*?\])? \* \w"),
        Look("rope any", r"cat\(|stack\("),
        Look("rope", r"cos.*sin"),
        *PAIRING,
    ],
    "rope_over_heads": [
        Look("rope", r"(cos|sin)\w*\[?.*(unsqueeze|\[|embedding)|cis\w* = "),
        Look("rope", r"arange\(.*(shape|size)"),
        Look("attention", TABLE, "rope"),
        *PAIRING,
    ],
    "rope_bf16_tables": [
        Look("any", r"(bfloat16|half\(|float16)"),
        Look("init rope", rf"(cos|sin)\w*.*{TO_DTYPE}|\.to\(\w*\.?dtype"),
        Look("init rope", r"arange\(.*dtype=(?!torch)"),
        Look("rope init", TABLE),
    ],
    "rope_theta_ignored": [
        Look("forward init module", r"\b(10000|1e4)"),
        Look("init", r"(\w*Rot\w*|Rope|RoPE\w*)\(|freq\w*\(", lacks="theta|base"),
        Look("init forward", r"(Rot\w*|Rope|RoPE\w*|rotary\w*)\(|freq\w*\(|rotate\(", lacks="theta|base"),
        Look("any", r"^def .*(theta|base)[^,]*=10000"),
        Look("any", FREQUENCY),
    ],
    "rope_wrong_frequency": [
        Look("any", r"deg2rad|linspace|/ 100\b|torch\.pi|log10|// dim"),
        Look("any", rf"(theta|base|\bself\.t|10000).*({POWER})|({POWER}).*(theta|base|10000)"),
        Look("rope init", r"arange"),
        Look("any", "arange.*/"),
    ],
    "token_positions_ignored": [
        Look("stream attention rope forward", r"^if .*\bTrue\b"),
        Look("stream attention", r"pos\w* = None|\w*pos\w*=None"),
        Look("stream attention rope forward", r"pos\w*\b.*= .*arange|^p = .*arange", no="guarded"),
        Look("rope", r"(cos|sin)\w* = .*\[:"),
        Look("stream", "", "attention", lacks="pos|freqs|cos|rope"),
        Look("stream attention forward", r"pos\w*\b.*= .*arange"),
    ],
    "positions_off_by_one": [
        Look("any", rf"(pos\w*|\bp|{TABLE})\b.* [+-] 1\b|roll\(|\b1:(?!:)"),
        Look("attention forward", "", "rope"),
    ],
    "causal_mask": [
        Look("attention stream forward", r"tril|triu|is_causal=True"),
        Look("any", COMPARED),
        Look("init", r"causal: bool=True|causal=True"),
    ],
    "causal_off_by_one": [
        Look("any", r"tri[lu]\(.*(-?\d\)|diagonal)|(None|arange|index).*[<>]"),
        Look("attention", r"(masked_fill|where)\(.*[<>]"),
        Look("any", "tril|triu|is_causal"),
    ],
    "mask_inverted": [
        Look("any", r"tri[lu]\(", lacks=r"tril\(\)|triu\(1\)|triu\(\w+, (diagonal=)?1\)|tril\(torch"),
        Look("attention stream", r"attn_mask=.*~|masked_fill\(\w*mask,|== 1|masked_fill\(mask"),
        Look("attention stream", rf"where\(\w+, {LEAST}"),
        Look("any", r"(None|arange|index).*<=?|where\(\w+, -|where\(.*(not|~)"),
        Look("attention", MASK),
    ],
    "mask_ignored": [
        Look("attention stream", MASK + "|mask", "thrown away"),
        Look("attention stream", MASK, "unused"),
        Look("attention stream", r"\+ mask", "unused"),
        Look("init", r"causal = False"),
        Look("attention", UNCHANGED),
        Look("any", r"^if .*\bFalse\b|attn_mask=None|is_causal=False|, None\)|, None, |, False, ", lacks=r"\[.*None"),
        Look("stream", "", "attention", lacks="mask"),
        Look("attention", MASK),
        Look("attention", "^if .*mask"),
    ],
    "mask_value_too_small": [
        Look(
            "any",
            r"(mask|where|full|fill|bias|tril|allowed|lower|past).*((?<!e)-\d|tiny|- 10 \*|\* -\d|1e\d)",
            lacks=r"inf\b",
            no="norm",
        ),
        Look("attention", r"(att\w*|scores|wei) = .*\* .*(bias|mask|tril)"),
        Look("any", "masked_fill|where|attn_mask"),
        Look("attention", r"(att\w*|scores|wei)\w* \+?= .*(bias|mask|tril|triu)"),
    ],
    "softmax_wrong_dim": [
        Look("attention", r"(softmax|logsumexp)\(.*(?:-[23]|[012]\))"),
        Look("attention", "softmax|logsumexp|amax"),
        Look("attention", r"scaled_dot|exp\("),
    ],
    "softmax_overflows": [
        Look("any", "", "maximum of all"),
        Look("attention", "", "exp without maximum"),
        Look("any", "", "exp without maximum", lacks=r"exp\(-"),  # that is a sigmoid
    ],
    "missing_softmax": [
        Look("attention", r"sigmoid|relu"),
        Look("attention", r"@ \w*v|matmul\(|einsum\(", last=True),
        Look("any", SCORES),
    ],
    "mask_after_softmax": [
        Look("attention", MASK + r"|\* \w*mask", lacks="inf|torch.ones"),
        Look("any", MASK),
    ],
    "missing_attention_scale": [
        Look("attention", r"scale=1\.0|scale=1\b"),
        Look("attention", SCORES),
        Look("attention", "scaled_dot|softmax"),
    ],
    "wrong_attention_scale": [
        Look("init", r"scal\w* = |norm_factor = ", lacks="Parameter"),
        Look(
            "attention",
            rf"scale=|{HALF}.*{SIZE}|{SIZE}.*{HALF}",
            no="norm,rope",
        ),
        Look("attention", "", "scales", no="rope"),
        Look("attention", SCORES),
    ],
    "wrong_head_split": [
        Look("any", "", "odd"),
        Look("any", "", "splits"),
        Look("split", SHAPES),
        Look("attention", r"\bslice\("),
        Look("attention", r"(view|reshape)\(", lacks=r"transpose|swapaxes|movedim|out|^return self|-1\)$"),
        Look("attention forward", SHAPES, lacks=OF_WEIGHTS),
    ],
    "heads_not_merged": [
        Look("any", "", "joins", last=True),
        Look("merge", "^return"),
        Look("attention", r"cat\(\[|\bsum\(|stack\(", lacks=rf"{QKV}|{CACHED}", no="rope"),
        *LAST_SHAPES,
    ],
    "gqa_tiled_instead_of_repeated": [
        Look("attention", r"repeat\(|expand\(|%|tile\("),
        Look("attention", r"repeat|cat\(|unsqueeze|unflatten", lacks="cos|sin", last=True),
    ],
    "shared_projection": [
        Look("attention", r"^\(?x?k\w* = .*\b(self\.)?(w_?)?q(_\w+|uer\w+)?\b"),
        Look("attention", r"^\(?x?v\w* = .*\b(self\.)?(w_?)?(q(_\w+|uer\w+)?|k(_\w+|eys?)?)\b"),
        Look("attention", r"(\b[\w.]+(\[\w+\])?)\(\w+\),? .*\b\1\(\w+\)"),
        Look("ffn", r"(\b[\w.]+)\(\w+\).* \* .*\b\1\(\w+\)"),
        Look("attention", QKV),
    ],
    "missing_output_projection": [
        Look("init", r"(o|out|proj)\w* = nn\.Identity"),
        Look("attention", "", "sum"),
        Look("attention", "^return", last=True),
    ],
    "d_ff_ignored": [
        Look("init", r"(hidden\w*|inner\w*|d_ff|width|ffn_dim)\w* = .*(// |\* 2 / 3|\* 8|\* 4|round|int\()"),
        Look("stream init", r"// 64|// 256|multiple_of"),
        Look("init", r"[A-Z]\w*\(.*(\d \*|[*/] \d|int\(|round\()"),
    ],
    "wrong_activation": [
        Look("any", r"GELU|ReLU|Tanh|Hardswish|Mish|Sigmoid\b"),
        Look("ffn", ACTIVATION, lacks="silu|SiLU"),
        Look("ffn", ACTIVATION),
        Look("any", ACTIVATION, lacks="softmax"),
        Look("ffn", r"\w \* \w"),
        Look("stream", r"\w \* \w", last=True),
    ],
    "gate_after_product": [
        Look("ffn", rf"({ACTIVATION}).* \* "),
        Look("ffn", ACTIVATION),
    ],
    "swapped_gate_up": [
        Look("ffn", rf"({ACTIVATION}).* \* |\* .*({ACTIVATION})|{ACTIVATION}.*mul\(", lacks="^return x \\*"),
        Look("ffn", ACTIVATION),
    ],
    "missing_bias": [Look("init", r"(q|k|v|qkv|query|key|value)\w* = .*bias=False"), Look("init", r"bias=False")],
    "unexpected_qk_norm": [Look("init", r"[qk]\w*_?norm\w* = "), Look("attention", "[qk]_?norm")],
    "missing_qk_norm": [Look("attention", QKV)],
    "unexpected_bias": [
        Look("init", r"bias=True"),
        Look("init", r"Linear\(", lacks=r"bias="),
        Look("any", r"[Bb]ias\w* = |self\.[Bb]\w+ = .*zeros"),
    ],
    "leading_dims": [
        Look("stream attention forward", r"^\(?\w+, \w+(, \w+)*\)? = .*(shape|size\(\))$"),
        Look("any", r"einsum\('\w+,|permute\(|dim=[12]\b|flatten\([01]|\.T\b.*batch"),
        Look("attention", r"(view|reshape)\("),
    ],
    "modifies_input": [
        Look("stream", r"^\w+(\[.*\])? [-+*/]="),
        Look("stream forward", r"\.(?!requires_grad)[a-z]+\w*_\(|^\w+\[.*\] = |out=", lacks="^y\\["),
        Look("stream", "", "sum"),
    ],
    "not_deterministic": [
        Look("forward", r"rand\w*\(|randperm|bernoulli|shuffle|normal_|uniform_"),
        Look("forward", r"dropout"),
        Look("any", "rand"),
    ],
    "dropout_in_eval": [
        Look(
            "forward",
            r"[Dd]ropout\w*\(.*True|F\.\w*dropout|functional\.\w*dropout|nn\.Dropout|dropout_p=0\.\d",
            lacks="self.training",
        ),
        Look("forward", r"bernoulli|\brand\w*\("),
        Look("any", "[Dd]ropout"),
    ],
    "wrong_dtype": [
        Look("stream", r"\.(float|double)\(\)", lacks=r"\.to\(|type_as"),
        Look("stream", r"\.(float|double)\(\)|\.to\("),
        Look("norm", "^return", lacks=r"\.to\(|type"),
        Look("forward", r"\.double\(|float64|\.float\("),
        Look("init", r"= .*(Linear|Parameter|[A-Z]\w+)\(", lacks=r"dtype|\*\*"),
    ],
    "wrong_device_buffer": [
        Look("forward", MADE, lacks=rf"device|_like|as_tensor\(self|{A_NUMBER}"),
        Look("init", rf"self\.\w+ = .*({TABLE}|tril|arange)", lacks=r"Parameter|Linear|Rot|[A-Z]\w+\("),
        Look("init", MADE, lacks="device|factory|kw|where|kind"),
        Look(
            "init forward",
            r"(Linear|Parameter|Rot\w*|Config|[A-Z]\w+)\(",
            lacks=r"device|\*\*|register|Dropout|nn\.SiLU",
        ),
        Look("forward", r"_tables\[|cache"),
    ],
    "weights_uninitialised": [Look("init", r"torch\.empty\(|Tensor\("), Look("any", r"torch\.empty\(")],
    "weight_init_scale": [
        Look("init", r"(trunc_normal_|normal_|uniform_)\("),
        Look("init", r"Parameter\(torch\.(randn?|ones)\("),
        Look("any", r"(trunc_normal_|normal_|uniform_|torch\.normal)\("),
    ],
    "backward_error": [KEEPS],  # an error of a tensor that was changed in place has its own line
    "gradient_missing": [
        Look("any", r"requires_grad_?\(?=?False|no_grad|detach\(|\.data\b|requires_grad_\(|inference_mode"),
        Look("init", r"register_buffer\('(weight|gain|scale|gamma|g|w\w?)'"),
        Look("init", r"self\.\w+ = torch\.(rand|ones|zeros|empty)"),
        Look("forward", r"\.item\(\)|torch\.tensor\("),
    ],
    "gradient_wrong": [
        Look("any", r"detach\(|no_grad|\.data\b"),
        Look("any", r"^def backward|\.apply\("),
    ],
    "sequence_length_fixed": [
        Look("forward", r"\.squeeze\(\)"),
        Look("init", r"Norm\([(\[][^()\[\]]*\b((max_)?seq|context|block|max)(_?(len|length|size))?\b"),
        Look(
            "forward",
            r"shape\[[01]\]|(arange|ones|full)\(.*(max_\w+|len\(|self\.\w+\.\w+|block_size)",
        ),
        Look("forward", r"// \d", lacks=r"dim|\bd_|head|width|\[-1\]|\(-1\)"),
        Look("forward", r"self\.(bias|mask|tril|cos|sin)\b(?!\[)|max_(seq_)?len|block_size|context_length"),
        Look("forward", r"view\(|reshape\("),
    ],
    "wrong_at_some_lengths": [
        Look("forward", r"\bif .*\.(shape|size)\b.* [=!]= .*\.(shape|size)\b"),
        Look("forward", r"\bif .*\.(shape|size)\b.* == "),
    ],
    "batch_of_one": [Look("forward", r"squeeze\(\)|squeeze\(0\)|squeeze\((dim=)?-?\d\)")],
    "batch_coupled": [
        Look("init", r"MultiheadAttention\(", lacks="batch_first=True"),
        Look(
            "forward",
            r"\b(mean|sum|std|var|softmax|amax|norm)\((.*, )?(dim=)?\(?0\b|dim=\(?0|(mean|std|var|sum)\(\)|roll\(",
        ),
    ],
    "retains_state": [
        KEEPS,
        Look("any", "register_buffer"),
    ],
    # Crashes whose exception has no line.
    "arguments_unknown": [],
    "internal_error": [],
    "timeout": [Look("any module", r"sleep\(|^while (True|1)$"), Look("any module", "^while ")],
    "import_error": [Look("module", "^(from|import) ")],
    "constructor_error": [Look("init", "^def __init__"), Look("class", "^class ")],
    "forward_error": [Look("stream", "^return", last=True), Look("stream", "", last=True), Look("class", "^class ")],
    "unreadable": [],
    "unexplained": [],
}
