import json

import pytest
import torch
from safetensors.torch import save_file

from prenorm.checkpoint.shards import (
    INDEX,
    WEIGHTS,
    find_weights,
    remove_weights,
    shard_sizes,
    shards_of,
    weight_files,
)
from prenorm.errors import CheckpointError, ConfigError


@pytest.fixture
def sharded(tmp_path):
    """A folder with tensors a and b in one shard and c in another."""
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(1)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 12}, "weight_map": weight_map}))


def test_shards_are_found_through_the_index(sharded):
    files = find_weights(sharded)
    assert {path.name: sorted(header.tensors) for path, header in files.items()} == {
        "one.safetensors": ["a", "b"],
        "two.safetensors": ["c"],
    }


def test_a_single_file_comes_before_an_index(sharded):
    save_file({"d": torch.zeros(1)}, sharded / WEIGHTS)
    assert [path.name for path in find_weights(sharded)] == [WEIGHTS]


def test_all_missing_shards_are_named(sharded):
    (sharded / "one.safetensors").unlink()
    (sharded / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2 of the 2 files that .* lists are missing: one.*, two.*; copy or"):
        find_weights(sharded)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/outside.safetensors", "..", "a/../../b.safetensors"])
def test_a_shard_that_leads_out_of_the_folder_is_refused(sharded, shard):
    save_file({"c": torch.zeros(1)}, sharded.parent / "outside.safetensors")
    write_index(sharded, {"a": "one.safetensors", "b": "one.safetensors", "c": shard})
    with pytest.raises(CheckpointError, match=r"plain file name inside the folder|must be .safetensors files"):
        find_weights(sharded)


def test_a_shard_that_links_out_of_the_folder_is_refused(sharded):
    save_file({"c": torch.zeros(1)}, sharded.parent / "outside.safetensors")
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to(sharded.parent / "outside.safetensors")
    with pytest.raises(CheckpointError, match=r"two.safetensors leads out of its folder"):
        find_weights(sharded)


def test_every_disagreement_of_index_and_shards_is_named(sharded):
    write_index(sharded, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"but b is not in two.safetensors, b in one.safetensors is not listed\."):
        find_weights(sharded)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model-00001-of-00002.safetensors"])
def test_weights_of_another_name_are_named_where_there_are_no_others(tmp_path, name):
    save_file({"a": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"neither is there\. Of other names there are {name}: add"):
        find_weights(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": "pytorch_model.bin"}])
def test_an_index_that_is_none_is_refused(sharded, weight_map):
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=r"index.json: (weight_map must give|shards must be .safetensors files)"):
        find_weights(sharded)


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(
        CheckpointError, match=r"there is only pytorch_model.bin. Such files are pickles, which run code"
    ):
        find_weights(tmp_path)


def test_a_folder_without_weights_says_what_they_are_called(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"weights must be in model.safetensors or listed in model.safetensors.ind"
    ):
        find_weights(tmp_path)


def test_shards_of_an_earlier_save_are_removed_and_nothing_else(sharded):
    save_file({"d": torch.zeros(1)}, sharded / WEIGHTS)
    (sharded / "tokenizer.json").write_text("{}")
    remove_weights(sharded, weight_files(sharded) - {WEIGHTS})
    assert sorted(path.name for path in sharded.iterdir()) == [WEIGHTS, "tokenizer.json"]
    remove_weights(sharded, weight_files(sharded) - {WEIGHTS})


def test_an_index_that_lists_the_single_file_does_not_cost_it(sharded):
    save_file({"a": torch.zeros(1)}, sharded / WEIGHTS)
    write_index(sharded, {"a": WEIGHTS})
    remove_weights(sharded, weight_files(sharded) - {WEIGHTS})
    assert (sharded / WEIGHTS).exists()


def test_nothing_outside_the_folder_is_ever_removed(sharded):
    (sharded.parent / "outside.safetensors").write_bytes(b"")
    write_index(sharded, {"a": "../outside.safetensors", "b": "one.safetensors"})
    remove_weights(sharded, weight_files(sharded) - {WEIGHTS})
    assert (sharded.parent / "outside.safetensors").exists()
    assert (sharded / "one.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "size"),
    [(None, None), (8, 8), ("5GB", 5 * 10**9), ("1.5 KB", 1500), ("2MiB", 2**21), ("100", 100), ("1tb", 10**12)],
)
def test_sizes_of_shards_are_numbers_or_texts(given, size):
    assert shard_sizes(given) == size


@pytest.mark.parametrize("given", [0, -1, "", "5XB", "GB", "-5GB", True, "0GB", "1e9"])
def test_what_is_no_size_is_refused(given):
    with pytest.raises(ConfigError, match="max_shard_size must be a number of bytes or a text such as"):
        shard_sizes(given)


def test_tensors_fill_shards_in_order_and_a_larger_one_has_its_own():
    sizes = {"a": 4, "b": 4, "c": 20, "d": 2, "e": 8}
    names = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert shards_of(sizes, 10) == dict(zip(names, (["a", "b"], ["c"], ["d", "e"]), strict=True))
    assert shards_of(sizes, None) == shards_of(sizes, 38) == {WEIGHTS: list("abcde")}
    assert shards_of({}, 10) == {WEIGHTS: []}
