import json

from prenorm.training.batch_file import write_batch
from prenorm.training.batches import TrainingBatches
from prenorm.training.tokens import prepare_text


def test_the_file_has_each_rows_documents_with_their_text_and_tokens(tiny, tmp_path):
    data = prepare_text(tiny(), tmp_path / "text", lambda _: None)
    stream, tokenizer = data.train, data.tokenizer
    batches = TrainingBatches(stream, batch_size=4, context=16, seed=0)
    step = next(step for step in range(1, 100) if bool((batches.at(step).segment_ids > 0).any()))
    batch, origins = batches.at(step), [batches.documents(step, row) for row in range(4)]
    path = tmp_path / "deep" / "batch.json"
    described = write_batch(path, "spike", batch, origins, tokenizer)
    assert described.startswith(f"{path} ({origins[0][0]}, ")
    written = json.loads(path.read_text())
    assert written["why"] == "spike"
    assert [row["token_ids"] for row in written["rows"]] == batch.token_ids.tolist()
    assert [row["targets"] for row in written["rows"]] == batch.targets.tolist()
    for row, found, segments in zip(written["rows"], origins, batch.segment_ids.tolist(), strict=True):
        assert [(part["document"], part["tokens"]) for part in row["documents"]] == [
            (str(origin), origin.tokens) for origin in found
        ]
        assert [origin.tokens for origin in found] == [segments.count(segment) for segment in dict.fromkeys(segments)]
        assert "".join(part["text"] for part in row["documents"]) == tokenizer.decode(row["token_ids"])
