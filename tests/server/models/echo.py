"""Gives back what it gets: one optional tensor of each datatype."""

DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")


class Echo:
    inputs = [{"name": d.lower(), "datatype": d, "shape": [-1], "optional": True} for d in DATATYPES]

    def predict(self, inputs):
        return inputs


class Anything:
    """Declares nothing, and gives back whatever comes."""

    def predict(self, inputs):
        return inputs
