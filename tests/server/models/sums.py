"""Row sums with a declared signature: quick enough to run in the event loop, or a coroutine."""

import gc


class Sums:
    inputs = [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}]
    outputs = [{"name": "total", "datatype": "FP64", "shape": [-1]}]
    batched = True

    def predict(self, inputs):
        return inputs["x"].sum(axis=1)


class AsyncSums:
    inputs = Sums.inputs
    outputs = Sums.outputs
    concurrency = 2

    async def predict(self, inputs):
        return inputs["x"].sum(axis=1)


class Garbage(Sums):
    """In the place of a negative row's sum, how many objects there were that only the garbage collector could free."""

    def predict(self, inputs):
        gc.disable()
        sums = super().predict(inputs)
        sums[sums < 0] = gc.collect() if (sums < 0).any() else 0
        return sums
