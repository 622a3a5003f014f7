"""Common devices by name, with the figures that their manufacturers publish."""

from typing import NamedTuple


class Device(NamedTuple):
    """The performance figures of a device. None where unknown."""

    flops_per_second: float | None
    """The rate of matrix products in the given dtype, without sparsity."""

    bytes_per_second: float | None
    """Memory bandwidth."""

    watts: float | None
    """Maximum power draw."""

    source: str


# flops_per_second is the rate of bfloat16 products with float32 accumulation.
_HALVED = "; its rate is published with sparsity, and halved here"
DEVICES: dict[str, Device] = {
    "a100-40gb": Device(312e12, 1.555e12, 400, "NVIDIA A100 datasheet, SXM4 40GB"),
    "a100-80gb": Device(312e12, 2.039e12, 400, "NVIDIA A100 datasheet, SXM4 80GB"),
    "h100-pcie": Device(756e12, 2.0e12, 350, f"NVIDIA H100 datasheet, PCIe{_HALVED}"),
    "h100-sxm": Device(989e12, 3.35e12, 700, f"NVIDIA H100 datasheet, SXM5{_HALVED}"),
    "h200-sxm": Device(989e12, 4.8e12, 700, f"NVIDIA H200 datasheet, SXM{_HALVED}"),
    "b200": Device(2250e12, 8.0e12, 1000, "NVIDIA Blackwell architecture technical brief, HGX B200"),
    "l4": Device(121e12, 300e9, 72, f"NVIDIA L4 datasheet{_HALVED}"),
    "l40s": Device(362e12, 864e9, 350, "NVIDIA L40S datasheet"),
    "rtx-4090": Device(165.2e12, 1.008e12, 450, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "mi300x": Device(1307.4e12, 5.3e12, 750, "AMD Instinct MI300X datasheet"),
}
