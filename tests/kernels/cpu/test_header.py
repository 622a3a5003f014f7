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
    const float
        *c;
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


@pytest.fixture
def outer(monkeypatch):
    monkeypatch.setitem(header.STRUCTS, "Outer", header.read(HEADER)[0]["Outer"])


def test_a_call_is_packed_by_name(outer):
    pack = header.packer("Outer")
    packed = pack(n=7, strides=(4, 5, 6), c=3, inner_b=2, inner_a=1, eps=0.5)
    assert packed == struct.pack("d3P3qq", 0.5, 1, 2, 3, 4, 5, 6, 7)
    assert header.layout("Outer").size == len(packed) == 64
    with pytest.raises(TypeError, match="missing"):
        pack(n=7, strides=(4, 5, 6), c=3, inner_b=2, inner_a=1)
    with pytest.raises(struct.error):
        pack(n=7, strides=(4, 5), c=3, inner_b=2, inner_a=1, eps=0.5)


def given(fields, **known):
    return header.compiled("Outer", "call({fields})", "return pack({values})", known, fields.split())


def test_a_call_hands_over_its_fields_in_an_order_of_its_own_and_other_pointers_are_null(outer):
    call = given("strides c inner_b eps", n=lambda: 7)
    assert call((4, 5, 6), 3, 2, 0.5) == struct.pack("d3P3qq", 0.5, 0, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [("eps strides", "n"), ("strides n", "eps"), ("eps n c", "strides"), ("eps strides n inner", "inner")],
)
def test_a_call_that_calls_h_does_not_have_is_refused_at_import(outer, fields, wrong):
    with pytest.raises(AssertionError, match=f"do not agree on {wrong}$"):
        given(fields)


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
