import pytest

from prenorm.costs.cluster.hardware import CLUSTERS, LINK_SHARE, SECONDS_A_HOP, find_cluster
from prenorm.errors import ConfigError

H100 = CLUSTERS["h100-sxm"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_measured_rates_are_below_published_ones_and_all_have_sources(name):
    cluster = CLUSTERS[name]
    assert 0.5 * cluster.peak_flops < cluster.product_flops < cluster.peak_flops
    assert cluster.network_bytes_per_second < cluster.node_bytes_per_second < cluster.memory_bytes_per_second
    assert "Bekman" in cluster.source
    assert "network" in cluster.source


def test_a_group_within_a_node_uses_the_fast_link_and_a_larger_one_the_ports_of_its_devices():
    def rate(size, stride):
        return 1e9 / H100.collective_seconds(size, stride, 1e9, 0) / LINK_SHARE

    assert rate(8, 1) == pytest.approx(H100.node_bytes_per_second)
    assert rate(2, 4) == pytest.approx(H100.node_bytes_per_second)
    assert rate(16, 8) == pytest.approx(H100.network_bytes_per_second)  # one device of each node
    assert rate(16, 4) == pytest.approx(2 * H100.network_bytes_per_second)
    assert rate(16, 1) == pytest.approx(8 * H100.network_bytes_per_second)
    assert rate(2, 16) == pytest.approx(H100.network_bytes_per_second)  # of different nodes


def test_a_group_of_one_takes_no_time_and_every_hop_adds_its_own():
    assert H100.collective_seconds(1, 1, 1e9, 7) == 0
    assert H100.collective_seconds(4, 1, 0.0, 3) == pytest.approx(3 * SECONDS_A_HOP)


def test_figures_of_ones_own_replace_the_devices_and_the_source_says_so():
    mine = find_cluster("H100-SXM", memory=96 * 10**9, node=4)
    assert (mine.memory, mine.node, mine.peak_flops) == (96 * 10**9, 4, H100.peak_flops)
    assert mine.source == f"{H100.source}, and the flags"
    assert find_cluster("h100-sxm") == H100


def test_the_rate_of_products_scales_with_the_published_one_unless_it_is_given():
    half = find_cluster("h100-sxm", peak_flops=H100.peak_flops / 2)
    assert half.product_flops == pytest.approx(H100.product_flops / 2)
    assert find_cluster("h100-sxm", peak_flops=4e14, product_flops=3e14).product_flops == 3e14


@pytest.mark.parametrize(
    ("name", "figures", "message"),
    [
        ("h100", {}, r"must be one of a100-80gb, .* Did you mean h100-sxm\? Take the nearest"),
        ("h100-sxm", {"node": 0}, "node must be an integer of at least 1, not 0"),
        ("h100-sxm", {"memory_bytes_per_second": float("nan")}, "must be a finite number"),
        ("h100-sxm", {"node_bytes_per_second": -1.0}, "node_bytes_per_second must be at least 1"),
        ("h100-sxm", {"product_flops": 1e15}, "1e.15 is greater than 9.89e.14"),
    ],
)
def test_what_is_no_cluster_is_refused_with_the_way_out(name, figures, message):
    with pytest.raises(ConfigError, match=message):
        find_cluster(name, **figures)
