"""Models for the catalogue of bad requests.  All but Quick run in a thread, and requests are joined.

A row that begins with -1 … -7 goes wrong in its own way (`_fail`).
"""

import time

import numpy as np


def _fail(first):
    if -1 in first:
        raise ValueError("secret of the model")
    if -2 in first:
        raise MemoryError
    if -3 in first:
        raise RecursionError("secret of the model")


class Table:
    """Sums of rows of four numbers."""

    inputs = [{"name": "features", "datatype": "FP32", "shape": [-1, 4]}]
    outputs = [{"name": "total", "datatype": "FP32", "shape": [-1]}, {"name": "double", "datatype": "FP32", "shape": [-1, 4]}]
    batched = True

    def predict(self, inputs):
        time.sleep(0.004)
        features = inputs["features"]
        first = features[:, 0].tolist()
        _fail(first)
        if -4 in first:
            return {"total": features.sum(axis=1)[1:], "double": features * 2}
        if -5 in first:
            return None
        if -6 in first:
            return {"total": np.array([object()] * len(first)), "double": features * 2}
        if -7 in first:
            return {"total": features.sum(axis=1)}
        return {"total": features.sum(axis=1), "double": features * 2}


class Quick(Table):
    """Quick enough for the event loop, and never wrong."""

    def predict(self, inputs):
        features = inputs["features"]
        return {"total": features.sum(axis=1), "double": features * 2}


class Mixed:
    """One input of every kind, two of them required; `total` is that of `pair` and `count`."""

    inputs = [
        {"name": "pair", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "count", "datatype": "UINT8", "shape": [-1]},
        {"name": "whole", "datatype": "INT64", "shape": [-1], "optional": True},
        {"name": "unsigned", "datatype": "UINT32", "shape": [-1], "optional": True},
        {"name": "word", "datatype": "BYTES", "shape": [-1], "optional": True},
        {"name": "flag", "datatype": "BOOL", "shape": [-1], "optional": True},
        {"name": "half", "datatype": "FP16", "shape": [-1], "optional": True},
    ]
    outputs = [
        {"name": "total", "datatype": "FP32", "shape": [-1]},
        {"name": "raw", "datatype": "BYTES", "shape": [-1]},
        {"name": "small", "datatype": "FP16", "shape": [-1]},
    ]
    batched = True

    def predict(self, inputs):
        time.sleep(0.004)
        total = inputs["pair"].sum(axis=1) + inputs["count"]
        words = inputs["word"] if "word" in inputs else np.array([b"a"] * len(total), object)
        return {"total": total.astype(np.float32), "raw": words, "small": total.astype(np.float16)}
