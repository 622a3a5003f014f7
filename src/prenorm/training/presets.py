"""The named sets of numbers that a run starts from: the one place to change them."""

from typing import Any, Literal

PresetName = Literal["demo", "tiny", "gpt2-small", "finetune"]

# What is left out has the default of TrainConfig or ModelConfig; max_seq_len is the context, unless it is given.
PRESETS: dict[PresetName, dict[str, Any]] = {
    # Python's standard library in at most five minutes of training on two CPU cores.
    "demo": {
        "vocab_size": 4096,
        "d_model": 128,
        "num_layers": 4,
        "num_heads": 2,
        "d_ff": 384,
        "qk_norm": True,
        "context": 256,
        "short_context": 128,
        "short_share": 0.5,
        "steps": 1100,
        "batch_size": 16,
        "muon_lr": 0.03,
        "embedding_lr": 0.1,
        "head_lr": 0.02,
        "vector_lr": 0.01,
        "adam_betas": [0.8, 0.95],
        "warmup_steps": 1,
        "decay_share": 1.0,
        "compile": True,
        "eval_every": 200,
        "eval_batches": 4,
        "sample_every": 200,
        "checkpoint_every": 200,
    },
    # Everything that a run does, in seconds: for tests and for a first look.
    "tiny": {
        "vocab_size": 512,
        "d_model": 64,
        "num_layers": 2,
        "num_heads": 2,
        "context": 64,
        "steps": 40,
        "batch_size": 8,
        "warmup_steps": 4,
        "dtype": "float32",
        "eval_every": 20,
        "eval_batches": 2,
        "checkpoint_every": 20,
    },
    # About 110M parameters: the sizes of Radford et al. 2019, with this package's block. For a GPU.
    "gpt2-small": {
        "vocab_size": 32768,
        "d_model": 768,
        "num_layers": 12,
        "num_heads": 12,
        "context": 1024,
        "tie_embeddings": True,
        "steps": 10000,
        "batch_size": 256,
        "micro_batch_size": 16,
        "embedding_lr": 0.003,
        "warmup_steps": 200,
        "compile": True,
        "eval_every": 500,
        "checkpoint_every": 500,
    },
    # To go on from a trained model. Its sizes are those of the folder that --from names.
    "finetune": {
        "context": 512,
        "steps": 500,
        "batch_size": 8,
        "micro_batch_size": 1,
        "optimizer": "adamw",
        "lr": 2e-5,
        "adam_eps": 1e-8,
        "schedule": "cosine",
        "final_lr_share": 0.1,
        "eval_every": 50,
        "checkpoint_every": 100,
    },
}
