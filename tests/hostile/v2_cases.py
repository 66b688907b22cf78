"""The catalogue over V2's JSON, by the numbers of `catalogue.TITLES`."""

import gzip

from tests.hostile.protocols import Case, OverHttp, as_json, packed, sound, tensor, v2

PROTOCOL = OverHttp("/v2/models/{}/infer")
ROW = [5, 0, 0, 0]
GOOD = tensor("features", "FP32", [1, 4], ROW)
PAIR, COUNT = tensor("pair", "FP32", [1, 2], [1, 2]), tensor("count", "UINT8", [1], [3])


def good(n: int, model: str = "Table") -> Case:
    """A request that only it is answered so."""
    inputs, number = sound(n, model)
    sent = [tensor(name, kind, packed(kind, row)[0], [row]) for name, (kind, row) in inputs.items()]
    return Case("good", 200, "", v2(*sent), model, numbers=(number,))


def of(**changes: object) -> bytes:
    """The good request with some of its input changed; `None` leaves a member out."""
    return v2({k: v for k, v in {**GOOD, **changes}.items() if v is not None})


def mixed(*more: dict) -> bytes:
    return v2(PAIR, COUNT, *more)


def one(name: str, datatype: str, value: object) -> bytes:
    return mixed(tensor(name, datatype, [1], [value]))


EMPTY = "request body is empty"
HUGE = 2**40
CASES: dict[int, list[Case] | str] = {
    1: [
        Case("words", 400, "request body is not valid JSON: Expecting value at byte 0", b"not json"),
        Case("a comma", 400, "request body is not valid JSON: Expecting property name", b'{"inputs": [],}'),
        Case("more behind it", 400, "request body is not valid JSON: Extra data", v2(GOOD) + b"x"),
    ],
    2: [Case("nothing", 400, EMPTY), Case("blanks", 400, EMPTY, b" \r\n\t ")],
    3: [
        Case("a list", 400, "expected a JSON object, got a list", b"[1,2]"),
        Case("a number", 400, "expected a JSON object, got a number", b"17"),
        Case("null", 400, "expected a JSON object, got a null", b"null"),
    ],
    4: [
        Case("10 000 lists", 400, "JSON is nested deeper than 64", b"[" * 10_000 + b"]" * 10_000),
        Case(
            "in the data",
            400,
            "JSON is nested deeper than 64",
            v2({**GOOD, "data": 0}).replace(b'"data": 0', b'"data": ' + b"[" * 10_000 + b"]" * 10_000),
        ),
        Case("in an object", 400, "JSON is nested deeper than 64", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        Case("that does not end", 400, "JSON is nested deeper than 64", b"[" * 100_000),
    ],
    5: "in test_slow.py: the answer comes only when the time is over",
    6: [
        Case("one byte too many", 413, "the body is 262145 bytes, the limit is 262144 (--max_body_bytes)", v2(GOOD).ljust(262145))
    ],
    7: [
        Case(
            "gzip",
            413,
            "more than 262144 bytes when decompressed; the limit is --max_body_bytes",
            gzip.compress(bytes(10 << 20)),
            headers={"content-encoding": "gzip"},
        )
    ],
    8: [
        Case("not gzip", 400, "the body is not valid gzip", v2(GOOD), headers={"content-encoding": "gzip"}),
        Case(
            "cut short",
            400,
            "the body is not valid gzip: it ends in the middle",
            gzip.compress(v2(GOOD))[:-4],
            headers={"content-encoding": "gzip"},
        ),
        Case(
            "with more behind it",
            400,
            "not valid gzip: 1 bytes follow its end",
            gzip.compress(v2(GOOD)) + b"x",
            headers={"content-encoding": "gzip"},
        ),
        Case(
            "brotli",
            415,
            "Content-Encoding 'br' is not supported; send one of: gzip, deflate",
            v2(GOOD),
            headers={"content-encoding": "br"},
        ),
    ],
    9: [
        Case("not UTF-8", 400, "request body is not UTF-8: byte 11 is 0xff", b'{"inputs":"\xff"}'),
        Case(
            "half a surrogate pair in a name",
            400,
            "half a surrogate pair, which UTF-8 can't express",
            v2({**GOOD, "name": "\ud800"}),
        ),
        Case(
            "half a surrogate pair in a string",
            400,
            "input 'word': the string at element 0 holds half a surrogate pair",
            one("word", "BYTES", "\ud800"),
            "Mixed",
        ),
        Case("half a surrogate pair in the id", 400, "id holds half a surrogate pair", v2(GOOD, id="\udfff")),
    ],
    10: [
        Case(
            "data",
            400,
            "duplicate key 'data'",
            b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":[1,2,3,4],"data":[5,6,7,8]}]}',
        ),
        Case(
            "inputs",
            400,
            "duplicate key 'inputs'",
            b'{"inputs":[],"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}',
        ),
        Case(
            "shape",
            400,
            "duplicate key 'shape'",
            b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"shape":[2,2],"data":[1,2,3,4]}]}',
        ),
        Case(
            "name, in another spelling",
            400,
            "duplicate key 'name'",
            b'{"inputs":[{"name":"x","n\\u0061me":"features","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}',
        ),
        Case(
            "data, in another spelling",
            400,
            "duplicate key 'data'",
            b'{"inputs":[{"name":"features","datatype":"FP32","shape":[1,4],"data":[1,2,3,4],"d\\u0061ta":[5,6,7,8]}]}',
        ),
        Case("id", 400, "duplicate key 'id'", v2(GOOD).replace(b'{"inputs"', b'{"id":"a","id":"b","inputs"')),
        Case("in parameters", 400, "duplicate key 'a'", v2(GOOD).replace(b'{"inputs"', b'{"parameters":{"a":1,"a":2},"inputs"')),
    ],
    11: [
        Case("missing", 400, "missing 'inputs', found nothing; a request is an object with a list of inputs", b"{}"),
        Case(
            "misspelt",
            400,
            "missing 'inputs', found 'input'; a request is an object with a list of inputs",
            as_json({"input": [GOOD]}),
        ),
        Case("null", 400, "'inputs' is a null, expected a list", as_json({"inputs": None})),
        Case("an object", 400, "'inputs' is a object, expected a list", as_json({"inputs": GOOD})),
        Case("empty", 400, "'inputs' is empty; a request needs at least one", v2()),
        Case("of numbers", 400, "inputs[0] is a number, expected an object", as_json({"inputs": [1]})),
        Case(
            "too many", 400, "'inputs' has 1025 entries, 1024 are allowed", v2(*[{**GOOD, "name": f"x{i}"} for i in range(1025)])
        ),
    ],
    12: "V2 has no `instances`: a member that it does not know is passed over",
    13: [
        Case(
            "misspelt",
            400,
            "unknown input 'featuers'; did you mean 'features'?; the model expects: features FP32[-1, 4]",
            of(name="featuers"),
        ),
        Case("not a string", 400, "inputs[0] needs a name (a string)", of(name=7)),
    ],
    14: [
        Case("one of two", 400, "missing input 'count'; the model expects: pair FP32[-1, 2], count UINT8[-1]", v2(PAIR), "Mixed")
    ],
    15: [Case("the same name", 400, "input 'features' is given twice", v2(GOOD, GOOD))],
    16: [
        Case(
            "unknown",
            400,
            "unknown output 'totel'; did you mean 'total'?; the model has: total, double",
            v2(GOOD, outputs=[{"name": "totel"}]),
        ),
        Case("twice", 400, "output 'total' is requested twice", v2(GOOD, outputs=[{"name": "total"}, {"name": "total"}])),
        Case("without a name", 400, "outputs[0] needs a name (a string)", v2(GOOD, outputs=[{}])),
        Case("not a list", 400, "'outputs' is a object, expected a list", v2(GOOD, outputs={"name": "total"})),
        Case(
            "too many",
            400,
            "'outputs' has 1025 entries, 1024 are allowed",
            v2(GOOD, outputs=[{"name": str(i)} for i in range(1025)]),
        ),
    ],
    17: [
        Case("numpy's name", 400, "unknown datatype 'FLOAT32'; did you mean 'FP32'?", of(datatype="FLOAT32")),
        Case("a number", 400, "unknown datatype 32", of(datatype=32)),
        Case("missing", 400, "input 'features' has no datatype", of(datatype=None)),
        Case("in lower case it is known", 200, "", of(datatype="fp32"), numbers=(5,)),
    ],
    18: [
        Case("wider", 400, "input 'features' is FP64, the model expects FP32", of(datatype="FP64")),
        Case("text", 400, "input 'features' is BYTES, the model expects FP32", of(datatype="BYTES", data=["a"] * 4)),
        Case("what every FP32 can hold is taken", 200, "", of(datatype="UINT8"), numbers=(5,)),
    ],
    19: [
        Case("too few", 400, "input 'features': shape [2, 4] needs 8 values, data has 7", of(shape=[2, 4], data=[0] * 7)),
        Case("too many", 400, "input 'features': shape [1, 4] needs 4 values, data has 5", of(data=[0] * 5)),
        Case("none", 400, "input 'features': shape [1, 4] needs 4 values, data has 0", of(data=[])),
    ],
    20: [
        Case(
            "a row too short",
            400,
            "input 'features' is not rectangular: row 1 at depth 1 has 3 elements, row 0 has 4",
            of(shape=[2, 4], data=[[1, 2, 3, 4], [1, 2, 3]]),
        ),
        Case(
            "a number among rows",
            400,
            "is not rectangular: row 1 at depth 1 has a number, row 0 has 4",
            of(shape=[2, 4], data=[[1, 2, 3, 4], 7]),
        ),
        Case(
            "a row among numbers",
            400,
            "is not rectangular: element 1 at depth 1 is a list, element 0 is not",
            of(data=[1, [2], 3, 4]),
        ),
    ],
    21: [Case("turned", 400, "input 'features': data is nested as [4, 1], but shape says [1, 4]", of(data=[[1], [2], [3], [4]]))],
    22: [
        Case("-1", 400, "shape [-1, 4]; every dimension must be an integer of 0 or more", of(shape=[-1, 4])),
        Case("two of them", 400, "shape [-1, -4]; every dimension must be an integer of 0 or more", of(shape=[-1, -4])),
    ],
    23: [
        Case(
            "2^40 times 2^40",
            400,
            f"shape [{HUGE}, {HUGE}], which is more elements than any memory holds",
            of(shape=[HUGE, HUGE]),
        )
    ],
    24: [
        Case("10^18 of eight bytes", 400, "needs 1000000000000000000 values, data has 1", of(shape=[10**9, 10**9], data=[1])),
        Case("17 dimensions", 400, "has 17 dimensions, at most 16 are accepted", of(shape=[1] * 17, data=[1])),
        Case("200 digits", 400, "more elements than any memory holds", of(shape=[10**200])),
    ],
    25: [
        Case("2.0", 400, "every dimension must be an integer of 0 or more", of(shape=[1.0, 4])),
        Case('"2"', 400, "every dimension must be an integer of 0 or more", of(shape=["1", 4])),
        Case("true", 400, "every dimension must be an integer of 0 or more", of(shape=[True, 4])),
        Case("not a list", 400, "input 'features': shape is a number, expected a list of whole numbers", of(shape=4)),
        Case("missing", 400, "input 'features' has no shape", of(shape=None)),
    ],
    26: [
        Case(
            "without a batch",
            400,
            "input 'features' has shape [4], the model expects [-1, 4]; did you mean [1, 4] (one row)?",
            of(shape=[4]),
        ),
        Case(
            "of another width",
            400,
            "input 'features' has shape [2, 5], the model expects [-1, 4]",
            of(shape=[2, 5], data=[0] * 10),
        ),
        Case("too deep", 400, "input 'features' has shape [1, 1, 4], the model expects [-1, 4]", of(shape=[1, 1, 4])),
    ],
    27: [
        Case(
            "1 and 2",
            400,
            "inputs disagree about the batch: 'pair' has 1 rows, 'count' has 2",
            v2(PAIR, tensor("count", "UINT8", [2], [1, 2])),
            "Mixed",
        )
    ],
    28: [Case("[0, 4]", 200, "", of(shape=[0, 4], data=[]))],
    29: [Case("split", 200, "", of(shape=[40, 4], data=[[n, 0, 0, 0] for n in range(40)]), numbers=tuple(range(40)))],
    30: [
        Case(
            "300 as UINT8",
            400,
            "input 'count': 300 at element 0 is out of range for UINT8 (0 to 255)",
            v2(PAIR, tensor("count", "UINT8", [1], [300])),
            "Mixed",
        ),
        Case("-1 as UINT32", 400, "-1 at element 0 is out of range for UINT32", one("unsigned", "UINT32", -1), "Mixed"),
        Case(
            "2^63 as INT64",
            400,
            "9223372036854775808 at element 0 is out of range for INT64",
            one("whole", "INT64", 2**63),
            "Mixed",
        ),
        Case(
            "5000 digits",
            400,
            "request body is not valid JSON: Exceeds the limit",
            mixed(tensor("whole", "INT64", [1], 0)).replace(b'"data": 0', b'"data": [' + b"9" * 5000 + b"]"),
            "Mixed",
        ),
    ],
    31: [
        Case(
            "1.5",
            400,
            "input 'count': expected an integer (UINT8) at element 0, got the number 1.5",
            v2(PAIR, tensor("count", "UINT8", [1], [1.5])),
            "Mixed",
        ),
        Case("1.0 is one", 200, "", v2(PAIR, tensor("count", "UINT8", [1], [1.0])), "Mixed", numbers=(4,)),
    ],
    32: [
        Case("1e39 in FP32", 400, "input 'features': 1e+39 at element 0 overflows FP32", of(data=[1e39, 0, 0, 0])),
        Case(
            "1e400",
            400,
            "input 'features': the number at element 1 overflows FP32",
            of(data=0).replace(b'"data": 0', b'"data": [0, 1e400, 0, 0]'),
        ),
        Case(
            "-1e400",
            400,
            "input 'features': the number at element 0 overflows FP32",
            of(data=0).replace(b'"data": 0', b'"data": [-1e400, 0, 0, 0]'),
        ),
        Case("an integer", 400, "input 'features': the integer at element 0 overflows FP32", of(data=[10**400, 0, 0, 0])),
        Case("70000 in FP16", 400, "input 'half': 70000.0 at element 0 overflows FP16", one("half", "FP16", 70000), "Mixed"),
    ],
    33: [
        Case("NaN is a float", 200, "", of(data=[float("nan"), 0, 0, 0])),
        Case("Infinity is a float", 200, "", of(data=[float("inf"), 0, 0, 0])),
        Case("null is a missing float", 200, "", of(data=[None, 0, 0, 0])),
        Case(
            "NaN is no integer",
            400,
            "input 'count': expected an integer (UINT8) at element 0, got the number NaN",
            v2(PAIR, tensor("count", "UINT8", [1], [float("nan")])),
            "Mixed",
        ),
        Case(
            "null is no integer",
            400,
            "input 'count': expected an integer (UINT8) at element 0, got the null null",
            v2(PAIR, tensor("count", "UINT8", [1], [None])),
            "Mixed",
        ),
        Case(
            "null is no flag",
            400,
            "input 'flag': expected true or false at element 0, got the null null",
            one("flag", "BOOL", None),
            "Mixed",
        ),
        Case(
            "null is no text",
            400,
            "input 'word' is null at element 0, and the model takes no missing values there",
            one("word", "BYTES", None),
            "Mixed",
        ),
    ],
    34: [
        Case(
            "3.5",
            400,
            "input 'features': expected a number (FP32) at element 0, got the string \"3.5\"",
            of(data=["3.5", 0, 0, 0]),
        )
    ],
    35: [
        Case("true as a number", 400, "expected a number (FP32) at element 0, got the boolean true", of(data=[True, 0, 0, 0])),
        Case(
            "true as an integer",
            400,
            "expected an integer (UINT8) at element 0, got the boolean true",
            v2(PAIR, tensor("count", "UINT8", [1], [True])),
            "Mixed",
        ),
        Case(
            "1 as a flag",
            400,
            "input 'flag': expected true or false at element 0, got the number 1",
            one("flag", "BOOL", 1),
            "Mixed",
        ),
    ],
    36: "JSON has strings; lengths of elements are in binary tensors and in gRPC",
    37: [
        Case(
            "b64 of half a letter",
            400,
            "column 'word', row 0: the bytes are not UTF-8",
            v2(tensor("word", "BYTES", [1], [{"b64": "/w=="}]), tensor("number", "FP64", [1], [1])),
            "Words",
        )
    ],
    38: [
        Case("not base64", 400, "input 'word': element 0 is not base64", one("word", "BYTES", {"b64": "!"}), "Mixed"),
        Case(
            "for a number",
            400,
            'expected a number (FP32) at element 0, got the object {"b64": "AAA="}',
            of(data=[{"b64": "AAA="}, 0, 0, 0]),
        ),
        Case(
            "with more beside it",
            400,
            "input 'word': expected a string (BYTES) at element 0, got the object",
            one("word", "BYTES", {"b64": "AA==", "x": 1}),
            "Mixed",
        ),
    ],
    39: "raw tensors are the row of binary V2",
    40: "contents of two kinds are gRPC's alone",
    41: "raw entries are gRPC's alone",
    42: "without Inference-Header-Content-Length the whole body is JSON",
    43: [
        Case(
            "without a binary part",
            400,
            "input 'features': binary_data_size is 16, but only 0 bytes of binary data are left",
            v2({"name": "features", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}),
        ),
        Case(
            "binary_data_output that is none",
            400,
            "parameter binary_data_output is 1, expected true or false",
            v2(GOOD, parameters={"binary_data_output": 1}),
        ),
        Case(
            "binary_data that is none",
            400,
            "output 'total': binary_data is 'yes', expected true or false",
            v2(GOOD, outputs=[{"name": "total", "parameters": {"binary_data": "yes"}}]),
        ),
    ],
    44: [
        Case(
            "70 000 chunks",
            413,
            "the body came in more than 65536 chunks",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 66_000,
        )
    ],
    45: "JSON has no typed contents; FP16 is written as any number",
    46: [
        Case(
            "a model",
            404,
            "unknown model 'tabel'; did you mean 'table'?; models here: table",
            v2(GOOD),
            path="/v2/models/tabel/infer",
        ),
        Case(
            "a version",
            404,
            "model 'table' has no version '7'; it has: (none)",
            v2(GOOD),
            path="/v2/models/table/versions/7/infer",
        ),
    ],
    47: [
        Case("abc", 404, "model 'table' has no version 'abc'", v2(GOOD), path="/v2/models/table/versions/abc/infer"),
        Case(
            "twenty digits",
            404,
            "model 'table' has no version '99999999999999999999'",
            v2(GOOD),
            path="/v2/models/table/versions/99999999999999999999/infer",
        ),
        Case(
            "digits of another script",
            404,
            "model 'table' has no version",
            v2(GOOD),
            path="/v2/models/table/versions/%D9%A1/infer",
        ),
    ],
    48: "in test_busy.py: it takes a server that is loading, and one that drains",
    49: [
        Case("a slash in it", 404, "unknown model 'a/table'", v2(GOOD), path="/v2/models/a%2Ftable/infer"),
        Case("a way out", 404, "unknown model '../../etc/passwd'", v2(GOOD), path="/v2/models/..%2F..%2Fetc%2Fpasswd/infer"),
        Case("a way out, undisguised", 404, "Not Found", v2(GOOD), path="/v2/models/../../etc/passwd"),
        Case("decoded twice", 404, "unknown model '%2e%2e%2fetc'", v2(GOOD), path="/v2/models/%252e%252e%252fetc/infer"),
        Case("a NUL", 404, "unknown model 'table\\x00'", v2(GOOD), path="/v2/models/table%00/infer"),
        Case(
            "10 kB of it",
            404,
            "unknown model '" + "x" * 80 + "…'; models here: table",
            v2(GOOD),
            path="/v2/models/" + "x" * 10_000 + "/infer",
        ),
        Case("an empty name", 404, "Not Found", v2(GOOD), path="/v2/models//infer"),
    ],
    50: [
        Case("GET", 405, "method GET is not allowed here", path="/v2/models/table/infer", method="GET"),
        Case("PUT", 405, "method PUT is not allowed here", v2(GOOD), method="PUT"),
        Case("a method that is none", 400, "this is not a valid HTTP/1.1 request", v2(GOOD), method="INFER"),
    ],
    51: [
        Case(
            "reserved",
            400,
            "parameter 'triton_x' is not known; names that begin with 'triton_' are reserved",
            v2(GOOD, parameters={"triton_x": 1}),
        ),
        Case(
            "an object",
            400,
            "parameter 'p' is a dict; it must be a string, a number or a boolean",
            v2(GOOD, parameters={"p": {"a": 1}}),
        ),
        Case(
            "parameters that are a list", 400, "the request: parameters is a list, expected an object", v2(GOOD, parameters=[1])
        ),
        Case("of an input, a list", 400, "inputs[0]: parameters is a list, expected an object", of(parameters=[])),
    ],
    52: [
        Case(
            "0",
            400,
            "parameter 'timeout' is 0; it must be an integer above 0, in microseconds",
            v2(GOOD, parameters={"timeout": 0}),
        ),
        Case(
            "not an integer",
            400,
            "parameter 'timeout' is '1s'; it must be an integer above 0",
            v2(GOOD, parameters={"timeout": "1s"}),
        ),
        Case("true", 400, "parameter 'timeout' is True; it must be an integer above 0", v2(GOOD, parameters={"timeout": True})),
        Case(
            "400 digits",
            400,
            "parameter 'timeout' is an integer beyond 64 bits; it must be an integer above 0",
            v2(GOOD, parameters={"timeout": 10**400}),
        ),
        Case(
            "a header that is none",
            400,
            "header x-request-timeout is 'soon', expected a number greater than 0",
            v2(GOOD),
            headers={"x-request-timeout": "soon"},
        ),
        Case(
            "already over",
            504,
            "the deadline passed before the model answered",
            v2(GOOD, parameters={"timeout": 1}),
            behind_others=429,
        ),
    ],
    53: [
        Case("a number", 400, "id is a number, expected a string", v2(GOOD, id=7)),
        Case("a list", 400, "id is a list, expected a string", v2(GOOD, id=[])),
    ],
    54: "in test_busy.py: it takes a model that is at work",
    55: "in test_busy.py: it takes a queue that is full",
    56: [
        Case(
            "an unknown category",
            400,
            "Found unknown categories ['purple'] in column 0",
            v2(tensor("word", "BYTES", [1], ["purple"]), tensor("number", "FP64", [1], [1])),
            "Words",
        ),
        Case("the model's own mistake", 500, "the model failed: ValueError", of(data=[-1, 0, 0, 0])),
        Case("without end", 500, "the model failed: RecursionError", of(data=[-3, 0, 0, 0])),
    ],
    57: [
        Case("a row too few", 500, "the model returned", of(data=[-4, 0, 0, 0]), "Lossy"),
        Case("nothing", 500, "predict returned NoneType", of(data=[-5, 0, 0, 0])),
        Case("objects", 500, "an array of objects", of(data=[-6, 0, 0, 0])),
        Case("one output of two", 500, "double", of(data=[-7, 0, 0, 0])),
    ],
    58: [
        Case(
            "bytes that are no text",
            400,
            "output 'raw' holds bytes that are not UTF-8 and can't be JSON; request it as binary_data",
            v2(PAIR, COUNT, tensor("word", "BYTES", [1], [{"b64": "/w=="}]), outputs=[{"name": "raw"}]),
            "Mixed",
        ),
        Case("FP16 is a number", 200, "", v2(PAIR, COUNT, outputs=[{"name": "small"}]), "Mixed", numbers=(6,)),
    ],
    59: [Case("MemoryError", 503, "ran out of memory", of(data=[-2, 0, 0, 0]))],
    60: [
        Case(
            "two lengths",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}x",
        ),
        Case(
            "one length twice",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Case(
            "length and chunks",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        Case(
            "chunks and length",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
        ),
        Case(
            "a blank in a name",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length : 2\r\n\r\n{}",
        ),
        Case(
            "a folded line",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Case(
            "a bare CR",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\rx: b\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Case(
            "a NUL",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\nx: a\0b\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Case(
            "a sign in the length",
            400,
            "this is not a valid HTTP/1.1 request",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\ncontent-length: +2\r\n\r\n{}",
        ),
        Case(
            "100 kB of headers",
            431,
            "the request's headers are more than 65536 bytes (--max_header_bytes)",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100_000 + b"\r\ncontent-length: 2\r\n\r\n{}",
        ),
        Case(
            "101 headers",
            431,
            "the request has 101 headers, the limit is 100 (--max_headers)",
            raw=b"POST PATH HTTP/1.1\r\nhost: a\r\n"
            + b"".join(b"x-%d: y\r\n" % n for n in range(99))
            + b"content-length: 2\r\n\r\n{}",
        ),
    ],
}
