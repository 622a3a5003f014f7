"""Text to tokens and back: a byte-level BPE, trained here or read from a file. Any text comes back byte for byte."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ..checkpoint.files import json_content
from ..errors import DataError
from ..generation.text import END_OF_TEXT

# What tokenizers call the token between two texts: ours, then others.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")

# Pieces that a token never crosses: a line's end with the next line's indent, a word or a dotted name with the space
# before it and the bracket after it, up to three digits, a run of signs. Held-out text of Python's library is 3.63
# bytes a token with them and 4,096 tokens, and 3.32 with GPT-2's pieces.
PIECES = r"\n+ *| ?[\p{L}_]+(?:\.[\p{L}_]+)*[(\[:,]*|\p{N}{1,3}| ?[^\s\p{L}\p{N}_]+| +(?!\S)|\s+"

# A longer piece, such as a sequence of DNA on one line, is cut from its start on: training takes time in the square of
# a piece. No piece of Python's library is as long.
MAX_PIECE_CHARACTERS = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: the end of a text, the 256 bytes, and the commonest merges.

    The same texts in the same order give the same tokenizer. Time is linear in the texts, also where a line has no end.
    Source: Sennrich et al. 2016, arXiv:1508.07909; over bytes as in Radford et al. 2019.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{MAX_PIECE_CHARACTERS}}}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _prepared(tokenizer)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, or in a folder with one.

    Raises DataError for one that cannot be read or has no end-of-text token.
    """
    path = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the tokenizer {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # tokenizers raises bare Exceptions for what it cannot parse
        raise DataError(f"the tokenizer {path} is not a tokenizer.json: {error}.") from error
    if all(tokenizer.token_to_id(token) is None for token in ENDS):
        raise DataError(f"the tokenizer {path} must have a token that ends a text, one of {', '.join(ENDS)}.")
    return _prepared(tokenizer)


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that a path leads to: itself, or that in a folder."""
    return path / "tokenizer.json" if path.is_dir() else path


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads the names of special tokens in a text as these tokens, as a chat template writes them."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = False
    return copy


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The names and ids of the tokens that stand for no text."""
    return {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def end_of_text(tokenizer: Tokenizer) -> tuple[str, int]:
    """The token that is put before every text and predicted after it: its name and its id."""
    for token in ENDS:
        if (token_id := tokenizer.token_to_id(token)) is not None:
            return token, token_id
    raise AssertionError("train_tokenizer and load_tokenizer give tokenizers with an end-of-text token")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id: how many rows an embedding needs, also where ids are left out."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, without the end-of-text token, also where a text spells its name.

    Raises DataError for a text that a foreign tokenizer has no tokens for.
    """
    try:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    except Exception as error:  # tokenizers raises nothing narrower
        raise DataError(f"the tokenizer cannot encode this text ({error}); use another one.") from error


def comes_back(tokenizer: Tokenizer, ids: list[int], text: str) -> bool:
    """Whether the tokens of a text are all of it. Always so for a tokenizer that was trained here."""
    return tokenizer.decode(ids, skip_special_tokens=False) == text


def tokenizer_files(tokenizer: Tokenizer, chat: tuple[str, dict[str, str]] | None = None) -> dict[str, bytes]:
    """The files, by name, with which `tokenizers` and Hugging Face's AutoTokenizer open this tokenizer.

    chat: a chat template, and the special tokens that it names.
    """
    end, _ = end_of_text(tokenizer)
    template, tokens = chat or (None, {})
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        **tokens,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": f"{tokenizer.to_str(pretty=True)}\n".encode(),
        "tokenizer_config.json": json_content(config),
        **({"chat_template.jinja": template.encode()} if template is not None else {}),
    }


def _prepared(tokenizer: Tokenizer) -> Tokenizer:
    """Set to what training does: whole texts, each begun by the end-of-text token, whose name is no token in a text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    end, id = end_of_text(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", pair=f"{end} $A {end} $B", special_tokens=[(end, id)]
    )
    return tokenizer
