"""The catalogue over V2 with binary tensors: what is in its JSON is in v2_cases, and is tried here only where tensors change it."""

import gzip

import numpy as np

from tests.hostile import v2_cases
from tests.hostile.protocols import Case, OverHttp, binary, packed, sized, sound, tensor, v2, words

PROTOCOL = OverHttp("/v2/models/{}/infer")
FLOATS = np.array([5, 0, 0, 0], np.float32).tobytes()
OUT = {"parameters": {"binary_data_output": True}}
HEADER = "inference-header-content-length"
X = sized("features", "FP32", [1, 4], 16)
PAIR, COUNT = sized("pair", "FP32", [1, 2], 8), sized("count", "UINT8", [1], 1)
MIXED = np.array([1, 2], np.float32).tobytes() + b"\3"


def case(what: str, code: int, says: str, sent: tuple[bytes, dict[str, str]], model: str = "Table", **more) -> Case:
    body, headers = sent
    return Case(what, code, says, body, model, {**headers, **more.pop("headers", {})}, **more)


def good(n: int, model: str = "Table") -> Case:
    inputs, number = sound(n, model)
    raw = [(name, kind, *packed(kind, row)) for name, (kind, row) in inputs.items()]
    sent = [sized(name, kind, shape, len(data)) for name, kind, shape, data in raw]
    return case("good", 200, "", binary(*sent, tail=b"".join(one[3] for one in raw), **OUT), model, numbers=(number,))


def of(one=X, tail=FLOATS, **more) -> tuple[bytes, dict[str, str]]:
    return binary(one, tail=tail, **more)


def mixed(one: dict, tail: bytes) -> tuple[bytes, dict[str, str]]:
    return binary(PAIR, COUNT, one, tail=MIXED + tail)


def cut(text: bytes, length: str, tail: bytes = b"") -> tuple[bytes, dict[str, str]]:
    return text + tail, {HEADER: length}


SAME = "as over V2's JSON: the bytes around the tensors are the same"
NUMBERS = "numbers of raw tensors are bits: there is none that is not one"
CASES: dict[int, list[Case] | str] = {
    1: [
        case("words", 400, "the request's JSON part is not valid JSON: Expecting value at byte 0", cut(b"not json", "8", FLOATS)),
        case(
            "cut by the header",
            400,
            "the request's JSON part is not valid JSON",
            cut(v2(X)[:-1], str(len(v2(X)) - 1), b"}" + FLOATS),
        ),
    ],
    2: [case("blanks", 400, "the request's JSON part is empty", cut(b"  ", "2", FLOATS))],
    3: [case("a list", 400, "expected a JSON object, got a list", cut(b"[1]", "3", FLOATS))],
    4: [case("10 000 lists", 400, "JSON is nested deeper than 64", cut(b"[" * 20_000, "20000", FLOATS))],
    5: v2_cases.CASES[5],
    6: [
        case(
            "one byte too many",
            413,
            "the body is 262200 bytes, the limit is 262144 (--max_body_bytes)",
            (lambda b, h: (b.ljust(262200, b"\0"), h))(*of()),
        )
    ],
    7: [
        case(
            "gzip",
            413,
            "more than 262144 bytes when decompressed",
            (gzip.compress(of()[0] + bytes(10 << 20)), of()[1]),
            headers={"content-encoding": "gzip"},
        )
    ],
    8: [case("not gzip", 400, "the body is not valid gzip", of(), headers={"content-encoding": "gzip"})],
    9: [case("not UTF-8", 400, "the request's JSON part is not UTF-8: byte 0 is 0xff", cut(b"\xff", "1", FLOATS))],
    10: [
        case(
            "binary_data_size",
            400,
            "duplicate key 'binary_data_size'",
            (lambda b: cut(b, str(len(b)), FLOATS))(
                v2(X).replace(b'"binary_data_size": 16', b'"binary_data_size": 16, "binary_data_size": 15')
            ),
        )
    ],
    11: [case("empty", 400, "'inputs' is empty; a request needs at least one", cut(b'{"inputs":[]}', "13"))],
    12: "V2 has no `instances`",
    13: [case("misspelt", 400, "unknown input 'featuers'; did you mean 'features'?", of({**X, "name": "featuers"}))],
    14: [case("one of two", 400, "missing input 'count'", binary(PAIR, tail=MIXED[:8]), "Mixed")],
    15: [case("the same name", 400, "input 'features' is given twice", binary(X, X, tail=FLOATS * 2))],
    16: [
        case(
            "unknown",
            400,
            "unknown output 'totel'; did you mean 'total'?",
            of(outputs=[{"name": "totel", "parameters": {"binary_data": True}}]),
        )
    ],
    17: [case("numpy's name", 400, "unknown datatype 'FLOAT32'; did you mean 'FP32'?", of({**X, "datatype": "FLOAT32"}))],
    18: [
        case(
            "wider", 400, "input 'features' is FP64, the model expects FP32", of(sized("features", "FP64", [1, 4], 32), bytes(32))
        )
    ],
    19: [
        case(
            "a shape for more",
            400,
            "input 'features' of shape [2, 4] and datatype FP32 needs 32 bytes, got 16",
            of({**X, "shape": [2, 4]}),
        )
    ],
    **dict.fromkeys((20, 21), "raw tensors are not nested"),
    22: [case("-1", 400, "shape [-1, 4]; every dimension must be an integer of 0 or more", of({**X, "shape": [-1, 4]}))],
    23: [case("2^40 times 2^40", 400, "more elements than any memory holds", of({**X, "shape": [2**40, 2**40]}))],
    24: [
        case("10^18", 400, "needs 4000000000000000000 bytes, got 16", of({**X, "shape": [10**9, 10**9]})),
        case(
            "10^18 of text",
            400,
            "needs 1000000000000000000 BYTES elements, and 16 bytes have no room",
            of({**X, "datatype": "BYTES", "shape": [10**18]}),
        ),
        case(
            "2^62 of nothing",
            400,
            "more elements than any memory holds",
            of({**X, "shape": [2**62, 0], "parameters": {"binary_data_size": 0}}, b""),
        ),
    ],
    25: [case("2.0", 400, "every dimension must be an integer of 0 or more", of({**X, "shape": [1.0, 4]}))],
    26: [
        case(
            "without a batch",
            400,
            "input 'features' has shape [4], the model expects [-1, 4]; did you mean [1, 4] (one row)?",
            of({**X, "shape": [4]}),
        )
    ],
    27: [
        case(
            "1 and 2",
            400,
            "inputs disagree about the batch: 'pair' has 1 rows, 'count' has 2",
            binary(PAIR, sized("count", "UINT8", [2], 2), tail=MIXED + b"\0"),
            "Mixed",
        )
    ],
    28: [case("[0, 4]", 200, "", of(sized("features", "FP32", [0, 4], 0), b""))],
    29: [
        case(
            "split",
            200,
            "",
            of(sized("features", "FP32", [40, 4], 640), np.array([[n, 0, 0, 0] for n in range(40)], np.float32).tobytes(), **OUT),
            numbers=tuple(range(40)),
        )
    ],
    **dict.fromkeys((30, 31, 32), NUMBERS),
    33: [case("NaN is a float", 200, "", of(tail=np.array([np.nan, 0, 0, 0], np.float32).tobytes(), **OUT))],
    34: NUMBERS,
    35: [
        case(
            "2 as a flag",
            400,
            "input 'flag' is BOOL, whose bytes are 0 or 1; element 0 is 2",
            mixed(sized("flag", "BOOL", [1], 1), b"\2"),
            "Mixed",
        )
    ],
    36: [
        case(
            "a length beyond the end",
            400,
            "input 'word': BYTES element 0 at offset 0 claims 4294967295 bytes, but only 1 are left",
            mixed(sized("word", "BYTES", [1], 5), b"\xff\xff\xff\xffa"),
            "Mixed",
        ),
        case(
            "no room for a length",
            400,
            "input 'word' of shape [1] needs 1 BYTES elements, and 2 bytes have no room for the 4 bytes",
            mixed(sized("word", "BYTES", [1], 2), b"\0\0"),
            "Mixed",
        ),
        case(
            "bytes behind the last",
            400,
            "input 'word': 1 unexpected bytes at offset 5, after the last of 1 BYTES elements",
            mixed(sized("word", "BYTES", [1], 6), words(b"a") + b"x"),
            "Mixed",
        ),
        case(
            "one too few",
            400,
            "input 'word': BYTES element 1 at offset 8 needs a 4-byte length, but only 0 bytes are left",
            binary(
                sized("pair", "FP32", [2, 2], 16),
                sized("count", "UINT8", [2], 2),
                sized("word", "BYTES", [2], 8),
                tail=bytes(18) + words(b"aaaa"),
            ),
            "Mixed",
        ),
    ],
    37: [
        case(
            "half a letter",
            400,
            "column 'word', row 0: the bytes are not UTF-8",
            binary(sized("word", "BYTES", [1], 5), tensor("number", "FP64", [1], [1]), tail=words(b"\xff")),
            "Words",
        )
    ],
    38: "base64 is JSON's way to carry bytes",
    39: [
        case("a byte too few", 400, "needs 16 bytes, got 15", of(sized("features", "FP32", [1, 4], 15), FLOATS[:15])),
        case("a byte too many", 400, "needs 16 bytes, got 17", of(sized("features", "FP32", [1, 4], 17), FLOATS + b"x")),
    ],
    **dict.fromkeys((40, 41), "gRPC's alone: here each tensor says itself where its bytes are"),
    42: [
        case("not a number", 400, f"{HEADER} is 'soon', expected the length of the JSON part: 0 to", cut(v2(X), "soon", FLOATS)),
        case("negative", 400, f"{HEADER} is '-1', expected the length of the JSON part", cut(v2(X), "-1", FLOATS)),
        case("with a sign", 400, f"{HEADER} is '+5', expected the length of the JSON part", cut(v2(X), "+5", FLOATS)),
        case("with an underscore", 400, f"{HEADER} is '1_0', expected the length of the JSON part", cut(v2(X), "1_0", FLOATS)),
        case(
            "beyond the body",
            400,
            f"{HEADER} is '999', expected the length of the JSON part: 0 to {len(v2(X)) + 16}",
            cut(v2(X), "999", FLOATS),
        ),
        case("5000 digits", 400, f"{HEADER} is '9999", cut(v2(X), "9" * 5000, FLOATS)),
        case("into the JSON", 400, "the request's JSON part is not valid JSON", cut(v2(X), "20", FLOATS)),
        case("into the tensor", 400, "is not", cut(v2(X), str(len(v2(X)) + 3), FLOATS)),
    ],
    43: [
        case(
            "more than there is",
            400,
            "input 'features': binary_data_size is 17, but only 16 bytes of binary data are left",
            of(sized("features", "FP32", [1, 4], 17)),
        ),
        case(
            "less than there is",
            400,
            "1 bytes of binary data are left over: the inputs' binary_data_size add up to 16",
            of(tail=FLOATS + b"x"),
        ),
        case(
            "beside data",
            400,
            "input 'features' needs exactly one of data and binary_data_size, got data and binary_data_size",
            of({**X, "data": [1, 2, 3, 4]}),
        ),
        case(
            "true", 400, "binary_data_size is True, expected a whole number of bytes", of(sized("features", "FP32", [1, 4], True))
        ),
        case(
            "16.0", 400, "binary_data_size is 16.0, expected a whole number of bytes", of(sized("features", "FP32", [1, 4], 16.0))
        ),
        case(
            "negative",
            400,
            "binary_data_size is -16, expected a whole number of bytes",
            of(sized("features", "FP32", [1, 4], -16)),
        ),
    ],
    44: SAME,
    45: "raw FP16 and BF16 are what this protocol has them for",
    46: [case("a model", 404, "unknown model 'tabel'; did you mean 'table'?", of(), path="/v2/models/tabel/infer")],
    47: [case("abc", 404, "model 'table' has no version 'abc'", of(), path="/v2/models/table/versions/abc/infer")],
    48: v2_cases.CASES[48],
    49: [case("a way out", 404, "unknown model '../x'", of(), path="/v2/models/..%2Fx/infer")],
    50: SAME,
    51: [case("reserved", 400, "parameter 'triton_x' is not known", of(parameters={"triton_x": 1}))],
    52: [
        case("0", 400, "parameter 'timeout' is 0; it must be an integer above 0", of(parameters={"timeout": 0})),
        case(
            "already over", 504, "the deadline passed before the model answered", of(parameters={"timeout": 1}), behind_others=429
        ),
    ],
    53: [case("a number", 400, "id is a number, expected a string", of(id=7))],
    54: v2_cases.CASES[54],
    55: v2_cases.CASES[55],
    56: [
        case(
            "an unknown category",
            400,
            "Found unknown categories ['purple'] in column 0",
            binary(sized("word", "BYTES", [1], 10), tensor("number", "FP64", [1], [1]), tail=words(b"purple")),
            "Words",
        ),
        case(
            "the model's own mistake", 500, "the model failed: ValueError", of(tail=np.array([-1, 0, 0, 0], np.float32).tobytes())
        ),
    ],
    57: [
        case("a row too few", 500, "the model returned", of(tail=np.array([-4, 0, 0, 0], np.float32).tobytes()), "Lossy"),
        case("nothing", 500, "predict returned NoneType", of(tail=np.array([-5, 0, 0, 0], np.float32).tobytes())),
    ],
    58: "every output can be binary",
    59: [case("MemoryError", 503, "ran out of memory", of(tail=np.array([-2, 0, 0, 0], np.float32).tobytes()))],
    60: SAME,
}
