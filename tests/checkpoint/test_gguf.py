"""GGUF files, read back with gguf's reader, and with llama.cpp where it is installed."""

import json
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from prenorm import ModelConfig, RopeScaling, TransformerLM
from prenorm.checkpoint.gguf import write_gguf
from prenorm.checkpoint.gguf_tokenizer import LLAMA_3, NEAREST, QWEN_2, vocabulary_of
from prenorm.errors import CheckpointError, ConfigError
from prenorm.ops.rope_frequencies import rope_frequencies
from prenorm.training.tokenizer import train_tokenizer

gguf = pytest.importorskip("gguf")

TEXT = "def main(x):\n    return x + 123456  # naïve 世界\n\n\nclass Test:\n    pass\n"
TOKENIZER = train_tokenizer([TEXT], 300)
SIZE = TOKENIZER.get_vocab_size() + 3  # more rows than tokens
MODELS: dict[str, Any] = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "odd heads": {"head_dim": 24},
    "mistral, whose window is its context": {"window": 128},
    "qwen3": {"qk_norm": True},
    "qwen2": {"qkv_bias": True},
    "llama, biases": {"qkv_bias": True, "o_bias": True},
    "llama, interleaved": {"rope_interleaved": True},
    "qwen3, interleaved": {"rope_interleaved": True, "qk_norm": True},
    "linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "llama3": {"rope_theta": 5e5, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)},
}


def make(**options) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(SIZE, 64, 2, 4, num_kv_heads=2, d_ff=96, max_seq_len=128, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(0.3 * noise if parameter.ndim == 2 else 1 + 0.1 * noise)
    return model


def written(path, model, **options):
    write_gguf(path, model.config, model.state_dict(), TOKENIZER, eos_token_ids=(0,), **options)
    return gguf.GGUFReader(path)


def value(reader, key):
    return reader.fields[key].contents()


@pytest.mark.parametrize("name", MODELS)
def test_settings_and_tensors_are_read_back(name, tmp_path):
    model = make(**MODELS[name])
    reader, config = written(tmp_path / "model.gguf", model), model.config
    architecture = value(reader, "general.architecture")
    assert architecture == {"qwen2": "qwen2", "qwen3": "qwen3"}.get(name.partition(",")[0], "llama")
    for key, expected in {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }.items():
        assert value(reader, f"{architecture}.{key}") == expected
    tensors = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}
    state = model.state_dict()
    assert len(tensors) == len(state) + (name == "llama3")
    assert torch.equal(tensors["token_embd.weight"].view(SIZE, 64), state["embedding.weight"])
    assert torch.equal(tensors["blk.1.ffn_down.weight"].view(64, 96), state["layers.1.ffn.down_proj.weight"])
    q = state["layers.1.attn.q_proj.weight"]
    as_is = config.rope_interleaved == (architecture == "llama")
    same = torch.equal(tensors["blk.1.attn_q.weight"].view(q.shape), q)
    assert same == as_is
    if name == "llama3":
        plain, scaled = (rope_frequencies(16, 5e5, one) for one in (None, config.rope_scaling))
        torch.testing.assert_close(tensors["rope_freqs.weight"].double(), plain / scaled)


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_matrices_are_in_the_dtype_asked_for_and_vectors_in_float32(tmp_path, dtype, bits):
    reader = written(tmp_path / "model.gguf", make(qk_norm=True), dtype=getattr(torch, dtype))
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == bits
    assert kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_q_norm.weight"] == "F32"
    wanted = make(qk_norm=True).state_dict()["embedding.weight"].to(getattr(torch, dtype))
    stored = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
    assert torch.tensor(stored.data.copy()).view(torch.uint8).flatten().equal(wanted.view(torch.uint8).flatten())


@pytest.mark.parametrize(("name", "stored"), [("My model", True), ("phi3-tuned", False), ("my Phi-3", False)])
def test_a_name_that_llama_cpp_has_rules_for_is_left_out(tmp_path, name, stored):
    reader = written(tmp_path / "model.gguf", make(), name=name)
    assert ("general.name" in reader.fields) == stored
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is compiled for minutes: the extra llama has it")
    theirs = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=128, verbose=False, vocab_only=True)
    assert theirs.n_vocab() == SIZE


def test_the_vocabulary_is_read_back(tmp_path):
    reader = written(tmp_path / "model.gguf", make())
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert tokens[: SIZE - 3] == [TOKENIZER.id_to_token(id) for id in range(SIZE - 3)]
    assert tokens[-1] == f"[PAD{SIZE - 1}]"
    kinds = value(reader, "tokenizer.ggml.token_type")
    assert (kinds[0], kinds[1], kinds[-1]) == (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED)
    merges = [" ".join(merge) for merge in json.loads(TOKENIZER.to_str())["model"]["merges"]]
    assert value(reader, "tokenizer.ggml.merges") == merges
    assert value(reader, "tokenizer.ggml.bos_token_id") == value(reader, "tokenizer.ggml.eos_token_id") == 0
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    assert value(reader, "tokenizer.ggml.add_eos_token") is False
    assert value(reader, "tokenizer.ggml.pre") == NEAREST


def bpe(*parts, template=None, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(list(parts)), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def split(expression):
    return pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)


@pytest.mark.parametrize(
    ("tokenizer", "pre", "notes"),
    [
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt-2", 0),
        (bpe(*split(LLAMA_3)), "smaug-bpe", 0),
        (bpe(*split(LLAMA_3), ignore_merges=True), "llama-bpe", 0),
        (bpe(*split(QWEN_2)), "qwen2", 0),
        (bpe(*split(QWEN_2), normalizer=normalizers.NFC()), "qwen2", 1),
        (bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), NEAREST, 1),
        (bpe(*split(r"\d")), NEAREST, 1),
        (TOKENIZER, NEAREST, 1),
    ],
)
def test_how_a_text_is_cut_is_named_or_noted(tokenizer, pre, notes):
    vocabulary = vocabulary_of(tokenizer, 300)
    assert (vocabulary.pre, len(vocabulary.notes)) == (pre, notes)


@pytest.mark.parametrize(
    ("template", "around"),
    [(None, (None, None)), ("<s> $A", (0, None)), ("$A </s>", (None, 1)), ("<s> $A </s>", (0, 1))],
)
def test_special_tokens_around_a_text_are_those_of_the_tokenizer(template, around):
    vocabulary = vocabulary_of(bpe(*split(QWEN_2), template=template), 300)
    assert (vocabulary.bos, *(vocabulary.ends or [None])) == around
    assert (vocabulary.adds_bos, vocabulary.adds_eos) == tuple(id is not None for id in around)


@pytest.mark.parametrize(
    ("template", "eos", "ends", "notes"),
    [
        (None, (5,), [5], []),
        (None, (5, 3), [5, 3], []),
        (None, (5, 3, 4, 9, 7), [5, 3, 4], ["but not at [9, 7]"]),
        ("$A </s>", (), [1], []),
        ("$A </s>", (5, 1), [1, 5], []),
        ("$A </s>", (5,), [1, 5], ["ends a text at the token 1, too"]),
    ],
)
def test_the_ids_that_end_a_text_begin_with_what_the_tokenizer_puts_there(template, eos, ends, notes):
    vocabulary = vocabulary_of(bpe(*split(QWEN_2), template=template), 300, eos)
    assert vocabulary.ends == ends
    assert len(vocabulary.notes) == len(notes)
    assert all(part in note for part, note in zip(notes, vocabulary.notes, strict=True))


def test_llama_cpp_ends_texts_where_the_model_does_and_puts_the_same_tokens_around_them(tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is compiled for minutes: the extra llama has it")
    model, tokenizer = make(), bpe(*split(QWEN_2), template="<s> $A </s>")
    config, path = model.config, tmp_path / "model.gguf"
    write_gguf(path, config, model.state_dict(), tokenizer, eos_token_ids=(7, 1, 9))
    theirs = llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, verbose=False)
    vocabulary = llama_cpp.llama_model_get_vocab(theirs._model.model)
    ends = [id for id in range(config.vocab_size) if llama_cpp.llama_vocab_is_eog(vocabulary, id)]
    assert ends == [1, 7, 9]
    ids = tokenizer.encode("def main").ids
    assert theirs.tokenize(b"def main", special=True) == ids
    assert (ids[0], ids[-1]) == (0, 1)


def test_tokenizers_that_llama_cpp_would_read_otherwise_are_refused():
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(CheckpointError, match=r"byte-level BPE, but the tokenizer is WordLevel with decoder None"):
        vocabulary_of(words, 10)
    with pytest.raises(CheckpointError, match=r"must fit into the model's 20 tokens, but has .* beyond, such as"):
        vocabulary_of(TOKENIZER, 20)
    with pytest.raises(CheckpointError, match="this tokenizer puts 2 and 0"):
        vocabulary_of(bpe(*split(QWEN_2), template="<s> </s> $A"), 300)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 5}, "window is 5"),
        ({"qk_norm": True, "qkv_bias": True, "o_bias": True}, "qk_norm and biases are not had together"),
        ({"o_bias": True}, "its parts are not those of Llama, Qwen2 or Qwen3"),
        ({"rope_scaling": RopeScaling("yarn", 4.0, original_max_seq_len=32)}, "rope_scaling is 'yarn'"),
        ({"qk_norm": True, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)}, "rope_scaling is 'llama3'"),
    ],
)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(tmp_path, options, message):
    model = make(**options)
    with pytest.raises(ConfigError, match=message):
        write_gguf(tmp_path / "model.gguf", model.config, model.state_dict(), TOKENIZER)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, model = tmp_path / "model.gguf", make()
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prenorm.checkpoint.gguf.os.fsync", fail)
    with pytest.raises(CheckpointError, match=r"model.gguf could not be written: No space left on device"):
        write_gguf(path, model.config, model.state_dict(), TOKENIZER)
    assert [one.name for one in tmp_path.iterdir()] == ["model.gguf"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_greedy_tokens_and_the_text_of_ids(name, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is compiled for minutes: the extra llama has it")
    model = make(**MODELS[name])
    written(tmp_path / "model.gguf", model)
    theirs = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=128, n_threads=1, verbose=False, logits_all=True, type_k=0, type_v=0
    )
    prompt = TOKENIZER.encode("def main(").ids
    (wanted,) = model.generate([prompt], max_new_tokens=40, temperature=0)
    written_there, stream = [], theirs.generate(prompt, temp=0.0, repeat_penalty=1.0)
    for token in stream:
        written_there.append(token)
        if len(written_there) == len(wanted):
            break
    assert written_there == wanted
    assert theirs.detokenize(prompt + wanted).decode(errors="replace") == TOKENIZER.decode(prompt + wanted)
