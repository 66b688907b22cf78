"""Row sums with a declared signature: quick enough to run in the event loop, or a coroutine."""


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
