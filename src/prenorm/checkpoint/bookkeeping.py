"""Keys of a config.json that do not affect the logits of the supported families, and the tools that write them.

Add a key only if transformers gives the same logits with and without it, and no other program gives it a mathematical
meaning: a key ignored by mistake silently gives wrong results. A test reads this table and compares logits. Keys that
are neither here nor read by layouts.py are refused by name.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Keys without influence at any value, by the tools that write them.
_WITHOUT_INFLUENCE = {
    "transformers, what a checkpoint is and where it came from": """
        architectures transformers_version _name_or_path name_or_path _commit_hash tokenizer_class""",
    "transformers, dtypes and implementations of the same maths": """
        dtype torch_dtype _pre_quantization_dtype use_cache attn_implementation _attn_implementation
        _attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled experts_implementation
        _experts_implementation _experts_implementation_internal torchscript use_bfloat16 chunk_size_feed_forward
        pretraining_tp""",
    "transformers, what a call returns": """
        output_attentions _output_attentions output_hidden_states return_dict output_past""",
    "transformers, training": "initializer_range gradient_checkpointing tf_legacy_loss",
    # Only for training, where the user sets dropout.
    "transformers, dropout": """
        attention_dropout residual_dropout attn_pdrop resid_pdrop embd_pdrop hidden_dropout embedding_dropout
        attention_probs_dropout_prob hidden_dropout_prob classifier_dropout""",
    "transformers, token ids": """
        bos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id
        forced_bos_token_id forced_eos_token_id""",
    "transformers, tasks other than language modelling": """
        id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params prefix is_decoder""",
    "transformers 4, settings of generate()": """
        max_length min_length max_new_tokens min_new_tokens max_time do_sample early_stopping num_beams num_beam_groups
        diversity_penalty temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff penalty_alpha
        repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
        bad_words_ids num_return_sequences output_scores return_dict_in_generate remove_invalid_values
        renormalize_logits exponential_decay_length_penalty suppress_tokens begin_suppress_tokens cache_implementation
        num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind
        target_lookbehind""",
    "transformers' and TRL's trainers: noise on embeddings, in training only": "neftune_noise_alpha",
    "transformers.js": "transformers.js_config",
    "Unsloth": "unsloth_fixed unsloth_version",
    "nanotron": "is_llama_config",
    # Length limits; only max_position_embeddings matters here.
    "conversions of the first Llama weights": "max_sequence_length",
    "trainers that keep the tokenizer's limit (FastChat, LLaVA, ms-swift)": """
        model_max_length tokenizer_model_max_length tokenizer_padding_side max_seq_length""",
}

NO_INFLUENCE: frozenset[str] = frozenset(key for keys in _WITHOUT_INFLUENCE.values() for key in keys.split())

# Keys without influence at these values; messages name the first.
HARMLESS_VALUES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "mlp_bias": (False, None),
        "attention_bias": (False, None),
        "sliding_window": (None,),
        "partial_rotary_factor": (1, None),
        "rope_interleaved": (False, None),  # nanotron
        "use_mrope": (False, None),  # Qwen2.5
        "use_sliding_window": (False, None),  # Qwen's key, in a config converted to Llama's
        "is_causal": (True, None),
        "is_encoder_decoder": (False, None),
        "add_cross_attention": (False, None),
        "cross_attention_hidden_size": (None,),
        "tie_encoder_decoder": (False, None),
        "pruned_heads": ({}, None),
        "quantization_config": (None,),
        "load_in_4bit": (False, None),  # bitsandbytes
        "load_in_8bit": (False, None),
        "auto_map": (None,),
    }
)
