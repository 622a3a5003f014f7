"""Which processor this is: the rules of some kernels go by it."""

import platform
from pathlib import Path

AMD, ZEN_4, ZEN_5 = "AuthenticAMD", 25, 26  # vendor and families; 25 is Zen 3 too, which has no AVX-512


def processor() -> tuple[str, int]:
    """Vendor and family, as the processor tells them (CPUID); ("", 0) where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        words = platform.processor().split()  # Windows: "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"
        family = words[words.index("Family") + 1] if "Family" in words else "0"
        return (words[-1] if words else "", int(family) if family.isdigit() else 0)
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    family = told.get("cpu family", "0")
    return told.get("vendor_id", ""), int(family) if family.isdigit() else 0
