"""What general-purpose compressors make of the held-out text: the numbers that a model's bits per byte stand beside."""

import lzma
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """The sizes of the held-out documents joined into one file: plain, after `gzip -9`, after `xz -9`."""

    bytes: int
    gzip_bytes: int
    xz_bytes: int

    def bits_per_byte(self, loss: float, num_targets: int) -> float:
        """What a loss (nats per token, over all `num_targets` tokens of the text) is in bits per byte of the text."""
        return loss * num_targets / math.log(2) / self.bytes

    @property
    def gzip_bits_per_byte(self) -> float:
        """The bits that `gzip -9` needs for a byte."""
        return 8 * self.gzip_bytes / self.bytes

    @property
    def xz_bits_per_byte(self) -> float:
        """The bits that `xz -9` needs for a byte."""
        return 8 * self.xz_bytes / self.bytes


class TextMeter:
    """Compresses texts as they go by, and keeps the sizes alone."""

    def __init__(self) -> None:
        self._plain = self._gzip = self._xz = 0
        self._gzip_file = zlib.compressobj(level=9, wbits=31)  # 31: with gzip's header
        self._xz_file = lzma.LZMACompressor(preset=9)

    def metered(self, texts: Iterable[str]) -> Iterator[str]:
        """The same texts."""
        for text in texts:
            raw = text.encode("utf-8")
            self._plain += len(raw)
            self._gzip += len(self._gzip_file.compress(raw))
            self._xz += len(self._xz_file.compress(raw))
            yield text

    def sizes(self) -> HeldOutText:
        """The sizes of all texts so far. Ends the compressed files."""
        self._gzip += len(self._gzip_file.flush())
        self._xz += len(self._xz_file.flush())
        return HeldOutText(bytes=self._plain, gzip_bytes=self._gzip, xz_bytes=self._xz)
