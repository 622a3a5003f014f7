import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prenorm.cli.main import main
from prenorm.costs.cluster.hardware import CLUSTERS
from prenorm.costs.cluster.spread_sheet import REACHED

DOCS = Path(__file__).resolve().parents[2] / "docs/how-do-i-lay-out-a-large-model.md"


def sheet(capsys, *argv, code=0):
    assert main(["cost", *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def error_line(capsys, *argv):
    assert main(["cost", *map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_a_layout_the_fastest_one_is_shown(capsys):
    found = sheet(capsys, "llama-3-8b", "--gpus", 8)
    best = found["proposal"][0]
    assert (best["reason"], best["fits"], found["fits"]) == ("", True, True)
    assert found["layout"] == best["layout"]
    assert found["step_seconds"]["total"] == best["step_seconds"]
    assert found["memory_bytes"]["total"] == best["memory_bytes"]
    sizes = found["layout"]
    assert sizes["dp"] * sizes["fsdp"] * sizes["tp"] * sizes["pp"] == 8


def test_a_layout_has_its_memory_traffic_bubble_time_and_mfu(capsys):
    argv = ["llama-3-70b", "--gpus", 128, "--dp", 2, "--tp", 8, "--pp", 8, "--batch", 128, "--micro-batch-size", 1]
    found = sheet(capsys, *argv, "--checkpoint-activations-every", 1, "--pp-stages", 1)
    assert found["layout"] == {"dp": 2, "fsdp": 1, "tp": 8, "pp": 8, "pp_stages": 1}
    assert found["settings"]["micro_batches"] == 64
    assert found["bubble"] == pytest.approx(7 / 71)
    assert {one["axis"]: one["link"] for one in found["links"]} == {"tp": "node", "dp": "network", "pp": "network"}
    assert (
        sum(size for name, size in found["memory_bytes"].items() if name != "total") == found["memory_bytes"]["total"]
    )
    seconds = found["step_seconds"]
    assert found["tokens_per_second"] == pytest.approx(128 * 8192 / seconds["total"])
    assert 0.1 < found["mfu_causal"] < found["mfu_6n_attention"] < 0.6


def test_dp_is_what_the_other_axes_leave_as_in_training(capsys):
    assert sheet(capsys, "llama-3-8b", "--gpus", 8, "--tp", 2, "--fsdp", 2)["layout"]["dp"] == 2


@pytest.mark.long
def test_rates_of_ones_own_and_a_share_of_them_change_the_time(capsys):
    argv = ["llama-3-8b", "--gpus", 8, "--fsdp", 8, "--micro-batch-size", 1]
    usual = sheet(capsys, *argv)
    full = sheet(capsys, *argv, "--utilisation", 1)
    assert usual["step_seconds"]["total"] == pytest.approx(full["step_seconds"]["total"] / REACHED)
    h100 = CLUSTERS["h100-sxm"]
    own = ["--flops", h100.peak_flops / 2, "--bandwidth", h100.memory_bytes_per_second / 2]
    links = ["--node-link", h100.node_bytes_per_second / 2, "--network-link", h100.network_bytes_per_second / 2]
    slow = sheet(capsys, *argv, "--utilisation", 1, *own, *links)
    assert slow["step_seconds"]["products"] == pytest.approx(2 * full["step_seconds"]["products"])
    assert slow["hardware"]["source"].endswith(", and the flags")


def test_a_layout_that_does_not_fit_is_shown_and_is_a_fault(capsys):
    argv = ["llama-3-70b", "--gpus", 8, "--dp", 8]
    assert not sheet(capsys, *argv, code=1)["fits"]
    assert main(["cost", *map(str, argv)]) == 1
    assert "does not fit into the memory of a device" in capsys.readouterr().out


@pytest.mark.long
def test_tables_have_every_group_of_figures(capsys):
    argv = ["llama-3-8b", "--gpus", "16", "--tp", "2", "--pp", "2", "--fsdp", "4", "--batch", "16"]
    assert main(["cost", *argv]) == 0
    text = capsys.readouterr().out
    for part in ("Memory of the fullest device", "gathered", "Collectives of a step", "network", "pipeline bubble"):
        assert part in text
    for part in ("MFU, causal", "tensor parallel", "Layouts that cannot be", "The fastest of", "% slower"):
        assert part in text


@pytest.mark.long
def test_a_published_model_that_is_not_ours_can_be_laid_out(capsys):
    assert sheet(capsys, "gpt3-175b", "--gpus", 64, "--tp", 8, "--pp", 8, "--context", 2048)["layout"]["pp"] == 8


def test_published_runs_stand_beside_their_predictions(capsys):
    assert main(["cost", "--published-runs", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    for run in runs:
        assert run["error"] == pytest.approx(run["predicted_seconds"] / run["published_seconds"] - 1)
    assert main(["cost", "--published-runs"]) == 0
    text = capsys.readouterr().out
    assert all(run["name"] in text and run["source"] in text for run in runs)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpus", "8"], "MODEL is missing"),
        (["gpt2", "--published-runs"], "takes no MODEL, such as 'gpt2'"),
        (["llama-3-8b", "--tp", "8", "--memory", "80GB"], "--tp, --memory: only with --gpus"),
        (["llama-3-8b", "--gpus", "0"], "gpus must be an integer of at least 1, not 0"),
        (["llama-3-8b", "--gpus", "99999999"], "gpus must be at most 1,048,576"),
        (
            ["llama-3-8b", "--gpus", "8", "--dp", "3"],
            r"3 x 1 x 1 x 1 = 3, and there are 8.* The nearest layout that works",
        ),
        (["llama-3-8b", "--gpus", "12", "--tp", "12"], "tp must divide num_heads, but 12 does not divide 32"),
        (["llama-3-8b", "--gpus", "64", "--pp", "64", "--batch", "64"], "pp must be at most num_layers"),
        (["llama-3-8b", "--gpus", "16", "--tp", "16"], "at most a node's 8 devices, but it is 16"),
        (["llama-3-8b", "--gpus", "8", "--batch", "0"], "batch must be an integer of at least 1"),
        (["llama-3-8b", "--gpus", "8", "--dp", "8", "--batch", "12"], "8 does not divide 12"),
        (["llama-3-8b", "--gpus", "8", "--context", "9000"], "9000 is greater than 8192; --context 8192 would do"),
        (["llama-3-8b", "--gpus", "8", "--micro-batch-size", "0"], "micro_batch_size must be an integer of at least 1"),
        (["llama-3-8b", "--gpus", "8", "--checkpoint-activations-every", "-1"], "must be an integer of at least 0"),
        (["llama-3-8b", "--gpus", "8", "--dp", "8", "--pp-stages", "2"], "with pp = 1 it must be 1, not 2"),
        (["llama-3-8b", "--gpus", "8", "--device", "h100"], r"Did you mean h100-sxm\?"),
        (["llama-3-8b", "--gpus", "8", "--dtype", "float32"], "give --flops and --product-flops"),
        (["llama-3-8b", "--gpus", "8", "--memory", "80XB"], "a memory size must be a number of bytes"),
        (["llama-3-8b", "--gpus", "8", "--utilisation", "2"], "utilisation must be at most 1"),
        (["llama-3-8b", "--gpus", "8", "--tokens", "0"], "tokens must be an integer of at least 1"),
        (["llama-3-8b", "--gpus", "8", "--fits", "80GB"], "--memory says what a device has"),
    ],
)
def test_bad_flags_are_one_line(argv, message, capsys):
    assert re.search(message, error_line(capsys, *argv))


def test_it_does_without_torch():
    code = (
        "import sys; from prenorm.cli.main import main\n"
        "assert main(['cost', 'llama-3-8b', '--gpus', '8', '--json']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def doc_commands():
    """The commands of the page, each with what it prints there."""
    blocks = re.findall(r"```sh\n(prenorm cost [^`]*)```\n+```text\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    return blocks


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("command", "printed"), doc_commands())
def test_the_docs_show_what_the_commands_print(command, printed):
    argv = [sys.executable, "-m", "prenorm", *shlex.split(command)[1:]]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = {line.rstrip() for line in done.stdout.splitlines()}
    assert [line for line in printed.splitlines() if line not in lines] == []
