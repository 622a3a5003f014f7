from prenorm.kernels.cpu import processor as kernel


def test_the_processor_is_what_the_system_says(tmp_path, monkeypatch):
    assert isinstance(kernel.processor()[1], int)
    monkeypatch.setattr(kernel, "Path", lambda path: tmp_path / "nothing")
    monkeypatch.setattr(kernel.platform, "processor", lambda: "AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD")
    assert kernel.processor() == ("AuthenticAMD", 26)
    monkeypatch.setattr(kernel.platform, "processor", lambda: "arm")
    assert kernel.processor() == ("arm", 0)
