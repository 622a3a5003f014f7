import gzip
import lzma
import math

import pytest

from prenorm.training.data import baseline
from prenorm.training.data.baseline import HeldOutText, TextMeter

from ..conftest import text_of


def test_the_sizes_are_those_of_the_texts_joined_and_compressed():
    texts = [text_of(seed, 300) for seed in range(4)]
    meter = TextMeter()
    for text in texts:
        meter.add(text)
    joined = "".join(texts).encode()
    sizes = meter.sizes()
    assert sizes.bytes == len(joined)
    assert sizes.gzip_bytes == len(gzip.compress(joined, 9))
    assert sizes.xz_bytes == len(lzma.compress(joined, preset=9))


def test_the_compressors_get_the_start_of_a_long_text(monkeypatch):
    monkeypatch.setattr(baseline, "COMPRESSED_BYTES", 1000)
    text, meter = text_of(0, 900), TextMeter()
    for start in range(0, len(text), 300):
        meter.add(text[start : start + 300])
    sizes, raw = meter.sizes(), text.encode()
    assert (sizes.bytes, sizes.sample_bytes) == (len(raw), 1000)
    assert sizes.gzip_bits_per_byte == 8 * len(gzip.compress(raw[:1000], 9)) / 1000


def test_two_texts_are_compressed_apart():
    one, other = HeldOutText(bytes=100, gzip_bytes=25, xz_bytes=20), HeldOutText(bytes=100, gzip_bytes=75, xz_bytes=80)
    both = one + other
    assert (both.gzip_bits_per_byte, both.xz_bits_per_byte) == (4.0, 4.0)
    assert both.bits_per_byte(math.log(256), 200) == pytest.approx(8.0)


def test_bits_per_byte_are_the_texts_nats_in_bits_over_its_bytes():
    sizes = HeldOutText(bytes=100, gzip_bytes=25, xz_bytes=20)
    assert sizes.bits_per_byte(math.log(256), 100) == pytest.approx(8.0)  # every byte a token, all equally likely
    assert sizes.gzip_bits_per_byte == 2.0
    assert sizes.xz_bits_per_byte == 1.6
