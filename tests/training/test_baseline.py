import gzip
import lzma
import math

import pytest

from prenorm.training.baseline import HeldOutText, TextMeter

from .conftest import text_of


def test_the_sizes_are_those_of_the_texts_joined_and_compressed():
    texts = [text_of(seed, 300) for seed in range(4)]
    meter = TextMeter()
    assert list(meter.metered(texts)) == texts
    joined = "".join(texts).encode()
    sizes = meter.sizes()
    assert sizes.bytes == len(joined)
    assert sizes.gzip_bytes == len(gzip.compress(joined, 9))
    assert sizes.xz_bytes == len(lzma.compress(joined, preset=9))


def test_bits_per_byte_are_the_texts_nats_in_bits_over_its_bytes():
    sizes = HeldOutText(bytes=100, gzip_bytes=25, xz_bytes=20)
    assert sizes.bits_per_byte(math.log(256), 100) == pytest.approx(8.0)  # every byte a token, all equally likely
    assert sizes.gzip_bits_per_byte == 2.0
    assert sizes.xz_bits_per_byte == 1.6
