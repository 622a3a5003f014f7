import json

from prenorm.training.batch_file import write_batch
from prenorm.training.batches import TrainingBatches
from prenorm.training.tokens import prepare_text


def test_the_file_has_each_rows_documents_with_their_text_and_tokens(tiny, tmp_path):
    data = prepare_text(tiny(), tmp_path / "text", lambda _: None)
    stream, tokenizer = data.train, data.tokenizer
    batches = TrainingBatches(stream, batch_size=4, context=16, seed=0)
    step = next(step for step in range(1, 100) if bool((batches.at(step).segment_ids > 0).any()))
    batch, places = batches.at(step), batches.places(step)
    write_batch(tmp_path / "deep" / "batch.json", batch, places, stream, tokenizer, "spike")
    written = json.loads((tmp_path / "deep" / "batch.json").read_text())
    assert written["why"] == "spike"
    assert [row["token_ids"] for row in written["rows"]] == batch.token_ids.tolist()
    assert [row["targets"] for row in written["rows"]] == batch.targets.tolist()
    for row, segments in zip(written["rows"], batch.segment_ids.tolist(), strict=True):
        assert sum(part["tokens"] for part in row["documents"]) == len(row["token_ids"])
        assert len(row["documents"]) == len(set(segments))
        place = 0
        for part in row["documents"]:
            start = int(stream.starts[part["document"]]) + part["first_token"]
            tokens = stream.tokens[start : start + part["tokens"]].tolist()
            assert tokens == row["token_ids"][place : place + part["tokens"]]
            assert part["text"] == tokenizer.decode(tokens)
            place += part["tokens"]
