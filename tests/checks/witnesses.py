"""Public blocks of installed packages, which nobody here wrote: as they are, and with faults planted into a copy.

`python -m tests.checks.witnesses` judges all of them, and prints what was found and the table that the docs hold; what
is not installed is left out. --keep, --part and --local are those of measure.py.
A witness is right when nothing that counts is found: published choices (LayerNorm, GELU, parallel sublayers, ...) are
named and do not count.
"""

import argparse
import dataclasses
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prenorm.checks.check import check
from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from .kept import Kept, part, share, table
from .measure import judging_processes, unchanged_path

MOST_PLANTED = 6
LLAMA_LIKE = (
    "llama.Llama mistral.Mistral qwen2.Qwen2 qwen3.Qwen3 gemma.Gemma phi3.Phi3 ministral.Ministral smollm3.SmolLM3 "
    "ernie4_5.Ernie4_5 helium.Helium glm.Glm glm4.Glm4 hunyuan_v1_dense.HunYuanDenseV1 seed_oss.SeedOss arcee.Arcee "
    "starcoder2.Starcoder2 stablelm.StableLm cohere.Cohere cohere2.Cohere2 phi.Phi persimmon.Persimmon "
    "exaone4.Exaone4 cwm.Cwm gemma2.Gemma2 gemma3.Gemma3 chameleon.Chameleon moshi.Moshi opt.OPT olmo.Olmo "
    "olmo2.Olmo2 olmo3.Olmo3 nanochat.NanoChat hyperclovax.HyperCLOVAX jais2.Jais2 ministral3.Ministral3 "
    "eurobert.EuroBert emu3.Emu3 vaultgemma.VaultGemma csm.Csm ultrabert.Ultrabert pocket_tts.PocketTTS"
)
"""Decoder layers of transformers: their folder, and their name without DecoderLayer."""
OTHERS = (
    "gpt_neox.GPTNeoXLayer gpt2.GPT2Block gpt_bigcode.GPTBigCodeBlock vit.ViTLayer bert.BertLayer "
    "siglip.SiglipEncoderLayer clip.CLIPEncoderLayer"
)
"""Layers of transformers with names of their own."""
LITGPT = (
    "Block(Config(n_embd=d_model, n_head=num_heads, n_query_groups=num_kv_heads, head_size=head_dim, norm_eps=eps, "
    "block_size=max_seq_len, rotary_percentage=1.0, rope_base=theta, intermediate_size=d_ff, {}), 0)"
)
LINES: dict[str, tuple[str, str | None, str | None]] = {
    "granite, with its own scale": (
        "transformers.models.granite.modeling_granite:GraniteDecoderLayer",
        "GraniteDecoderLayer(config := GraniteConfig(hidden_size=d_model, intermediate_size=d_ff, "
        "num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, rms_norm_eps=eps, "
        "max_position_embeddings=max_seq_len, attention_multiplier=head_dim**-0.5), 0)",
        "block(x, added(mask), position_embeddings=GraniteRotaryEmbedding(config)(x, positions[None]))",
    ),
    "litgpt as a Llama": (
        "litgpt.model:Block",
        LITGPT.format("parallel_residual=False, bias=False, norm_class_name='RMSNorm', mlp_class_name='LLaMAMLP'"),
        None,
    ),
    "litgpt as a Qwen3": (
        "litgpt.model:Block",
        LITGPT.format(
            "parallel_residual=False, bias=False, norm_class_name='RMSNorm', mlp_class_name='LLaMAMLP', norm_qk=True"
        ),
        None,
    ),
    "litgpt as a Pythia": (
        "litgpt.model:Block",
        LITGPT.format("parallel_residual=True, bias=True, norm_class_name='LayerNorm', mlp_class_name='GptNeoxMLP'"),
        None,
    ),
    "timm's block": ("timm.models.vision_transformer:Block", None, None),
    "timm's Eva block": ("timm.models.eva:EvaBlock", None, None),
    "PyTorch's own": (
        "torch.nn:TransformerEncoderLayer",
        "TransformerEncoderLayer(d_model, num_heads, d_ff, dropout=dropout, layer_norm_eps=eps, batch_first=True, "
        "norm_first=True)",
        None,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    """What is judged: a class that is installed, as it is or through one line each."""

    name: str
    subject: str
    build: str | None = None
    call: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.subject.partition(".")[0]) is not None


Task = tuple[Witness, str | None, str | None]
"""A witness, the fault of its copy, and the copy's source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a witness, or of a copy with a fault."""

    name: str
    fault: str | None
    ids: tuple[str, ...]
    passed: bool
    seconds: float
    problem: str = ""


def witnesses() -> list[Witness]:
    """Those that are installed."""
    found = []
    for one in [*(f"{one}DecoderLayer" for one in LLAMA_LIKE.split()), *OTHERS.split()]:
        folder, layer = one.split(".")
        name, subject = layer.removesuffix("DecoderLayer"), f"transformers.models.{folder}.modeling_{folder}:{layer}"
        found.append(Witness(name=f"transformers {name}", subject=subject))
    found += [
        Witness(name=name, subject=subject, build=build, call=call) for name, (subject, build, call) in LINES.items()
    ]
    return [one for one in found if one.is_there]


FAULTS: tuple[tuple[str, str, str], ...] = (
    # id, what stands in the source, what is put there; \g<0> and groups are the match's
    ("residual_detached",
     r"(\n    def forward\((?:(?!\n    def ).)*?residual = )hidden_states\n(?=(?:(?!\nclass ).)*mlp)",
     r"\1hidden_states.detach()\n"),
    ("missing_residual_attention", r"hidden_states = residual \+ (hidden_states|attn_output)\n",
     r"hidden_states = \1\n"),
    ("rope_on_queries_only", r"k_embed = \(k \* cos\) \+ \(rotate_half\(k\) \* sin\)", "k_embed = k + 0 * (k * cos)"),
    ("rope_not_a_rotation", r"torch\.cat\(\(-x2, x1\), dim=-1\)", "torch.cat((x2, x1), dim=-1)"),
    ("missing_attention_scale", r"(key_states\.transpose\(2, 3\)\)) \* scaling", r"\1"),
    ("softmax_wrong_dim", r"softmax\(attn_weights, dim=-1", "softmax(attn_weights, dim=-2"),
    ("gate_after_product", r"self\.act_fn\(self\.gate_proj\(x\)\) \* self\.up_proj\(x\)",
     "self.act_fn(self.gate_proj(x) * self.up_proj(x))"),
    ("norm_over_sequence", r"(variance = hidden_states\.pow\(2\)\.mean\()-1", r"\1-2"),
    ("heads_not_merged", r"attn_output = attn_output\.transpose\(1, 2\)\.contiguous\(\)",
     "attn_output = attn_output.contiguous()"),
    ("eps_outside_sqrt", r"torch\.rsqrt\(variance \+ self\.variance_epsilon\)",
     "(1 / (torch.sqrt(variance) + self.variance_epsilon))"),
)  # fmt: skip


def planted(witness: Witness) -> Iterator[tuple[str, str]]:
    """(fault, source) of copies of a witness' file with one fault each, in the part that the class uses."""
    module, _, name = witness.subject.rpartition(":")
    if not module.startswith("transformers.models."):
        return
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text()
    package = module.rpartition(".")[0]
    text = re.sub(r"^from \.\.\.(\w)", r"from transformers.\1", text, flags=re.M)
    text = text.replace("from ... import", "from transformers import")
    text = re.sub(r"^from \.\.(\w)", r"from transformers.models.\1", text, flags=re.M)
    text = re.sub(r"^from \.(\w)", rf"from {package}.\1", text, flags=re.M)
    start = text.index(f"class {name}(")
    end = text.find("\nclass ", start) + 1 or len(text)
    count = 0
    for fault, old, new in FAULTS:
        inside = fault in ("residual_detached", "missing_residual_attention")  # of the class itself
        head, body, rest = (text[:start], text[start:end], text[end:]) if inside else ("", text, "")
        changed, number = re.subn(old, new, body, count=1, flags=re.S)
        if number and count < MOST_PLANTED:
            count += 1
            yield fault, head + changed + rest


def judged(witness: Witness, fault: str | None = None, source: str | None = None, local: bool = False) -> Outcome:
    """The outcome of a witness, or of a copy of its file."""
    subject, problem, ids, passed, seconds = witness.subject, "", (), False, 0.0
    with tempfile.TemporaryDirectory() as folder:
        if source is not None:
            (Path(folder) / "copied.py").write_text(source)
            subject = f"{folder}/copied.py:{subject.rpartition(':')[2]}"
        try:
            judge_it = _judged_here if local else check
            verdict = judge_it(subject, build=witness.build, call=witness.call)
            ids, passed, seconds = tuple(verdict.ids), verdict.passed, verdict.seconds
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
    return Outcome(name=witness.name, fault=fault, ids=ids, passed=passed, seconds=seconds, problem=problem)


def _judged_here(subject: str, **lines: str | None) -> Verdict:
    """Without a sandbox: the package is imported once for all of its classes."""
    sys.modules.pop("copied", None)
    with unchanged_path():
        return judge(LocalSubject(), locate(subject), **lines)


def all_judged(tasks: Sequence[Task], *, local: bool, workers: int) -> Iterator[Outcome]:
    """Judge them side by side, in their order."""
    with judging_processes(workers) as pool:
        futures = [pool.submit(judged, *task, local) for task in tasks]
        for future in futures:
            yield future.result()


def main() -> int:
    """Print every outcome and the table; 1 where a right witness did not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="names that hold this")
    parser.add_argument("--right", action="store_true", help="without planted faults")
    parser.add_argument("--local", action="store_true", help="no sandbox")
    parser.add_argument("--part", default="1/1", help="2/5: the second of five parts")
    parser.add_argument("--keep", type=Path, help="keep outcomes in this file, and go on from those that it holds")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    flags = parser.parse_args()
    found = [one for one in witnesses() if flags.only in one.name]
    tasks: list[Task] = [(one, None, None) for one in found]
    if not flags.right:
        tasks += [(one, fault, text) for one in found for fault, text in planted(one)]
    kept, outcomes, left = Kept(flags.keep, "local" if flags.local else "sandbox"), [], []
    for task in part(tasks, flags.part):
        if (old := kept.results.get(_key(task))) is None:
            left.append(task)
        else:
            outcomes.append(Outcome(**old | {"ids": tuple(old["ids"])}))
            _print(outcomes[-1])
    for task, one in zip(left, all_judged(left, local=flags.local, workers=flags.workers), strict=True):
        kept.add(_key(task), dataclasses.asdict(one))
        outcomes.append(one)
        _print(one)
    return _summary(outcomes)


def _key(task: Task) -> str:
    return f"{task[0].name}: {task[1] or 'right'}"


def _print(one: Outcome) -> None:
    good = one.passed if one.fault is None else one.fault in one.ids
    said = f"{one.fault or 'right'}: {', '.join(one.ids) or 'nothing'} {one.problem}"
    print(f"{'ok   ' if good else 'WRONG'} {one.name}  {said}  {one.seconds:.1f} s", flush=True)


def _summary(outcomes: Sequence[Outcome]) -> int:
    right, faulty = ([one for one in outcomes if (one.fault is None) is kind] for kind in (True, False))
    alarms = sum(not one.passed for one in right)
    rows = [(f"{len(right)} public classes, as they are", f"{alarms} false alarms")]
    if faulty:
        caught, named = sum(not one.passed for one in faulty), sum(one.fault in one.ids for one in faulty)
        figures = f"{share(caught, len(faulty))} detected, {share(named, len(faulty))} named"
        rows.append((f"{len(faulty)} copies of them with a fault", figures))
    print(table("witnesses", rows))
    return int(alarms > 0)


if __name__ == "__main__":
    sys.exit(main())
