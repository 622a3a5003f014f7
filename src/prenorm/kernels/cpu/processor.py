"""Which processor this is: the rules of some kernels go by it, and so does the choice of a library."""

import functools
import platform
from collections.abc import Mapping
from pathlib import Path

AMD, ZEN_4, ZEN_5 = "AuthenticAMD", 25, 26  # vendor and families; 25 is Zen 3 too, which has no AVX-512


def processor() -> tuple[str, int]:
    """Vendor and family, as the processor tells them (CPUID); ("", 0) where the system does not say."""
    told = _told()
    if not told:
        words = platform.processor().split()  # Windows: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
        family = words[words.index("Family") + 1] if "Family" in words else "0"
        return (words[-1] if words else "", int(family) if family.isdigit() else 0)
    family = told.get("cpu family", "0")
    return told.get("vendor_id", ""), int(family) if family.isdigit() else 0


def features() -> frozenset[str]:
    """The instructions that processor and system both have, as Linux names them; empty where it does not say."""
    told = _told()
    return frozenset(told.get("flags", told.get("Features", "")).split())


@functools.cache
def _told() -> Mapping[str, str]:
    """What Linux says of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
