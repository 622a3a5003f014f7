"""What a model does with a prompt, and the page that shows it."""

import base64
import csv
import json
import re

import numpy as np
import pytest
import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.errors import ConfigError
from prenorm.lab import attention_page
from prenorm.lab.attention import look

from .measured import browser_says

IDS = [5, 1, 200, 7, 7, 30]


def model(**options):
    torch.manual_seed(1)
    sizes = {"d_model": 16, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64, "qk_norm": True}
    made = TransformerLM(ModelConfig(257, **{**sizes, **options}), dtype=torch.float64).eval()
    for one in made.parameters():
        if one.ndim == 2:
            torch.nn.init.normal_(one, std=0.4)
    return made


def test_weights_are_the_softmax_of_scores_and_streams_lead_to_the_models_own_logits():
    lm = model()
    shown = look(lm, IDS)
    assert shown.weights.shape == (3, 4, 6, 6)
    torch.testing.assert_close(shown.weights.sum(-1), torch.ones(3, 4, 6))
    assert not shown.weights.triu(1).any()
    logits = lm(torch.tensor([IDS]))[0]
    probabilities, choices = logits.softmax(-1).topk(5)
    torch.testing.assert_close(shown.probabilities[-1], probabilities.float(), rtol=1e-5, atol=1e-7)
    assert torch.equal(shown.choices[-1], choices)
    embedded = lm.embedding(torch.tensor(IDS))
    torch.testing.assert_close(shown.stream_rms[0], embedded.square().mean(-1).sqrt().float())
    attention = lm.layers[0].attn
    q, k, _ = attention.project(lm.layers[0].norm1(embedded))
    cos, sin = attention.rope.cos_sin(torch.arange(6), torch.float64)
    scores = attention.rotate(q, cos, sin) @ attention.rotate(k, cos, sin).repeat_interleave(2, 0).mT / 2.0
    scores = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), -torch.inf)
    torch.testing.assert_close(shown.weights[0], scores.softmax(-1).float())


def test_a_look_leaves_the_model_as_it_was():
    lm = model()
    before = lm(torch.tensor([IDS]))
    look(lm, IDS)
    assert torch.equal(lm(torch.tensor([IDS])), before)
    assert all("attend" not in vars(block.attn) and not block._forward_hooks for block in lm.layers)
    with pytest.raises(ValueError, match="max_seq_len"):
        look(lm, [1] * 65)
    assert all("attend" not in vars(block.attn) for block in lm.layers)


def test_a_window_and_a_quantised_model_are_looked_at_too():
    weights = look(model(window=2), IDS).weights
    assert not weights.tril(-2).any()
    assert weights.diagonal(-1, -2, -1).any()
    assert look(model(d_model=64, num_layers=1).float().quantize("int8"), IDS).weights.shape == (1, 4, 6, 6)


def test_the_weights_of_another_family_are_those_that_transformers_gives(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 3, "attn_logit_softcapping": 2.0}
    theirs = Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, attn_implementation="eager")).eval()
    for one in theirs.parameters():
        torch.nn.init.normal_(one, std=0.5)
    theirs.save_pretrained(tmp_path)
    shown = look(TransformerLM.from_pretrained(tmp_path), [3, 1, 4, 1, 5, 9])
    with torch.no_grad():
        wanted = theirs(torch.tensor([[3, 1, 4, 1, 5, 9]]), output_attentions=True)
    torch.testing.assert_close(shown.weights, torch.cat(wanted.attentions), rtol=1e-4, atol=1e-6)
    likeliest = wanted.logits[0].softmax(-1).topk(5)
    torch.testing.assert_close(shown.probabilities[-1], likeliest.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", [16, 8])
def test_the_page_has_every_weight_of_the_causal_half(bits):
    weights = look(model(), IDS).weights
    raw = base64.b64decode(attention_page._packed(weights, bits))
    numbers = np.frombuffer(raw, np.uint8 if bits == 8 else "<u2").reshape(3, 4, 21) / (2**bits - 1)
    for layer, head, q in ((0, 0, 0), (2, 3, 5), (1, 2, 3)):
        start = q * (q + 1) // 2
        row = numbers[layer, head, start : start + q + 1]
        np.testing.assert_allclose(row, weights[layer, head, q, : q + 1], atol=0.5 / (2**bits - 1) + 1e-7)


def test_the_page_draws_itself_in_a_browser_and_its_texts_are_texts(tmp_path, run_folder):
    tokenizer = open_tokenizer(run_folder)
    prompt = "</script><b>é\n"
    ids = tokenizer.encode(prompt).ids
    out = tmp_path / "out"
    shown = look(model(), ids)
    record = attention_page.write_attention(out, "a <model>", prompt, shown, ids, tokenizer)
    assert record == json.loads((out / "attention.json").read_text())
    assert "".join(record["tokens"][:10]) == "<|endoftext|></script>"
    with (out / "attention.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["token"] for row in rows] == record["tokens"] * 4
    for row, likeliest, probability in zip(
        rows, shown.choices.flatten(0, 1), shown.probabilities.flatten(0, 1), strict=True
    ):
        assert row["likeliest"] == attention_page._token(tokenizer, int(likeliest[0]))
        assert float(row["probability"]) == float(probability[0])
    text = (out / "attention.html").read_text()
    assert len(re.findall(r"plotly\.js v\d", text)) == 1
    assert len(text.encode()) < 20e6
    facts = browser_says(out / "attention.html", tmp_path)
    if facts is None:
        pytest.skip("Chromium is not installed")
    assert facts["errors"] == []
    assert facts["cells"] == 4 + 2  # a heatmap a head, one of the stream and one of the lens
    assert facts["scroll"] <= facts["width"]
    attention, (stream,), (lens,) = facts["maps"]
    for head, drawn in enumerate(attention):  # of the first layer: a query a row
        for q, row in enumerate(drawn["z"]):
            np.testing.assert_allclose(row[: q + 1], shown.weights[0, head, q, : q + 1], atol=1e-5)
            assert row[q + 1 :] == [None] * (len(ids) - q - 1)
            assert f"head {head + 1}<br>query {q}: " in drawn["text"][q][0]
            assert drawn["text"][q][0].endswith(f"weight {row[0]:.4f}")
    np.testing.assert_allclose(stream["z"], shown.stream_rms.log10(), atol=1e-5)
    np.testing.assert_allclose(lens["z"], shown.probabilities[:, :, 0], atol=1e-6)


def test_a_page_that_would_be_too_large_is_refused_and_smaller_numbers_are_tried_first(run_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", type("fake", (), {"get_plotlyjs": lambda: ""}))
    tokenizer, shown = open_tokenizer(run_folder), look(model(), IDS)
    arguments = ("m", "p", shown, IDS, tokenizer)
    fine = attention_page.attention_page(*arguments)
    assert '"bits": 16' in fine
    monkeypatch.setattr(attention_page, "LARGEST_PAGE", len(fine.encode()) - 1)
    assert '"bits": 8' in attention_page.attention_page(*arguments)
    monkeypatch.setattr(attention_page, "LARGEST_PAGE", 1000)
    with pytest.raises(ConfigError, match=r"3 layers of 4 heads over 6 tokens .*give a shorter prompt"):
        attention_page.attention_page(*arguments)


def test_a_folder_of_other_things_is_refused_and_without_plotly_the_way_out_is_said(tmp_path, run_folder, monkeypatch):
    tokenizer, shown = open_tokenizer(run_folder), look(model(), IDS)
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ConfigError, match="choose another --out"):
            attention_page.write_attention(out, "m", "p", shown, IDS, tokenizer)
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ConfigError, match=r"pip install 'prenorm\[plot\]'"):
        attention_page.write_attention(tmp_path / "new", "m", "p", shown, IDS, tokenizer)
    assert not (tmp_path / "new").exists()
