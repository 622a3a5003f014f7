"""The first token of a text, where a tokenizer has another one for it than for the end: <s> text </s>."""

from tokenizers import Tokenizer

from .batches import Batch
from .tokenizer import end_of_text, start_of_text


class TextStart:
    """Puts the first token before the texts of a batch.

    In the stream of tokens an end stands between two texts: what is predicted after one, and what the next begins with.
    A model that came from elsewhere, such as a Llama or a Gemma, was taught to begin with a token of its own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        (_, self._start), (_, self._end) = start_of_text(tokenizer), end_of_text(tokenizer)

    def put_into(self, batch: Batch) -> Batch:
        """The same batch, with the first token in the place of the end that stands before a text."""
        if self._start == self._end:
            return batch
        begins = batch.segment_ids != batch.segment_ids.roll(1, dims=-1)
        begins[..., 0] = True
        # A conversation's template may have put it there by itself.
        first = begins & (batch.token_ids == self._end) & (batch.token_ids.roll(-1, dims=-1) != self._start)
        return batch._replace(token_ids=batch.token_ids.masked_fill(first, self._start))
