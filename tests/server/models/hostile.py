"""A model whose names are made to break out of a page, and one with more elements in a row than anybody types."""

MARKUP = "<img src=x onerror='window.broken = 1'>"
CLOSING = "</script><script>window.broken = 1</script>"


class Names:
    inputs = [{"name": CLOSING, "datatype": "FP64", "shape": [-1, 2]}, {"name": MARKUP, "datatype": "BYTES", "shape": [-1]}]
    outputs = [{"name": f"{MARKUP}{CLOSING}", "datatype": "BYTES", "shape": [-1]}]
    batched = True

    def predict(self, inputs):
        return {f"{MARKUP}{CLOSING}": [f"{CLOSING}{MARKUP}" for _ in inputs[MARKUP]]}


class Image:
    inputs = [{"name": "pixels", "datatype": "FP32", "shape": [-1, 16, 16]}]
    outputs = [{"name": "brightest", "datatype": "FP32", "shape": [-1]}]
    batched = True

    def predict(self, inputs):
        return {"brightest": inputs["pixels"].max(axis=(1, 2))}
