"""Text to tokens and back: a byte-level BPE, trained here or read from a file. Any text comes back byte for byte."""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ..checkpoint.files import json_content, read_json
from ..errors import DataError
from ..generation.text import END_OF_TEXT

# What tokenizers call the token between two texts, where no file beside them says: ours, then others.
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
    return _prepared(tokenizer, END_OF_TEXT)


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
    ends = (*_end_named_beside(path), *ENDS)
    end = next((token for token in ends if tokenizer.token_to_id(token) is not None), None)
    if end is None:
        raise DataError(
            f"the tokenizer {path} must have a token that ends a text: the eos_token of a tokenizer_config.json beside "
            f"it, or one of {', '.join(ENDS)}."
        )
    return _prepared(tokenizer, end)


def start_of_text(tokenizer: Tokenizer) -> tuple[str, int]:
    """The token that a model sees before every text: its name and its id. Where there is none, that of the end."""
    return _around_texts(tokenizer, "", "")[0]


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
    """The token that is predicted after every text, and stands between two of them: its name and its id."""
    return _around_texts(tokenizer, "", "")[1]


def _around_texts(tokenizer: Tokenizer, text: str, second: str | None = None) -> list[tuple[str, int]]:
    """The tokens that a tokenizer's post-processor puts around texts; `_prepared` has set which."""
    encoding = tokenizer.encode(text, second)
    tokens = zip(encoding.tokens, encoding.ids, encoding.special_tokens_mask, strict=True)
    return [(name, id) for name, id, is_added in tokens if is_added]


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
        "bos_token": start_of_text(tokenizer)[0],
        "eos_token": end,
        **tokens,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": f"{tokenizer.to_str(pretty=True)}\n".encode(),
        "tokenizer_config.json": json_content(config),
        **({"chat_template.jinja": template.encode()} if template is not None else {}),
    }


def _end_named_beside(path: Path) -> list[str]:
    """The eos_token of the tokenizer_config.json beside a tokenizer.json, if there is one that says."""
    config = path.with_name("tokenizer_config.json")
    if not config.is_file():
        return []
    token = read_json(config).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    return [token] if isinstance(token, str) else []


def _prepared(tokenizer: Tokenizer, end: str) -> Tokenizer:
    """Set to what training does: whole texts with their first token, and `end` between two, whose names are none in a
    text. The first token is what the tokenizer puts before a text by itself, or else `end`."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    (start, *_) = [*(name for name, _ in _around_texts(tokenizer, "")), end]
    ids = {token: tokenizer.token_to_id(token) for token in (start, end)}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {end} $B", special_tokens=list(ids.items())
    )
    return tokenizer
