import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from prenorm import ModelConfig, TransformerLM

END = "<|endoftext|>"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """What a training leaves, as far as generation is concerned: a small random model and a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=257, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(257, d_model=16, num_layers=2, num_heads=2, max_seq_len=40))
    model.eos_token_ids = (0,)
    model.save_pretrained(folder)
    (folder / "config.toml").write_text("steps = 1\n")
    return folder
