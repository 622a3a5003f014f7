import pytest

from prenorm.kernels.cpu import processor as kernel


@pytest.fixture(autouse=True)
def told_anew():
    kernel._told.cache_clear()
    yield
    kernel._told.cache_clear()


def told(monkeypatch, tmp_path, cpuinfo):
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(kernel, "Path", lambda path: tmp_path / "cpuinfo")


def test_the_processor_is_what_the_system_says(tmp_path, monkeypatch):
    assert isinstance(kernel.processor()[1], int)
    kernel._told.cache_clear()
    monkeypatch.setattr(kernel, "Path", lambda path: tmp_path / "nothing")
    monkeypatch.setattr("platform.processor", lambda: "AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD")
    assert kernel.processor() == ("AuthenticAMD", 26)
    assert kernel.features() == frozenset()
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert kernel.processor() == ("arm", 0)


def test_features_are_those_of_the_first_processor_listed(tmp_path, monkeypatch):
    told(
        monkeypatch,
        tmp_path,
        "processor\t: 0\nvendor_id\t: Ours\ncpu family\t: 7\nflags\t\t: fpu avx2\n\nflags : none\n",
    )
    assert kernel.features() == {"fpu", "avx2"}
    assert kernel.processor() == ("Ours", 7)


def test_arm_calls_its_flags_features(tmp_path, monkeypatch):
    told(monkeypatch, tmp_path, "processor\t: 0\nFeatures\t: fp asimd\n")
    assert kernel.features() == {"fp", "asimd"}
    assert kernel.processor() == ("", 0)
