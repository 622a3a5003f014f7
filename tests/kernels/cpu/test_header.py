import ctypes
import struct

import pytest

from prenorm import KernelError
from prenorm.kernels.cpu import header, native

HEADER = """
constexpr int64_t MOST = 12;  // a comment; with a semicolon
struct Inner {
    const void *a, *b;
};
struct Outer {
    double eps;  // int64_t commented;
    Inner inner;
    const float *c;
    int64_t strides[3], n;
};
"""


def test_a_header_is_read_field_by_field():
    structs, constants = header.read(HEADER)
    assert constants == {"MOST": 12}
    assert [tuple(field) for field in structs["Outer"]] == [
        ("eps", "d", False),
        ("inner_a", "P", False),
        ("inner_b", "P", False),
        ("c", "P", False),
        ("strides", "3q", True),
        ("n", "q", False),
    ]


@pytest.mark.parametrize("line", ["int n", "int64_t n[2][2]", "int64_t"])
def test_what_cannot_be_read_is_no_guess(line):
    with pytest.raises((AssertionError, KeyError)):
        header.read(f"struct Wrong {{\n    {line};\n}};\n")


def test_a_call_is_packed_by_name(monkeypatch):
    monkeypatch.setitem(header.STRUCTS, "Outer", header.read(HEADER)[0]["Outer"])
    pack = header.packer("Outer")
    packed = pack(n=7, strides=(4, 5, 6), c=3, inner_b=2, inner_a=1, eps=0.5)
    assert packed == struct.pack("d3P3qq", 0.5, 1, 2, 3, 4, 5, 6, 7)
    assert header.packed_size("Outer") == len(packed) == 64
    with pytest.raises(TypeError, match="missing"):
        pack(n=7, strides=(4, 5, 6), c=3, inner_b=2, inner_a=1)
    with pytest.raises(struct.error):
        pack(n=7, strides=(4, 5), c=3, inner_b=2, inner_a=1, eps=0.5)


@pytest.mark.skipif(bool(native.unavailable_reason()), reason="this machine has no C++ compiler")
def test_a_library_whose_structs_differ_is_refused(monkeypatch):
    library = native.load().library
    assert native._agreed(library) is library
    fields = (*header.STRUCTS["RmsNormCall"], header.Field("more", "q"))
    with monkeypatch.context() as patch:
        patch.setitem(header.STRUCTS, "RmsNormCall", fields)
        with pytest.raises(KernelError, match=r"calls\.h"):
            native._agreed(library)
    monkeypatch.setattr(native, "GROUP", 64)
    with pytest.raises(KernelError, match=r"calls\.h"):
        native._agreed(library)
    assert isinstance(library, ctypes.CDLL)
