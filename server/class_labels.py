"""Names of a model's classes, for clients that ask for the best few of them by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# A name a line, in the model's folder or beside its file.
FILE = "labels.txt"
_LARGEST = 1 << 20


class ClassLabels(NamedTuple):
    """`every` are those of any output that has as many classes, where `by_output` has none for it."""

    every: tuple[str, ...] = ()
    by_output: Mapping[str, tuple[str, ...]] = {}
    # whether they are from the file
    in_file: bool = False

    def of(self, output: str, count: int | None) -> tuple[str, ...]:
        """The names of an output's classes, of which there are so many; empty where they have none."""
        found = self.by_output.get(output, self.every)
        return found if len(found) == count else ()


def class_labels_of(path: Path, facts: Mapping[str, str]) -> ClassLabels:
    """From a file beside the model, else from the `classes` among its facts.  ValueError where the file is not text."""
    file = (path if path.is_dir() else path.parent) / FILE
    if file.is_file() and file.stat().st_size <= _LARGEST:
        return ClassLabels(tuple(line.strip() for line in file.read_text("utf-8").splitlines()), in_file=True)
    classes: Any = json.loads(facts.get("classes", "[]"))
    if isinstance(classes, dict):
        return ClassLabels(by_output={str(output): tuple(map(str, names)) for output, names in classes.items()})
    # of several outputs' lists nothing says which is whose
    return ClassLabels(() if any(isinstance(one, list) for one in classes) else tuple(map(str, classes)))
