"""A model that is only Python: how friendly a text sounds, by a word list and a rule for "not".

serve run examples/python/model.py
"""

import re
from pathlib import Path

import numpy as np

from server.errors import InvalidInput

NEGATIONS = {"not", "no", "never", "hardly", "isn't", "wasn't", "don't"}


class Sentiment:
    inputs = ({"name": "text", "datatype": "BYTES", "shape": [-1]},)
    outputs = (
        {"name": "score", "datatype": "FP32", "shape": [-1]},
        {"name": "words", "datatype": "INT64", "shape": [-1]},
    )
    # each text is scored by itself, so the server may join the texts of several requests
    batched = True

    def load(self, folder: Path) -> None:
        """Read the word list beside this file: a word, a tab, and a weight from -3 to 3 on each line."""
        lines = (folder / "lexicon.tsv").read_text(encoding="utf-8").splitlines()
        self.weights = {word: float(weight) for word, weight in (line.split("\t") for line in lines)}

    def predict(self, inputs: dict[str, np.ndarray]) -> dict[str, list]:
        texts = [self._words(text) for text in inputs["text"]]
        return {"score": [self._score(words) for words in texts], "words": [len(words) for words in texts]}

    def sample(self, rows: int) -> dict[str, list[str]]:
        texts = ["What a lovely day", "the service was not good", "It arrived on Monday", "an awful, awful film"]
        return {"text": [texts[i % len(texts)] for i in range(rows)]}

    def _words(self, text: bytes) -> list[str]:
        try:
            return re.findall(r"[\w']+", text.decode("utf-8").lower())
        except UnicodeDecodeError as error:
            raise InvalidInput(f"text is not UTF-8: {error.reason} at byte {error.start}") from error

    def _score(self, words: list[str]) -> float:
        """The mean weight of the words that have one, between -1 and 1; a word after a negation counts the other way."""
        pairs = zip(["", *words], words, strict=False)
        weights = [self.weights[word] * (-1 if before in NEGATIONS else 1) for before, word in pairs if word in self.weights]
        return sum(weights) / len(weights) / 3 if weights else 0.0
