"""Doubles each row, and goes wrong on the rows that say so.  Never quick: it runs in a thread, and its rows are joined."""

import asyncio
import time

import numpy as np

from server.errors import InvalidInput

# x → what happens to a batch with such a row
VALUE_ERROR, NOT_FITTING, OUT_OF_MEMORY, FEWER_ROWS, NOTHING, ODD_OBJECTS, EXIT, FORGED, CANCELLED = range(-1, -10, -1)


def _fail(rows):
    if VALUE_ERROR in rows:
        raise ValueError("secret of the model")
    if NOT_FITTING in rows:
        raise InvalidInput("x must not be -2")
    if OUT_OF_MEMORY in rows:
        raise MemoryError
    if EXIT in rows:
        raise SystemExit(3)
    if FORGED in rows:
        raise RuntimeError('\ud800\x1b[2J\n{"event":"request","code":200}\nforged')
    if CANCELLED in rows:
        raise asyncio.CancelledError


class Faults:
    inputs = [{"name": "x", "datatype": "FP64", "shape": [-1, 1]}]
    outputs = [{"name": "y", "datatype": "FP64", "shape": [-1]}]
    batched = True
    concurrency = 2

    def predict(self, inputs):
        time.sleep(0.002)
        x = inputs["x"].ravel()
        _fail(x.tolist())
        if FEWER_ROWS in x:
            return x[x != FEWER_ROWS]
        if NOTHING in x:
            return None
        if ODD_OBJECTS in x:
            return np.array([object()] * len(x))
        return x * 2


class AsyncFaults(Faults):
    batched = False

    async def predict(self, inputs):
        return super().predict(inputs)
