"""Clusters of common devices: memory, links, and the rates that were measured on them, each with its source.

A rate is what one kind of operation reached alone, on the shapes that suit it best. What a whole step reaches is less:
see step_time.py, and published_runs.py for how much less.
"""

from dataclasses import dataclass, replace

from ...errors import ConfigError
from ...validation import check_number, check_size, did_you_mean
from ..devices import DEVICES

# Shares of what manufacturers publish, where nothing else is known of a device.
PRODUCTS_SHARE = 0.803  # bfloat16 products: 794.5 of 989 TFLOP/s on an H100, in BEKMAN
ATTENTION_FORWARD_SHARE = 0.61  # 602 of 989 TFLOP/s on an H100, causal, head_dim 128, 8,192 tokens, in FLASH
ATTENTION_BACKWARD_SHARE = 0.55  # 542 of 989 TFLOP/s, likewise
MEMORY_SHARE = 0.9  # 3.0 of 3.35 TB/s, copying on an H100
LINK_SHARE = 0.8  # 361 of 450 GB/s, all-gather among 8 H200 over NVLink 4, in BEKMAN
SECONDS_A_HOP = 1.5e-6  # a message's way to the next device: 18 us for 32 KiB through the 14 of 8 H200, in BEKMAN
BEKMAN = "Bekman, Machine Learning Engineering, compute/accelerator and network, as of 2026-10"
FLASH = "Shah et al. 2024, arXiv:2407.08608"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Devices of one kind, some to a node, with a fast link within a node and a slower one between nodes."""

    name: str
    peak_flops: float
    """The published rate of bfloat16 products without sparsity, which MFU is a share of."""

    product_flops: float
    """The rate of products that large matrices reach."""

    memory: int
    """Bytes of a device."""

    memory_bytes_per_second: float
    """Published."""

    node: int = 8
    """Devices of a node."""

    node_bytes_per_second: float
    """From a device to others of its node, one way, published."""

    network_bytes_per_second: float = 50e9
    """From a device to other nodes, one way. Default: 400 Gb/s."""

    source: str = ""

    def collective_seconds(self, size: int, stride: int, sent: float, hops: int) -> float:
        """Seconds of a collective in which each of `size` devices, `stride` apart, sends so many bytes.

        Devices of one node use the fast link; a ring through several nodes enters and leaves each over as many network
        ports as the group has devices there, while other groups use those of the other devices.
        """
        if size == 1:
            return 0.0
        rate = self.node_bytes_per_second
        if size * stride > self.node:
            rate = min(rate, max(1, self.node // stride) * self.network_bytes_per_second)
        return sent / (rate * LINK_SHARE) + hops * SECONDS_A_HOP


def _cluster(
    device: str, memory: int, node_link: float, network: float, *, products: float | None = None, sources: str
) -> Cluster:
    published = DEVICES[device]
    assert published.flops_per_second is not None
    assert published.bytes_per_second is not None
    return Cluster(
        name=device,
        peak_flops=published.flops_per_second,
        product_flops=products or published.flops_per_second * PRODUCTS_SHARE,
        memory=memory,
        memory_bytes_per_second=published.bytes_per_second,
        node_bytes_per_second=node_link,
        network_bytes_per_second=network,
        source=f"{published.source}; {sources}",
    )


# Links: NVLink 3, 4 and 5 have 600, 900 and 1,800 GB/s in both directions together. Networks: a port for each device.
_NVLINK = "NVLink from the same; products measured by " + BEKMAN
CLUSTERS: dict[str, Cluster] = {
    "a100-80gb": _cluster(
        "a100-80gb", 80 * 10**9, 300e9, 25e9, products=271.2e12, sources=f"{_NVLINK}; network: 200 Gb/s, as in Selene"
    ),
    "h100-sxm": _cluster(
        "h100-sxm", 80 * 10**9, 450e9, 50e9, products=794.5e12, sources=f"{_NVLINK}; network: 400 Gb/s, as in DGX H100"
    ),
    "h200-sxm": _cluster(
        "h200-sxm", 141 * 10**9, 450e9, 50e9, products=794.5e12, sources=f"{_NVLINK}; network: 400 Gb/s, as in DGX H200"
    ),
    "b200": _cluster(
        "b200", 180 * 10**9, 900e9, 50e9, products=1745e12, sources=f"{_NVLINK}; network: 400 Gb/s, as in DGX B200"
    ),
}


def find_cluster(name: str, **figures: int | float | None) -> Cluster:
    """The cluster of a device by name, with figures of one's own where they are given. Raises ConfigError."""
    known = CLUSTERS.get(name.lower())
    if known is None:
        raise ConfigError(
            f"a cluster's device must be one of {', '.join(CLUSTERS)}, not {name!r}.{did_you_mean(name, CLUSTERS)} "
            "Take the nearest, and give its own --flops, --product-flops, --bandwidth, --memory, --node-link and "
            "--network-link."
        )
    given = {field: figure for field, figure in figures.items() if figure is not None}
    for field, figure in given.items():
        if field in ("node", "memory"):
            check_size(field, int(figure))
        else:
            check_number(field, figure, at_least=1.0)
    if "peak_flops" in given and "product_flops" not in given:
        given["product_flops"] = given["peak_flops"] * known.product_flops / known.peak_flops
    if given.get("product_flops", known.product_flops) > given.get("peak_flops", known.peak_flops):
        raise ConfigError(
            f"product_flops is reached, and so at most flops, the published rate; but {given['product_flops']:g} is "
            f"greater than {given.get('peak_flops', known.peak_flops):g}."
        )
    source = f"{known.source}, and the flags" if given else known.source
    return replace(known, **given, source=source)  # type: ignore[arg-type]  # each by its own field's type
