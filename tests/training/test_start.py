import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

from prenorm import ModelConfig, TransformerLM
from prenorm.errors import CheckpointError, ConfigError
from prenorm.training.config import TrainConfig, config_to_toml, read_toml
from prenorm.training.display import Display
from prenorm.training.loop import train
from prenorm.training.start import start_settings, starting_model
from prenorm.training.tokenizer import end_of_text, load_tokenizer, tokenizer_files, train_tokenizer

from ..checkpoint.families import FAMILIES, build
from .conftest import text_of

QUIET = Display(quiet=True)
QUICK = ("llama", "gemma3")
MORE = ("llama, longrope", "mistral", "qwen3", "phi3", "gemma2", "olmo2", "glm4", "granite", "cohere")
EACH = [*QUICK, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)]


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch):
    """The text at the end of a run is short: it is not what is tested here."""
    monkeypatch.setattr("prenorm.training.sample.SAMPLE_TOKENS", 4)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer of 300 tokens."""
    return train_tokenizer([text_of(1, 500)], 300)


@pytest.fixture
def folder_of(tmp_path, tokenizer):
    """The folder of a small model with this tokenizer."""

    def folder(model, name="model"):
        model.eos_token_ids = (end_of_text(tokenizer)[1],)
        model.save_pretrained(tmp_path / name)
        for file, content in tokenizer_files(tokenizer).items():
            (tmp_path / name / file).write_bytes(content)
        return tmp_path / name

    return folder


def model_of(**fields):
    torch.manual_seed(3)
    return TransformerLM(ModelConfig(300, d_model=16, num_layers=2, num_heads=2, max_seq_len=32, **fields))


def run_from(folder, tiny, **fields):
    """The settings of a run that goes on from a folder, as the command line makes them."""
    sizes = {"vocab_size", "d_model", "context", "dropout", "preset"}
    given = {name: value for name, value in tiny(steps=2).to_fields().items() if name in ("out", "data", "steps")}
    assert not sizes & given.keys()
    return TrainConfig.from_fields(start_settings({**given, "start_from": str(folder), **fields}))


def test_the_sizes_and_the_tokenizer_are_the_folders_and_the_rest_is_for_finetuning(folder_of, tiny):
    folder = folder_of(model_of(num_kv_heads=1, qk_norm=True))
    config = run_from(folder, tiny)
    assert config.model == ModelConfig(300, 16, 2, 2, num_kv_heads=1, qk_norm=True, max_seq_len=32)
    assert config.tokenizer == str(folder / "tokenizer.json")
    assert (config.preset, config.optimizer, config.lr, config.schedule) == ("finetune", "adamw", 2e-5, "cosine")
    assert config.context == 32
    assert run_from(folder, tiny, preset="tiny", dropout=0.2, context=8).model.dropout == 0.2


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_weights_are_the_folders_in_float32(folder_of, tiny, tokenizer, stored):
    folder = folder_of(model_of().to(stored))
    model = starting_model(run_from(folder, tiny, dropout=0.3), tokenizer, (0,))
    expected = TransformerLM.from_pretrained(folder).state_dict()
    assert model.layers[0].dropout.p == 0.3
    for name, weight in model.named_parameters():
        assert weight.requires_grad
        assert weight.dtype == torch.float32
        assert torch.equal(weight, expected[name].float())


def test_a_run_goes_on_from_a_run_and_its_first_loss_is_where_that_one_ended(tiny, tmp_path):
    first = train(tiny(steps=3, dropout=0.0, eval_every=0, checkpoint_every=0), display=QUIET)
    config = run_from(tiny().out, tiny, out=str(tmp_path / "next"), lr=0.0, steps=1, eval_every=0, dtype="float32")
    assert train(config, display=QUIET).eval_loss == pytest.approx(first.eval_loss, rel=1e-5)
    weights = [TransformerLM.from_pretrained(run).lm_head.weight for run in (tiny().out, tmp_path / "next")]
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", EACH)
def test_a_run_goes_on_from_a_folder_of_any_family_and_is_stopped_and_repeated(
    tiny, tmp_path, tokenizer, monkeypatch, name
):
    name = next(one for one in FAMILIES if one.startswith(name))
    monkeypatch.setitem(FAMILIES, "this", (FAMILIES[name][0], {**FAMILIES[name][1], "vocab_size": 300}))
    folder = tmp_path / "model"
    build("this").save_pretrained(folder)
    for file, content in tokenizer_files(tokenizer).items():
        (folder / file).write_bytes(content)
    config = run_from(folder, tiny, steps=2, checkpoint_every=1, batch_size=2, lr=1e-3, eval_every=0)
    assert TrainConfig.from_fields(config.to_fields()) == config
    train(config, display=QUIET)
    run = tmp_path / "run"
    assert TrainConfig.from_fields(read_toml(run / "config.toml")) == config
    (run / "result.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    before = {file: (run / file).read_bytes() for file in ("config.json", "model.safetensors")}
    shutil.rmtree(folder)  # a checkpoint has all that a run needs
    train(config, resume=True, display=QUIET)
    assert {file: (run / file).read_bytes() for file in before} == before
    assert AutoModelForCausalLM.from_pretrained(run).config.model_type == FAMILIES[name][0]


def test_what_contradicts_the_folder_is_refused_by_name(folder_of, tiny, tmp_path):
    folder = folder_of(model_of())
    with pytest.raises(ConfigError, match=r"d_model is 16 there and 64 here, .*num_layers is 2 there and 4 here"):
        run_from(folder, tiny, d_model=64, num_layers=4)
    with pytest.raises(ConfigError, match=r"goes on with its own tokenizer, .* but tokenizer is other\.json"):
        run_from(folder, tiny, tokenizer="other.json")
    with pytest.raises(ConfigError, match="context must not be greater than the model's max_seq_len, but 64"):
        run_from(folder, tiny, context=64)
    config = run_from(folder, tiny)
    folder_of(model_of(qk_norm=True))  # the folder has another model now
    with pytest.raises(ConfigError, match="qk_norm is True there and False here"):
        train(config, display=QUIET)


def test_what_cannot_be_trained_or_has_no_tokenizer_is_refused(folder_of, tiny, tmp_path):
    folder = folder_of(model_of())
    for kind in ("int8", "int4"):
        rounded = folder_of(TransformerLM.from_pretrained(folder).quantize(kind), kind)
        with pytest.raises(
            ConfigError, match=f"only a model in floats can be trained, but the matrices in .* are {kind}"
        ):
            run_from(rounded, tiny)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        run_from(folder, tiny)
    with pytest.raises(CheckpointError, match="there is no such folder"):
        run_from(tmp_path / "nowhere", tiny)


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused_but_for_special_ones(folder_of, tiny, tokenizer):
    folder = folder_of(model_of())
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_special_tokens(["<pad>"])
    starting_model(run_from(folder, tiny), larger, (0,))
    larger.add_tokens(["wörd"])
    with pytest.raises(CheckpointError, match="must fit its model of 300 tokens, but has the id 301"):
        starting_model(run_from(folder, tiny), larger, (0,))


def test_the_end_of_a_text_is_the_token_that_the_folder_names(folder_of, tiny, tokenizer, tmp_path):
    folder = folder_of(model_of())
    path = folder / "tokenizer_config.json"
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|END_OF_TURN_TOKEN|>"))
    for eos in ("<|END_OF_TURN_TOKEN|>", {"content": "<|END_OF_TURN_TOKEN|>", "lstrip": False}):
        path.write_text(json.dumps({"eos_token": eos}))
        assert end_of_text(load_tokenizer(file)) == ("<|END_OF_TURN_TOKEN|>", end_of_text(tokenizer)[1])
    train(run_from(folder, tiny, steps=1), display=QUIET)
    assert end_of_text(load_tokenizer(tmp_path / "run" / "tokenizer.json"))[0] == "<|END_OF_TURN_TOKEN|>"


def test_settings_go_to_toml_and_back(folder_of, tiny, tmp_path):
    config = run_from(folder_of(model_of()), tiny)
    (tmp_path / "config.toml").write_text(config_to_toml(config))
    assert TrainConfig.from_fields(read_toml(tmp_path / "config.toml")) == config
    assert TrainConfig.from_fields(start_settings(read_toml(tmp_path / "config.toml"))) == config


def test_the_first_loss_is_that_of_transformers_on_texts_that_begin_as_theirs(folder_of, tiny, tmp_path):
    folder = folder_of(model_of())
    file = folder / "tokenizer.json"
    theirs = Tokenizer.from_file(str(file))
    theirs.post_processor = processors.TemplateProcessing(
        single="A $A", special_tokens=[("A", theirs.token_to_id("A"))]
    )
    theirs.save(str(file))
    (tmp_path / "texts").mkdir()
    for name in "abcdefghijklmnopqrstuvwxyz":  # of which one or two are held out
        (tmp_path / "texts" / f"{name}.txt").write_text("def f(x): return 1 + 42")
    fields = {"data": [str(tmp_path / "texts")], "context": 32, "eval_every": 0, "dtype": "float32", "lr": 0.0}
    result = train(run_from(folder, tiny, steps=1, **fields), display=QUIET)
    ids = torch.tensor([[*theirs.encode("def f(x): return 1 + 42").ids, 0]])  # 0 ends a text
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder)(ids, labels=ids).loss.item()
    assert result.eval_loss == pytest.approx(expected, rel=1e-4)
    assert Tokenizer.from_file(str(tmp_path / "run" / "tokenizer.json")).encode("def").ids == theirs.encode("def").ids
