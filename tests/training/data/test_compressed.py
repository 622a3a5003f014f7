import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from prenorm.errors import DataError
from prenorm.training.data import compressed
from prenorm.training.data.compressed import Damaged, content_suffix, open_plain
from prenorm.training.data.corpus import Corpus

TEXT = "".join(f"line {number} ä\n" for number in range(3000)).encode()
PACKERS: dict[str, Any] = {".gz": gzip.compress, ".zst": zstandard.compress}


def read(path):
    with open_plain(path) as file:
        return file.read()


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_compressed_file_is_read_as_what_is_in_it_also_in_several_parts(tmp_path, suffix):
    pack, path = PACKERS[suffix], tmp_path / f"t.txt{suffix}"
    for content in (pack(TEXT), pack(TEXT[:9000]) + pack(b"") + pack(TEXT[9000:]), pack(TEXT) + bytes(10_000)):
        path.write_bytes(content)
        assert read(path) == TEXT
    for content in (b"", pack(b"")):
        path.write_bytes(content)
        assert read(path) == b""


def test_a_zstandard_file_of_unknown_length_is_read(tmp_path):
    machine = zstandard.ZstdCompressor().compressobj()
    (tmp_path / "t.zst").write_bytes(machine.compress(TEXT) + machine.flush())
    assert read(tmp_path / "t.zst") == TEXT


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_cut_anywhere_or_changed_is_noticed(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    checked = zstandard.ZstdCompressor(write_checksum=True).compress
    whole = {".gz": gzip.compress, ".zst": checked}[suffix](TEXT)
    for end in (1, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(Damaged, match=f"truncated {suffix[1:]}"):
            read(path)
    for place in (0, 20, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(Damaged):
            read(path)
    path.write_bytes(whole + b"tail")
    with pytest.raises(Damaged):
        read(path)


def test_a_small_file_that_would_fill_the_memory_is_read_a_little_at_a_time(tmp_path):
    machine = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    (tmp_path / "t.gz").write_bytes(b"".join([*(machine.compress(zeros) for _ in range(64)), machine.flush()]))
    sizes = [len(chunk) for chunk in compressed._decompressed(tmp_path / "t.gz", compressed._gzip(tmp_path), "gz")]
    assert sum(sizes) == 64 << 20
    assert max(sizes) < 8 << 20


def test_the_format_is_that_of_the_name_within():
    for name, suffix in (("a.jsonl.gz", ".jsonl"), ("a.JSONL.ZST", ".jsonl"), ("b.gz", ""), ("c.txt", ".txt")):
        assert content_suffix(Path(name)) == suffix


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_corpus_reads_compressed_text_and_lines(tmp_path, suffix):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    (tmp_path / f"a.txt{suffix}").write_bytes(PACKERS[suffix](b"text"))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(PACKERS[suffix](lines.encode()))
    (tmp_path / f"c.jsonl{suffix}").write_bytes(PACKERS[suffix](lines.encode() * 9000)[:-9])
    (tmp_path / f"d.tar{suffix}").write_bytes(PACKERS[suffix](b"binary\0"))
    corpus = Corpus([str(tmp_path)])
    found = [(document.name, document.content) for document in corpus]
    assert found[:3] == [
        (f"a.txt{suffix}", "text"),
        (f"b.jsonl{suffix}, line 1", "one"),
        (f"b.jsonl{suffix}, line 2", "two"),
    ]
    assert corpus.skipped == {f"truncated {suffix[1:]}": 1, "binary": 1}
    with pytest.raises(DataError, match=rf"c\.jsonl{suffix} cannot be trained on: it is truncated {suffix[1:]}"):
        list(Corpus([str(tmp_path / f"c.jsonl{suffix}")]))


def test_compressed_parquet_is_skipped_with_the_reason(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "t.parquet", compression="zstd")
    (tmp_path / "t.parquet.gz").write_bytes(gzip.compress((tmp_path / "t.parquet").read_bytes()))
    corpus = Corpus([str(tmp_path)])
    assert [document.content for document in corpus] == ["x"]
    assert corpus.skipped == {"compressed parquet": 1}


def test_without_zstandard_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "t.zst").write_bytes(zstandard.compress(b"x"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"t\.zst needs zstandard: pip install 'prenorm\[data\]'"):
        list(Corpus([str(tmp_path)]))
