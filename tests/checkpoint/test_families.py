"""Folders of many families against transformers' own classes, with every switch away from its default."""

import dataclasses
import json
import statistics
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from prenorm import TransformerLM
from prenorm.checkpoint.inspection import inspect_folder
from prenorm.checkpoint.layouts import config_from_hugging_face
from prenorm.checkpoint.writing import weights_to_hugging_face
from prenorm.errors import CheckpointError

from .families import FAMILIES, SIZES, build, fields_of, folder_of

logging.disable_progress_bar()
logging.set_verbosity_error()

SEQ = 300
# Each family once, with most of its switches; the others are behind the marker `slow`.
QUICK = [
    *("llama, biases", "llama, dynamic", "llama, yarn, betas", "llama, longrope", "mistral", "ministral"),
    *("qwen2, layer types", "qwen3, layer types", "smollm3, windows", "phi3, longrope", "olmo2", "granite", "gemma"),
    *("gemma2", "gemma3_text", "glm", "glm4", "seed_oss", "ernie4_5", "exaone4", "olmo"),
    *("starcoder2", "nemotron", "cohere", "stablelm", "stablelm, parallel", "stablelm, qk norm", "cohere, qk norm"),
    *("gpt2", "gpt2, scale by layer", "gpt_neox", "gpt_neox, sequential", "arcee", "helium"),
]
EACH = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
# Ways of running are cells of the equality grid, too, but for frequencies that depend on the length.
FEW = ("llama, dynamic", "phi3, longrope", "gemma2")
SOME = [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("families")


def ids(rows=1, seq=SEQ, seed=1):
    """Without the padding id, whose embedding transformers does not train."""
    return torch.randint(3, SIZES["vocab_size"], (rows, seq), generator=torch.Generator().manual_seed(seed))


def relative(actual, wanted, floor=0.0):
    return (actual - wanted).abs().max().item() / max(wanted.abs().max().item(), floor)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", EACH)
def test_logits_and_gradients_are_theirs(name, root):
    theirs, ours, tokens = build(name), TransformerLM.from_pretrained(folder_of(name, root)), ids()
    wanted, exact, logits, gradients = both_ways(theirs, ours, tokens)
    assert relative(logits, wanted) <= 1e-5
    assert gradients.keys() == exact.keys()
    largest = max(gradient.abs().max().item() for gradient in exact.values())
    assert max((gradients[part] - exact[part]).abs().max().item() for part in exact) <= 1e-5 * largest
    # Each gradient alone in float64: without rotation that of a key's bias is zero, and in float32 all rounding.
    _, exact, _, gradients = both_ways(theirs.double(), ours.double(), tokens)
    for part, gradient in gradients.items():
        assert relative(gradient, exact[part], floor=1e-2 * largest) <= 1e-5, part


def both_ways(theirs, ours, tokens):
    """Logits of both models, and the gradients of one weighted sum of them, under the names of their folder."""
    for model in (theirs, ours):
        model.zero_grad()
    wanted, logits = theirs(tokens, use_cache=False).logits, ours(tokens)
    weigh = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2))
    (wanted * weigh).sum().backward()
    (logits * weigh).sum().backward()
    gradients = {part: parameter.grad for part, parameter in ours.named_parameters()}
    gradients = weights_to_hugging_face(ours.config, gradients, ours.came_from.config)
    if "embed_out.weight" in gradients:  # as folders of GPT-NeoX have it, but not its class
        gradients["lm_head.weight"] = gradients.pop("embed_out.weight")
    return wanted, {part: parameter.grad for part, parameter in theirs.named_parameters()}, logits, gradients


@pytest.mark.parametrize("name", SOME)
def test_the_loss_is_that_of_the_logits(name, root):
    ours, tokens = TransformerLM.from_pretrained(folder_of(name, root)), ids(2, 20)
    with torch.no_grad():
        wanted = torch.nn.functional.cross_entropy(ours(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert ours.loss(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_chunks_and_steps_with_a_cache_give_the_logits_of_one_pass(name, root):
    ours, tokens = TransformerLM.from_pretrained(folder_of(name, root)).double(), ids(2, 120)
    with torch.no_grad():
        wanted = ours(tokens)
        cache = ours.make_cache(2, 120)  # of this length, on which some frequencies depend
        chunks = [tokens[:, :70], tokens[:, 70:90], *tokens[:, 90:].split(1, dim=1)]
        assert relative(torch.cat([ours(chunk, cache=cache) for chunk in chunks], 1), wanted) <= 1e-12


@pytest.mark.parametrize("name", SOME)
def test_rows_padded_or_packed_are_the_rows_alone(name, root):
    ours, lengths = TransformerLM.from_pretrained(folder_of(name, root)).double(), (130, 9, 70)
    rows = [ids(seq=length, seed=length)[0] for length in lengths]
    with torch.no_grad():
        alone = [ours(row) for row in rows]
        packed = ours(torch.cat(rows), segment_ids=torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)))
        padded = torch.stack([torch.nn.functional.pad(row, (max(lengths) - len(row), 0)) for row in rows])
        marks = torch.stack([torch.tensor([-1] * (max(lengths) - n) + [0] * n) for n in lengths])
        together = ours(padded, segment_ids=marks)
    assert relative(packed, torch.cat(alone)) <= 1e-12
    assert relative(together[marks >= 0], torch.cat(alone)) <= 1e-12


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", EACH)
def test_what_is_saved_again_is_the_folder_that_was_opened(name, root, tmp_path):
    came = folder_of(name, root)
    TransformerLM.from_pretrained(came).save_pretrained(tmp_path)
    before, after = load_file(came / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[part], after[part]) for part in before)
    read = [AutoConfig.from_pretrained(folder).to_dict() for folder in (came, tmp_path)]
    for fields in read:
        fields.pop("_name_or_path")  # where the folder lies
    assert read[1].pop("prenorm_save_id")
    assert read[0] == read[1]
    assert json.loads((came / "generation_config.json").read_text()) == json.loads(
        (tmp_path / "generation_config.json").read_text()
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        assert torch.equal(theirs(ids(seq=20)).logits, build(name)(ids(seq=20)).logits)


OLDER = {  # names and tensors of folders from the first programs
    "gpt2": (
        lambda name: name.removeprefix("transformer."),
        {"h.0.attn.bias": torch.ones(1, 1, 9, 9).tril(), "h.1.attn.masked_bias": torch.tensor(-1e4)},
    ),
    "gpt_neox": (
        lambda name: name.replace("embed_out", "lm_head"),
        {
            "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 9, 9).tril().to(torch.uint8),
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(1),
            "gpt_neox.layers.2.attention.masked_bias": torch.tensor(-1e9),
        },
    ),
}


@pytest.mark.parametrize("name", OLDER)
def test_a_folder_with_older_names_opens_and_keeps_them(name, root, tmp_path):
    came, (older, masks) = folder_of(name, root), OLDER[name]
    weights = {older(part): tensor for part, tensor in load_file(came / "model.safetensors").items()}
    save_file(weights | masks, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((came / "config.json").read_text())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ours = TransformerLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert relative(ours(ids()), theirs(ids()).logits) <= 1e-5
    ours.save_pretrained(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[part], weights[part]) for part in weights)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt_neox, sequential"])  # with tied heads, and so whole
def test_a_folder_of_the_model_without_its_head_opens_and_keeps_its_names(name, root, tmp_path):
    build(name).base_model.save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ours, before = TransformerLM.from_pretrained(tmp_path), load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert relative(ours(ids()), theirs(ids()).logits) <= 1e-5
    ours.save_pretrained(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert "layers.0.input_layernorm.weight" in after
    assert after.keys() == before.keys()
    assert all(torch.equal(after[part], before[part]) for part in before)


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "cohere, qk norm"])
def test_a_tied_embedding_that_is_stored_as_the_head_opens_and_keeps_its_name(name, root, tmp_path):
    theirs = build(name)
    theirs.config.save_pretrained(tmp_path)
    save_model(theirs, str(tmp_path / "model.safetensors"), {"format": "pt"})
    ours, before = TransformerLM.from_pretrained(tmp_path), load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" in before
    assert not inspect_folder(tmp_path)["refused"]
    with torch.no_grad():
        assert relative(ours(ids()), theirs(ids()).logits) <= 1e-5
    ours.save_pretrained(tmp_path)
    after = load_file(tmp_path / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[part], before[part]) for part in before)
    with torch.inference_mode():
        integers = ours.quantize("int8")  # whose head is a matrix of its own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* was saved as model_type 'prenorm'")
            integers.save_pretrained(tmp_path)
        assert torch.equal(TransformerLM.from_pretrained(tmp_path)(ids()), integers(ids()))


def test_a_folder_without_a_head_that_is_not_tied_is_refused_by_name(root, tmp_path):
    build("mistral").base_model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight\.$"):
        TransformerLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "gpt2, scales", "gpt2, 4 n_embd", "gpt_neox", "gpt_neox, sequential"])
def test_a_model_that_came_from_no_folder_is_written_as_its_family(name, root, tmp_path):
    ours = TransformerLM.from_pretrained(folder_of(name, root))
    ours.came_from = None
    ours.save_pretrained(tmp_path)
    assert TransformerLM.from_pretrained(tmp_path).config == ours.config
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        assert relative(theirs(ids()).logits, build(name)(ids()).logits) <= 1e-6


@pytest.mark.parametrize(
    "name", ["gpt2, scales", "gpt_neox", "cohere, qk norm", "stablelm, parallel, qk norm", "arcee", "helium", "gemma2"]
)
def test_a_model_that_was_trained_further_is_saved_as_its_family(name, root, tmp_path):
    ours = TransformerLM.from_pretrained(folder_of(name, root)).train()
    optimizer, before = torch.optim.SGD(ours.parameters(), lr=0.1), ours.layers[1].attn.q_proj.weight.clone()
    ours.loss(ids()[:, :-1], ids()[:, 1:]).backward()
    optimizer.step()
    assert not torch.equal(ours.layers[1].attn.q_proj.weight, before)
    ours.eval().save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert theirs.config.model_type == fields_of(name)["model_type"]
    with torch.no_grad():
        assert relative(ours(ids()), theirs(ids()).logits) <= 1e-5


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "cohere, qk norm", "stablelm, qk norm"])
def test_a_family_in_whole_numbers_is_saved_and_opens(name, root, tmp_path):
    ours = TransformerLM.from_pretrained(folder_of(name, root)).quantize("int8")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* was saved as model_type 'prenorm'")
        ours.save_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(TransformerLM.from_pretrained(tmp_path)(ids()), ours(ids()))


def test_absurdly_many_heads_with_norms_of_their_own_are_refused_before_they_are_listed(root, tmp_path):
    came = folder_of("cohere, qk norm", root)
    (tmp_path / "model.safetensors").write_bytes((came / "model.safetensors").read_bytes())
    fields = json.loads((came / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_attention_heads": 2 * 10**9}))
    with pytest.raises(CheckpointError, match="num_attention_heads must be at most 1024 where each head has norms"):
        TransformerLM.from_pretrained(tmp_path)


def test_another_order_of_gpt_2s_sums_is_the_same_maths(root):
    fields, model = fields_of("gpt2") | {"reorder_and_upcast_attn": True}, build("gpt2")
    again = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), attn_implementation="eager").eval()
    again.load_state_dict(model.state_dict())
    assert config_from_hugging_face(fields) == config_from_hugging_face(fields_of("gpt2"))
    with torch.no_grad():
        assert relative(again(ids()).logits, model(ids()).logits) <= 1e-5


def test_a_model_that_is_another_now_is_not_saved_as_the_folder_said(root, tmp_path):
    ours = TransformerLM.from_pretrained(folder_of("mistral", root))
    ours.eos_token_ids, ours.config = (7,), dataclasses.replace(ours.config, window=20)
    for block in ours.layers:
        block.attn.window = 20
    ours.save_pretrained(tmp_path)
    opened = TransformerLM.from_pretrained(tmp_path)
    assert (opened.eos_token_ids, opened.config) == ((7,), ours.config)


def test_ids_that_end_a_text_are_saved_as_they_are_now(root, tmp_path):
    ours = TransformerLM.from_pretrained(folder_of("gemma2", root))
    ours.eos_token_ids = (7, 9)
    ours.save_pretrained(tmp_path)
    assert TransformerLM.from_pretrained(tmp_path).eos_token_ids == (7, 9)
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id == [7, 9]
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [7, 9]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_as_near_to_float64_as_theirs(name, root):
    theirs = build(name, torch.bfloat16)
    ours = TransformerLM.from_pretrained(folder_of(name, root), dtype=torch.bfloat16)
    wide = TransformerLM(ours.config, dtype=torch.float64).eval()  # theirs norms in float32 even then
    wide.load_state_dict(ours.state_dict())
    ratios = []
    with torch.no_grad():
        for seed in range(8):
            tokens = ids(seed=seed)
            exact = wide(tokens)
            errors = [(model(tokens) - exact).square().mean().sqrt() for model in (ours, lambda x: theirs(x).logits)]
            ratios.append((errors[0] / errors[1]).item())
    assert statistics.median(ratios) <= 1.05


@pytest.mark.parametrize("name", ["llama, biases", "phi3, longrope", "gemma2"])
def test_a_sharded_folder_opens(name, tmp_path):
    folder_of(name, tmp_path, max_shard_size="20KB")
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("*.safetensors"))) > 2
    with torch.no_grad():
        assert relative(TransformerLM.from_pretrained(folder)(ids()), build(name)(ids()).logits) <= 1e-5
