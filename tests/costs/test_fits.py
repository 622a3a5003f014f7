import pytest

from prenorm import ModelConfig
from prenorm.costs.architecture import architecture_of
from prenorm.costs.fits import fits, parse_bytes
from prenorm.costs.memory import decoding, peak
from prenorm.errors import ConfigError

GPT2 = architecture_of(ModelConfig.preset("gpt2"))


def test_the_largest_batch_and_context_fit_and_the_next_ones_do_not():
    memory = 4 * 10**9
    found = fits(GPT2, memory, 3, 512, "bfloat16")
    for optimizer, modes in found["training"].items():
        for every, largest in enumerate(modes.values()):
            options = {"dtype": "bfloat16", "optimizer": optimizer, "every": every}
            batch, context = largest["batch"], largest["context"]
            assert peak(GPT2, batch, 512, **options) <= memory < peak(GPT2, batch + 1, 512, **options)
            assert peak(GPT2, 3, context, **options) <= memory
            assert context == GPT2.max_seq_len or memory < peak(GPT2, 3, context + 1, **options)
    batch = found["decoding"]["batch"]
    assert decoding(GPT2, batch, 512, "bfloat16") <= memory < decoding(GPT2, batch + 1, 512, "bfloat16")
    assert found["decoding"]["context"] == GPT2.max_seq_len


def test_nothing_fits_into_less_than_the_weights():
    found = fits(GPT2, 10**8, 1, 512, "float32")
    assert found["decoding"] == {"batch": 0, "context": 0}
    assert found["training"]["adamw"]["checkpointed"] == {"batch": 0, "context": 0}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("24GB", 24 * 10**9), ("80 GiB", 80 * 2**30), ("1.5tb", 15 * 10**11), ("7B", 7), ("512MiB", 2**29)],
        *[
            ("24G", 24 * 10**9),
            ("24Gi", 24 * 2**30),
            ("24000000000", 24 * 10**9),
            (" 24e9 ", 24 * 10**9),
            ("0.1kB", 100),
        ],
    ],
)
def test_a_memory_is_bytes_or_a_number_and_a_unit(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "0GB", "0", "24 XB", "24GBs", "nan GB", "inf", "9" * 400 + "GB", "1e99"]
)
def test_an_invalid_memory_size_is_refused(text):
    with pytest.raises(ConfigError, match="a memory size must"):
        parse_bytes(text)
