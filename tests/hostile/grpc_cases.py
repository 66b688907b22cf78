"""The catalogue over V2's gRPC.  The bodies are messages as bytes, so that a case may be no message at all."""

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from tests.hostile import v2_cases
from tests.hostile.protocols import INFER, Case, OverGrpc, given, message, packed, sound, words

PROTOCOL = OverGrpc(INFER)
BAD, ABSENT, FULL = "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED"
FLOATS = np.array([5, 0, 0, 0], np.float32).tobytes()
X = given("features", "FP32", [1, 4])


def first(n: float) -> bytes:
    return np.array([n, 0, 0, 0], np.float32).tobytes()


def table(*inputs, raw=(), **more) -> bytes:
    return message(*inputs, raw=raw, model=more.pop("model", "table"), **more)


def typed(shape=(1, 4), values=(5, 0, 0, 0), name="features", datatype="FP32", **more) -> bytes:
    return table(given(name, datatype, shape, fp32_contents=values), **more)


def good(n: int, model: str = "Table") -> Case:
    inputs, number = sound(n, model)
    raw = [(name, kind, *packed(kind, row)) for name, (kind, row) in inputs.items()]
    sent = [given(name, kind, shape) for name, kind, shape, _ in raw]
    return Case("good", "OK", "", message(*sent, raw=[one[3] for one in raw], model=model.lower()), model, numbers=(number,))


def mixed(*more, count: int = 3) -> bytes:
    return message(
        given("pair", "FP32", [1, 2], fp32_contents=[1, 2]),
        given("count", "UINT8", [1], uint_contents=[count]),
        *more,
        model="mixed",
    )


def raw_mixed(one, tail: bytes) -> bytes:
    pair, count = given("pair", "FP32", [1, 2]), given("count", "UINT8", [1])
    return message(pair, count, one, raw=[bytes(8), b"\1", tail], model="mixed")


def with_words(word: bytes) -> bytes:
    return message(
        given("word", "BYTES", [1], bytes_contents=[word]), given("number", "FP64", [1], fp64_contents=[1]), model="words"
    )


def parameter(**value) -> dict:
    return {"parameters": {"timeout": pb.InferParameter(**value)}}


JSON = "a protobuf message is no JSON"
HTTP = "of HTTP/1.1 alone; HTTP/2's own are in tests/server/h2 and tests/server/test_grpc_fast.py"
NESTED = "a message has its elements in one list"
TYPED = "a message's fields have types: none holds another's values"
CASES: dict[int, list[Case] | str] = {
    1: [
        Case("no message", BAD, "the request is not a valid inference.ModelInferRequest", b"\xff" * 9),
        Case("cut short", BAD, "not a valid inference.ModelInferRequest", table(X, raw=[FLOATS])[:-1]),
    ],
    2: [Case("no bytes", BAD, "the request has no inputs", b"")],
    3: JSON,
    4: JSON,
    5: "in test_slow.py: the answer comes only when the time is over",
    6: [Case("one byte too many", FULL, "larger than max", typed().ljust(262145, b"\0"))],
    7: "in tests/server/test_grpc_fast.py and test_limits.py: it takes a client that compresses",
    8: "in tests/server/test_grpc_fast.py: it takes a client that lies about its compression",
    9: [
        Case(
            "a name that is not UTF-8",
            BAD,
            "the request is not a valid inference.ModelInferRequest",
            table(X, raw=[FLOATS]).replace(b"features", b"f\xffatures"),
        )
    ],
    10: "protobuf's own rule is that the last of a repeated field counts; the name of an input twice is 15",
    11: [Case("none", BAD, "the request has no inputs", table())],
    12: "V2 has no `instances`",
    13: [
        Case(
            "misspelt",
            BAD,
            "unknown input 'featuers'; did you mean 'features'?; the model expects: features FP32[-1, 4]",
            typed(name="featuers"),
        )
    ],
    14: [
        Case(
            "one of two",
            BAD,
            "missing input 'count'; the model expects: pair FP32[-1, 2], count UINT8[-1]",
            message(given("pair", "FP32", [1, 2], fp32_contents=[1, 2]), model="mixed"),
            "Mixed",
        )
    ],
    15: [Case("the same name", BAD, "input 'features' is given twice", table(X, X, raw=[FLOATS] * 2))],
    16: [
        Case(
            "unknown",
            BAD,
            "unknown output 'totel'; did you mean 'total'?; the model has: total, double",
            typed(outputs=[{"name": "totel"}]),
        ),
        Case("twice", BAD, "output 'total' is requested twice", typed(outputs=[{"name": "total"}, {"name": "total"}])),
        Case("without a name", BAD, "unknown output ''", typed(outputs=[{}])),
        Case(
            "too many",
            BAD,
            "the request has 1 inputs and asks for 1025 outputs, 1024 of each are allowed",
            typed(outputs=[{"name": str(i)} for i in range(1025)]),
        ),
    ],
    17: [
        Case(
            "numpy's name", BAD, "input 'features': unknown datatype 'FLOAT32'; did you mean 'FP32'?", typed(datatype="FLOAT32")
        ),
        Case("missing", BAD, "input 'features': unknown datatype ''", typed(datatype="")),
        Case("in lower case it is known", "OK", "", typed(datatype="fp32"), numbers=(5,)),
    ],
    18: [
        Case(
            "wider",
            BAD,
            "input 'features' is FP64, the model expects FP32",
            table(given("features", "FP64", [1, 4], fp64_contents=[1, 2, 3, 4])),
        )
    ],
    19: [
        Case("too few", BAD, "input 'features' of shape [2, 4] needs 8 values, fp32_contents has 7", typed([2, 4], [0] * 7)),
        Case("too many", BAD, "of shape [1, 4] needs 4 values, fp32_contents has 5", typed(values=[0] * 5)),
    ],
    20: NESTED,
    21: NESTED,
    22: [
        Case("-1", BAD, "shape [-1, 4]; every dimension must be an integer of 0 or more", typed([-1, 4])),
        Case(
            "in a raw one",
            BAD,
            "every dimension must be an integer of 0 or more",
            table(given("features", "FP32", [1, -4]), raw=[FLOATS]),
        ),
    ],
    23: [
        Case(
            "2^40 times 2^40",
            BAD,
            "more elements than any memory holds",
            table(given("features", "FP32", [2**40, 2**40]), raw=[FLOATS]),
        )
    ],
    24: [
        Case(
            "10^18",
            BAD,
            "needs 4000000000000000000 bytes, got 16",
            table(given("features", "FP32", [10**9, 10**9]), raw=[FLOATS]),
        ),
        Case("10^18, typed", BAD, "needs 1000000000000000000 values, fp32_contents has 4", typed([10**9, 10**9])),
        Case(
            "10^18 of text",
            BAD,
            "needs 1000000000000000000 BYTES elements, and 16 bytes have no room",
            table(given("features", "BYTES", [10**18]), raw=[FLOATS]),
        ),
        Case("17 dimensions", BAD, "has 17 dimensions, at most 16 are accepted", typed([1] * 17, [1])),
        Case(
            "too many inputs",
            BAD,
            "the request has 1025 inputs and asks for 0 outputs, 1024 of each are allowed",
            table(*[given(f"x{i}", "FP32", [1]) for i in range(1025)]),
        ),
    ],
    25: TYPED,
    26: [
        Case(
            "without a batch",
            BAD,
            "input 'features' has shape [4], the model expects [-1, 4]; did you mean [1, 4] (one row)?",
            typed([4]),
        ),
        Case("of another width", BAD, "input 'features' has shape [2, 5], the model expects [-1, 4]", typed([2, 5], [0] * 10)),
    ],
    27: [
        Case(
            "1 and 2",
            BAD,
            "inputs disagree about the batch: 'pair' has 1 rows, 'count' has 2",
            message(
                given("pair", "FP32", [1, 2], fp32_contents=[1, 2]),
                given("count", "UINT8", [2], uint_contents=[1, 2]),
                model="mixed",
            ),
            "Mixed",
        )
    ],
    28: [
        Case("[0, 4]", "OK", "", typed([0, 4], [])),
        Case("[0, 4], raw", "OK", "", table(given("features", "FP32", [0, 4]), raw=[b""])),
    ],
    29: [Case("split", "OK", "", typed([40, 4], [v for n in range(40) for v in (n, 0, 0, 0)]), numbers=tuple(range(40)))],
    30: [
        Case("300 as UINT8", BAD, "input 'count': element 0 is 300, UINT8 goes from 0 to 255", mixed(count=300), "Mixed"),
    ],
    31: TYPED,
    32: TYPED,
    33: [Case("NaN is a float", "OK", "", typed(values=[np.nan, 0, 0, 0]))],
    34: TYPED,
    35: [
        Case(
            "a number as a flag",
            BAD,
            "input 'flag' is BOOL and needs bool_contents only, but the request sets uint_contents",
            mixed(given("flag", "BOOL", [1], uint_contents=[1])),
            "Mixed",
        ),
        Case(
            "2 as a flag",
            BAD,
            "input 'flag' is BOOL, whose bytes are 0 or 1; element 0 is 2",
            raw_mixed(given("flag", "BOOL", [1]), b"\2"),
            "Mixed",
        ),
    ],
    36: [
        Case(
            "a length beyond the end",
            BAD,
            "input 'word': BYTES element 0 at offset 0 claims 4294967295 bytes, but only 1 are left",
            raw_mixed(given("word", "BYTES", [1]), b"\xff\xff\xff\xffa"),
            "Mixed",
        ),
        Case(
            "bytes behind the last",
            BAD,
            "input 'word': 1 unexpected bytes at offset 5, after the last of 1 BYTES elements",
            raw_mixed(given("word", "BYTES", [1]), words(b"a") + b"x"),
            "Mixed",
        ),
    ],
    37: [Case("half a letter", BAD, "column 'word', row 0: the bytes are not UTF-8", with_words(b"\xff"), "Words")],
    38: "base64 is JSON's way to carry bytes",
    39: [
        Case("a byte too few", BAD, "needs 16 bytes, got 15", table(X, raw=[FLOATS[:15]])),
        Case("a byte too many", BAD, "needs 16 bytes, got 17", table(X, raw=[FLOATS + b"x"])),
    ],
    40: [
        Case(
            "both",
            BAD,
            "input 'features' has contents although the request uses raw_input_contents; send one of the two",
            typed(raw=[FLOATS]),
        ),
        Case(
            "of another type",
            BAD,
            "input 'features' is FP32 and needs fp32_contents only, but the request sets fp64_contents",
            table(given("features", "FP32", [1, 4], fp64_contents=[1, 2, 3, 4])),
        ),
        Case(
            "of two types",
            BAD,
            "needs fp32_contents only, but the request sets int_contents, fp32_contents",
            table(given("features", "FP32", [1, 4], fp32_contents=[1] * 4, int_contents=[1] * 4)),
        ),
        Case("neither", BAD, "input 'features' has no data: neither fp32_contents nor raw_input_contents is set", table(X)),
    ],
    41: [
        Case(
            "two for one",
            BAD,
            "raw_input_contents has 2 entries for 1 inputs (features); send one for each",
            table(X, raw=[FLOATS] * 2),
        )
    ],
    42: "the length of the JSON part is HTTP's",
    43: "binary_data_size is HTTP's",
    44: HTTP,
    45: [
        Case(
            "FP16",
            BAD,
            "input 'half' is FP16, which has no typed contents; use raw_input_contents",
            mixed(given("half", "FP16", [1], fp32_contents=[1])),
            "Mixed",
        ),
        Case(
            "BF16",
            BAD,
            "input 'half' is BF16, which has no typed contents; use raw_input_contents",
            mixed(given("half", "BF16", [1], fp32_contents=[1])),
            "Mixed",
        ),
    ],
    46: [
        Case("a model", ABSENT, "unknown model 'tabel'; did you mean 'table'?; models here: table", typed(model="tabel")),
        Case("no model", ABSENT, "unknown model ''; models here: table", typed(model="")),
        Case("a version", ABSENT, "model 'table' has no version '7'; it has: (none)", typed(model_version="7")),
    ],
    47: [
        Case("abc", ABSENT, "model 'table' has no version 'abc'", typed(model_version="abc")),
        Case("twenty digits", ABSENT, "model 'table' has no version '99999999999999999999'", typed(model_version="9" * 20)),
    ],
    48: v2_cases.CASES[48],
    49: [
        Case("a way out", ABSENT, "unknown model '../../etc/passwd'", typed(model="../../etc/passwd")),
        Case("a NUL", ABSENT, "unknown model 'table\\x00'", typed(model="table\0")),
        Case("10 kB of it", ABSENT, "unknown model '" + "x" * 80 + "…'", typed(model="x" * 10_000)),
    ],
    50: [
        Case(
            "an unknown method",
            "UNIMPLEMENTED",
            "unknown method /inference.GRPCInferenceService/ModelInfers",
            typed(),
            path=INFER + "s",
        ),
        Case("an unknown service", "UNIMPLEMENTED", "unknown method /a.B/ModelInfer", typed(), path="/a.B/ModelInfer"),
        Case("a path that is none", "UNIMPLEMENTED", "unknown method /", typed(), path="/../x"),
    ],
    51: [
        Case(
            "reserved",
            BAD,
            "parameter 'triton_x' is not known; names that begin with 'triton_' are reserved",
            typed(parameters={"triton_x": pb.InferParameter(int64_param=1)}),
        ),
        Case(
            "without a value",
            BAD,
            "parameter 'p' has no value; set one of bool, int64, uint64, double or string",
            typed(parameters={"p": pb.InferParameter()}),
        ),
    ],
    52: [
        Case(
            "0",
            BAD,
            "parameter 'timeout' is 0; it must be an integer above 0, in microseconds",
            typed(**parameter(int64_param=0)),
        ),
        Case("text", BAD, "parameter 'timeout' is '1s'; it must be an integer above 0", typed(**parameter(string_param="1s"))),
        Case(
            "already over",
            "DEADLINE_EXCEEDED",
            "the deadline passed before the model answered",
            typed(**parameter(int64_param=1)),
            behind_others="RESOURCE_EXHAUSTED",
        ),
    ],
    53: TYPED,
    54: v2_cases.CASES[54],
    55: v2_cases.CASES[55],
    56: [
        Case("an unknown category", BAD, "Found unknown categories ['purple'] in column 0", with_words(b"purple"), "Words"),
        Case("the model's own mistake", "INTERNAL", "the model failed: ValueError", table(X, raw=[first(-1)])),
    ],
    57: [
        Case("a row too few", "INTERNAL", "the model returned", message(X, raw=[first(-4)], model="lossy"), "Lossy"),
        Case("nothing", "INTERNAL", "predict returned NoneType", table(X, raw=[first(-5)])),
    ],
    58: "every output is raw",
    59: [Case("MemoryError", FULL, "ran out of memory", table(X, raw=[first(-2)]))],
    60: HTTP,
}
