"""Which processor this is: some kernels, and the choice of a library, depend on it."""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

AMD, ZEN_3, ZEN_5 = "AuthenticAMD", 25, 26  # vendor and families; 25 is Zen 4 too, which has AVX-512


def is_zen_3_or_later(vendor: str, family: int) -> bool:
    """Whether kernels that were measured against MKL on Zen 3, 4 and 5 alone are the faster ones here."""
    return vendor == AMD and family >= ZEN_3


def processor() -> tuple[str, int]:
    """Vendor and family (CPUID); ("", 0) if the system does not report them."""
    told = _told()
    if not told:
        words = platform.processor().split()  # Windows: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
        family = words[words.index("Family") + 1] if "Family" in words else "0"
        return (words[-1] if words else "", int(family) if family.isdigit() else 0)
    family = told.get("cpu family", "0")
    return told.get("vendor_id", ""), int(family) if family.isdigit() else 0


def features() -> frozenset[str]:
    """The instruction sets that processor and system support, by Linux's names; empty if it does not report them."""
    told = _told()
    return frozenset(told.get("flags", told.get("Features", "")).split())


@functools.cache
def _told() -> Mapping[str, str]:
    """What Linux reports about the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
