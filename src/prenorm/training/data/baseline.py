"""What general-purpose compressors make of the held-out text: the numbers that a model's bits per byte stand beside."""

import lzma
import math
import zlib
from dataclasses import dataclass

COMPRESSED_BYTES = 2_000_000  # of the held-out text: `xz -9` takes longer for a byte than all the rest together


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """The sizes of the held-out documents joined into one file: plain, after `gzip -9`, after `xz -9`.

    Of conversations only the replies count. The compressors get the first `sample_bytes` (0: all of them).
    """

    bytes: int
    gzip_bytes: int
    xz_bytes: int
    sample_bytes: int = 0

    def __add__(self, other: "HeldOutText") -> "HeldOutText":
        """The sizes of both texts, compressed apart."""
        return HeldOutText(
            bytes=self.bytes + other.bytes,
            gzip_bytes=self.gzip_bytes + other.gzip_bytes,
            xz_bytes=self.xz_bytes + other.xz_bytes,
            sample_bytes=(self.sample_bytes or self.bytes) + (other.sample_bytes or other.bytes),
        )

    def bits_per_byte(self, loss: float, num_targets: int) -> float:
        """What a loss (nats per token, over all `num_targets` tokens of the text) is in bits per byte of the text."""
        return loss * num_targets / math.log(2) / self.bytes

    @property
    def gzip_bits_per_byte(self) -> float:
        """The bits that `gzip -9` needs for a byte."""
        return 8 * self.gzip_bytes / (self.sample_bytes or self.bytes)

    @property
    def xz_bits_per_byte(self) -> float:
        """The bits that `xz -9` needs for a byte."""
        return 8 * self.xz_bytes / (self.sample_bytes or self.bytes)


class TextMeter:
    """Compresses the start of a text as it goes by, and keeps the sizes alone."""

    def __init__(self) -> None:
        self._plain = self._sample = self._gzip = self._xz = 0
        self._gzip_file = zlib.compressobj(level=9, wbits=31)  # 31: with gzip's header
        # A dictionary of more than the text would make no byte fewer, and take 600 MB of memory.
        self._xz_file = lzma.LZMACompressor(filters=[{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 21}])

    def add(self, text: str) -> None:
        """The next part of the text."""
        raw = text.encode("utf-8")
        self._plain += len(raw)
        if sample := raw[: COMPRESSED_BYTES - self._sample]:
            self._sample += len(sample)
            self._gzip += len(self._gzip_file.compress(sample))
            self._xz += len(self._xz_file.compress(sample))

    def sizes(self) -> HeldOutText:
        """The sizes so far. Ends the compressed files."""
        self._gzip += len(self._gzip_file.flush())
        self._xz += len(self._xz_file.flush())
        return HeldOutText(bytes=self._plain, gzip_bytes=self._gzip, xz_bytes=self._xz, sample_bytes=self._sample)
