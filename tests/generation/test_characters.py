import itertools
import random
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models

from prenorm.generation import characters
from prenorm.generation.characters import characters_of

# One byte of each kind that UTF-8 tells apart: ASCII; continuations below 0x90, below 0xA0 and above; bytes that never
# stand in it; the first bytes of characters of two, three and four, with those whose second byte has a smaller range.
KINDS = bytes.fromhex("61 80 90 BF C0 C3 E0 E4 ED EF F0 F1 F4 FF")
END = "<|end|>"
SPACES = decoders.Replace("▁", " ")
FALLBACK = decoders.ByteFallback()
CHAIN: dict[str, Any] = {
    "fallback": [SPACES, FALLBACK, decoders.Fuse()],
    "fallback, not fused": [SPACES, FALLBACK],
    "fallback, first space stripped": [SPACES, FALLBACK, decoders.Fuse(), decoders.Strip(" ", 1, 0)],
    "fallback, two spaces stripped": [SPACES, FALLBACK, decoders.Fuse(), decoders.Strip(" ", 2, 0)],
    "fallback, every token stripped": [FALLBACK, decoders.Strip("▁", 1, 0)],
    "fallback, metaspace": [FALLBACK, decoders.Metaspace()],
    "metaspace": [decoders.Metaspace()],
    "word pieces": [decoders.WordPiece()],
    "ends of words": [decoders.BPEDecoder()],
    "CTC": [decoders.CTC()],
    "fused, then replaced": [decoders.Fuse(), decoders.Replace(Regex(" +a"), "b")],
    "replaced before bytes": [decoders.Replace("<0x61>", "b"), FALLBACK],
}


class Upper:
    """A custom decoder in Python."""

    def decode_chain(self, tokens):
        return [token.upper() for token in tokens]


def byte_level():
    letters = [letter for letter, _ in sorted(characters._BYTES.items(), key=lambda one: one[1])]
    tokens = [*letters, "ab", "Ġa", "Ã©", "½łä", "Ā"]  # ½łä: the end of one character and the beginning of the next
    return built(tokens, decoders.ByteLevel(), ["…é"])


def other(name):
    words = ["▁", "▁a", "b", "\ufffd", "##b", ".", "n't", "a</w>", "</w>", "<pad>", "|", "'", "▁▁▁", " ", "do not"]
    chain = CHAIN[name]
    decoder = decoders.Sequence(chain) if len(chain) > 1 else chain[0]
    return built([*(f"<0x{byte:02X}>" for byte in range(256)), *words], decoder, ["…é"])


def built(tokens, decoder, added):
    """A tokenizer in which the ids 0 to 255 are the bytes, and the last id but one is special."""
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=tokens[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    tokenizer.add_tokens([AddedToken(one, special=False) for one in added])
    tokenizer.add_special_tokens([END])
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(),
    **{name: other(name) for name in CHAIN},
    "nothing": built([*map(chr, range(0x100, 0x200)), "a", "b"], None, []),
    "in Python": built([*map(chr, range(0x100, 0x200)), "a", "b"], decoders.Decoder.custom(Upper()), []),
    "byte level, fused": built(
        list(characters._BYTES), decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]), ["…"]
    ),
}


def written(begin, prompt, ids):
    reply = begin(prompt)
    return [*map(reply.take, ids), reply.finish()]


def assert_same(tokenizer, prompt, sequences):
    begin, start = characters_of(tokenizer), len(tokenizer.decode(prompt))
    for ids in sequences:
        assert "".join(written(begin, prompt, ids)) == tokenizer.decode([*prompt, *ids])[start:], (prompt, ids)


def sweep(tokenizer, count, seed):
    """`count` sequences of up to 12 tokens: mostly bytes of every kind, also those of characters and of U+FFFD."""
    draw = random.Random(seed)
    characters = [list(text.encode()) for text in ("\ufffd", "é", "世", "🙂", " ", "a", "\n")]
    prompts = [[], [97, 257], [256], [256, 257], [tokenizer.token_to_id(END)]]
    for prompt in prompts:
        sequences = []
        for _ in range(count // len(prompts)):
            ids = []
            while len(ids) < draw.randint(1, 12):
                choice = draw.random()
                if choice < 0.4:
                    ids.append(draw.choice(KINDS))
                elif choice < 0.7:
                    ids += draw.choice(characters)
                elif choice < 0.95:
                    ids.append(draw.randrange(256, tokenizer.get_vocab_size() + 1))  # the last one is not a token
                else:
                    ids.append(tokenizer.token_to_id(END))
            sequences.append(ids[:12])
        assert_same(tokenizer, prompt, sequences)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["byte level", "fallback"])
def test_pieces_are_what_is_decoded_at_once_for_every_sequence_of_up_to_four_kinds_of_bytes(name):
    for length in range(5):
        assert_same(TOKENIZERS[name], [97, 257], itertools.product(KINDS, repeat=length))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_what_is_decoded_at_once(name):
    sweep(TOKENIZERS[name], 3000, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENIZERS)
def test_pieces_are_what_is_decoded_at_once_for_a_hundred_thousand_sequences(name):
    for length in range(5):
        assert_same(TOKENIZERS[name], [], itertools.product(KINDS, repeat=length))
    sweep(TOKENIZERS[name], 100_000, seed=1)


LATIN, CHINESE, STRAY, WORD = [0xC3, 0xA9], [0xE4, 0xB8, 0x96], [0xE5], [257]


@pytest.mark.parametrize(
    ("name", "ids", "pieces"),
    [
        ("byte level", LATIN + CHINESE, ["", "é", "", "", "世", ""]),
        ("byte level", [*b"\xef\xbf\xbd", 97], ["", "", "\ufffd", "a", ""]),
        ("byte level", STRAY + STRAY, ["", "\ufffd", "\ufffd"]),
        ("fallback", LATIN + WORD, ["", "", "é a", ""]),
        ("fallback", LATIN + LATIN, ["", "", "", "", "éé"]),
        ("fallback", LATIN + STRAY + WORD, ["", "", "", "\ufffd\ufffd\ufffd a", ""]),
        ("fallback", LATIN + STRAY + STRAY + LATIN + WORD, ["", "", "", "\ufffd" * 4, "\ufffd", "\ufffd", " a", ""]),
        ("fallback, first space stripped", WORD + WORD, ["a", " a", ""]),
        ("word pieces", [258, 260], ["b", "b", ""]),
        ("fused, then replaced", WORD + WORD, ["", "", "▁a▁a"]),
    ],
)
def test_a_piece_is_given_as_soon_as_no_later_token_can_change_it(name, ids, pieces):
    assert written(characters_of(TOKENIZERS[name]), [], ids) == pieces


def test_a_run_of_bytes_goes_on_from_the_character_that_ends_the_prompt():
    begin = characters_of(TOKENIZERS["fallback, first space stripped"])
    assert "".join(written(begin, CHINESE, [*CHINESE, 32, *CHINESE])) == "世 世"
    assert "".join(written(begin, CHINESE, [32, *CHINESE])) == " 世"
    assert "".join(written(begin, CHINESE, STRAY)) == "\ufffd"


@pytest.mark.long
def test_what_waits_is_bounded():
    bytes_of_characters = [*"\ufffd".encode() * 2000]
    reply = characters_of(TOKENIZERS["byte level"])([])
    assert sum(map(len, map(reply.take, bytes_of_characters))) == 2000
    for name in ("fallback", "fallback, not fused", "metaspace", "CTC"):
        for ids in (bytes_of_characters, [0x80] * 6000, [*STRAY, 0x41] * 3000, WORD * 6000):
            held: Any = characters_of(TOKENIZERS[name])([256, *ids])
            for token in ids:
                held.take(token)
                assert len(held._run) <= characters.MOST_WAITING + 2
                assert len(held._context) <= characters.CONTEXT + 3


def test_a_long_run_of_bytes_is_given_before_it_ends_and_stays_as_it_was_given():
    reply, known = characters_of(TOKENIZERS["fallback"])([]), 3 * (characters.MOST_WAITING // 3 + 1)
    pieces = [reply.take(token) for token in CHINESE * 1000]
    assert pieces.index("世" * (known // 3)) == known - 1
    text = "".join(pieces) + reply.take(STRAY[0]) + reply.take(257)
    assert text == "世" * (known // 3 * (3000 // known)) + "\ufffd" * (3000 % known + 1) + " a"
