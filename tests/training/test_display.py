import pytest

from prenorm.training.display import Display, _news, clock


def records(numbers):
    known = {"tokens_per_second": 1234.5, "mfu_causal": 0.412, "mfu_6n_attention": 0.448}
    return [{"step": step, "loss": 1 / step, **known} for step in numbers]


def report_all(display, *, line_seconds):
    with display.steps(done=10, total=14, line_seconds=line_seconds) as report:
        for record in records([11, 12, 13, 14]):
            report(record)


def test_without_a_terminal_there_are_plain_lines_of_which_the_first_and_last_always(capsys):
    report_all(Display(), line_seconds=1000.0)
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 11 of 14: loss 0.091, 1,234 tokens/s, MFU 41% (6N + attention: 45%)"
    assert last == "step 14 of 14: loss 0.071, 1,234 tokens/s, MFU 41% (6N + attention: 45%), 0:00 left"
    report_all(Display(), line_seconds=0.0)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_terminal_has_a_bar_with_loss_speed_and_time_left(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    report_all(Display(), line_seconds=0.0)
    text = capsys.readouterr().out
    for part in ("━", "14/14", "loss 0.071, 1,234 tokens/s", "left"):
        assert part in text
    assert "step 14" not in text


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_tracking_gives_every_item(capsys, monkeypatch, terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    assert list(Display().track(range(5), 5, "counting")) == [0, 1, 2, 3, 4]
    assert "counting" in capsys.readouterr().out


def test_with_json_standard_output_is_left_alone(capsys):
    display = Display(json=True)
    display.say("[bold] is printed as it is")
    display.table("title", [("name", "1.5")])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold] is printed as it is" in captured.err
    assert "1.5" in captured.err


def test_long_lines_are_not_broken_where_there_is_no_terminal(capsys):
    Display().say("word " * 100)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_durations_read_as_on_a_clock():
    assert [clock(seconds) for seconds in (0.0, 59.6, 247.0, 3723.0)] == ["0:00", "1:00", "4:07", "1:02:03"]


def test_a_model_without_an_account_of_its_operations_shows_no_utilisation():
    assert _news({"loss": 0.25, "tokens_per_second": 1234.0}) == "loss 0.250, 1,234 tokens/s"


def test_a_step_that_was_skipped_says_so_and_why(capsys):
    assert _news({"skipped": "overflow", "loss": 0.25, "tokens_per_second": 9.0}) == "skipped (overflow), 9 tokens/s"


def test_the_loss_of_averaged_weights_stands_beside_that_of_the_weights(capsys):
    record = {"step": 7, "eval_loss": 2.0, "eval_bits_per_byte": 1.5}
    Display().evaluation(record)
    Display().evaluation(record | {"ema_eval_loss": 1.75, "ema_eval_bits_per_byte": 1.25})
    plain, averaged = capsys.readouterr().out.splitlines()
    assert averaged == f"{plain}; averaged weights 1.750"
