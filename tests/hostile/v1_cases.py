"""The catalogue over V1, whose route and forms are TF Serving's REST too."""

import gzip

from tests.hostile import v2_cases
from tests.hostile.protocols import Case, OverHttp, as_json, sound

PROTOCOL = OverHttp("/v1/models/{}:predict")
ROW = [5, 0, 0, 0]
PAIR = {"pair": [1, 2], "count": 3}


def good(n: int, model: str = "Table") -> Case:
    inputs, number = sound(n, model)
    row = {name: value for name, (_, value) in inputs.items()}
    return Case("good", 200, "", rows(row if len(row) > 1 else next(iter(row.values()))), model, numbers=(number,))


def rows(*instances: object, **more: object) -> bytes:
    return as_json({"instances": instances, **more})


def columns(inputs: object, **more: object) -> bytes:
    return as_json({"inputs": inputs, **more})


def mixed(**changes: object) -> bytes:
    return rows({**PAIR, **changes})


# only the total: the other outputs of Table are as long as its rows
TOTAL = {"output_filter": ["total"]}
GOOD = rows(ROW)
HEADERS = {"content-encoding": "gzip"}
TYPED = "V1 names no datatypes: the model's own are taken"
SHAPED = "V1 tells no shape: it is that of the lists"
RAW = "V1 has no raw tensors"
CASES: dict[int, list[Case] | str] = {
    **{n: v2_cases.CASES[n] for n in (2, 3)},
    1: [
        Case("words", 400, "request body is not valid JSON: Expecting value at byte 0", b"not json"),
        Case("a comma", 400, "request body is not valid JSON: Expecting property name", b'{"instances": [[1,2,3,4]],}'),
        Case("more behind it", 400, "request body is not valid JSON: Extra data", GOOD + b"x"),
    ],
    4: [
        Case("10 000 lists", 400, "JSON is nested deeper than 64", b"[" * 10_000 + b"]" * 10_000),
        Case("in the rows", 400, "JSON is nested deeper than 64", b'{"instances":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
        Case(
            "20 lists",
            400,
            "instances (features) is nested deeper than 16 dimensions",
            b'{"instances":' + b"[" * 20 + b"1" + b"]" * 20 + b"}",
        ),
    ],
    5: v2_cases.CASES[5],
    6: [Case("one byte too many", 413, "the body is 262145 bytes, the limit is 262144 (--max_body_bytes)", GOOD.ljust(262145))],
    7: [Case("gzip", 413, "more than 262144 bytes when decompressed", gzip.compress(bytes(10 << 20)), headers=HEADERS)],
    8: [
        Case("not gzip", 400, "the body is not valid gzip", GOOD, headers=HEADERS),
        Case(
            "brotli",
            415,
            "Content-Encoding 'br' is not supported; send one of: gzip, deflate",
            GOOD,
            headers={"content-encoding": "br"},
        ),
    ],
    9: [
        Case("not UTF-8", 400, "request body is not UTF-8: byte 14 is 0xff", b'{"instances":"\xff"}'),
        Case("not UTF-8 in a key", 400, "request body is not UTF-8: byte 2 is 0xff", b'{"\xff":1,"instances":[]}'),
        Case("half a surrogate pair", 400, "the string at element 0 holds half a surrogate pair", mixed(word="\ud800"), "Mixed"),
    ],
    10: [
        Case("instances", 400, "duplicate key 'instances'", b'{"instances":[[1,2,3,4]],"instances":[[5,6,7,8]]}'),
        Case(
            "instances, in another spelling",
            400,
            "duplicate key 'instances'",
            b'{"instances":[[1,2,3,4]],"inst\\u0061nces":[[5,6,7,8]]}',
        ),
        Case("in a row", 400, "duplicate key 'pair'", b'{"instances":[{"pair":[1,2],"pair":[3,4],"count":1}]}', "Mixed"),
    ],
    11: [
        Case("missing", 400, "expected one of 'instances' and 'inputs', got neither", b"{}"),
        Case("misspelt", 400, "got neither; did you mean 'instances'?", as_json({"instance": [ROW]})),
        Case("null", 400, "instances is a null, expected a list with one entry a row", as_json({"instances": None})),
        Case(
            "an object",
            400,
            "instances is a object, expected a list with one entry a row",
            as_json({"instances": {"features": ROW}}),
        ),
    ],
    12: [Case("both", 400, "expected one of 'instances' and 'inputs', got both", rows(ROW, inputs=[ROW]))],
    13: [
        Case(
            "misspelt",
            400,
            "unknown input 'featuers'; did you mean 'features'?; the model expects: features FP32[-1, 4]",
            rows({"featuers": ROW}),
        ),
        Case("as a column", 400, "unknown input 'featuers'; did you mean 'features'?", columns({"featuers": [ROW]})),
    ],
    14: [
        Case(
            "one of two",
            400,
            "missing input 'count'; the model expects: pair FP32[-1, 2], count UINT8[-1]",
            rows({"pair": [1, 2]}),
            "Mixed",
        ),
        Case(
            "in one of the rows", 400, "instances[1] has no 'count', which other rows have", rows(PAIR, {"pair": [1, 2]}), "Mixed"
        ),
        Case(
            "a row that is a list",
            400,
            "instances[1] is a list, but other rows are objects by input name",
            rows(PAIR, [1, 2]),
            "Mixed",
        ),
    ],
    15: "a map of names has each once (10 is the same key twice)",
    16: [
        Case(
            "unknown",
            400,
            "unknown output 'totel'; did you mean 'total'?; the model has: total, double",
            rows(ROW, output_filter=["totel"]),
        ),
        Case("twice", 400, "output 'total' is requested twice", rows(ROW, output_filter=["total", "total"])),
        Case("not a list", 400, "output_filter must be a list of output names", rows(ROW, output_filter="total")),
    ],
    17: TYPED,
    18: TYPED,
    19: SHAPED,
    20: [
        Case(
            "a row too short",
            400,
            "instances (features) is not rectangular: row 1 at depth 1 has 3 elements, row 0 has 4",
            rows([1, 2, 3, 4], [1, 2, 3]),
        ),
        Case("a number among rows", 400, "is not rectangular: row 1 at depth 1 has a number, row 0 has 4", rows([1, 2, 3, 4], 7)),
        Case("a row among numbers", 400, "is not rectangular", rows([1, [2], 3, 4])),
    ],
    **dict.fromkeys((21, 22, 23, 24, 25), SHAPED),
    26: [
        Case(
            "without a batch",
            400,
            "input 'features' has shape [4], the model expects [-1, 4]; did you mean [1, 4] (one row)?",
            rows(*ROW),
        ),
        Case("of another width", 400, "input 'features' has shape [2, 5], the model expects [-1, 4]", rows([0] * 5, [0] * 5)),
        Case("too deep", 400, "input 'features' has shape [1, 1, 4], the model expects [-1, 4]", rows([ROW])),
    ],
    27: [
        Case(
            "1 and 2",
            400,
            "inputs disagree about the batch: 'pair' has 1 rows, 'count' has 2",
            columns({"pair": [[1, 2]], "count": [1, 2]}),
            "Mixed",
        )
    ],
    28: [
        Case("no rows", 400, "instances is empty; a request needs at least one row", rows()),
        Case("an empty row", 400, "input 'features' has shape [1, 0], the model expects [-1, 4]", rows([])),
    ],
    29: [Case("split", 200, "", rows(*[[n, 0, 0, 0] for n in range(40)]), numbers=tuple(range(40)))],
    30: [
        Case(
            "300 as UINT8",
            400,
            "instances (count): 300 at element 0 is out of range for UINT8 (0 to 255)",
            mixed(count=300),
            "Mixed",
        ),
        Case("-1 as UINT32", 400, "-1 at element 0 is out of range for UINT32", mixed(unsigned=-1), "Mixed"),
        Case("2^63 as INT64", 400, "9223372036854775808 at element 0 is out of range for INT64", mixed(whole=2**63), "Mixed"),
    ],
    31: [
        Case(
            "1.5",
            400,
            "instances (count): expected an integer (UINT8) at element 0, got the number 1.5",
            mixed(count=1.5),
            "Mixed",
        ),
        Case("1.0 is one", 200, "", rows({**PAIR, "count": 1.0}, **TOTAL), "Mixed", numbers=(4,)),
    ],
    32: [
        Case("1e39 in FP32", 400, "instances (features): 1e+39 at element 0 overflows FP32", rows([1e39, 0, 0, 0])),
        Case("1e400", 400, "instances (features): the number at element 1 overflows FP32", b'{"instances":[[0, 1e400, 0, 0]]}'),
        Case("an integer", 400, "instances (features): the integer at element 0 overflows FP32", rows([10**400, 0, 0, 0])),
    ],
    33: [
        Case("NaN is a float", 200, "", rows([float("nan"), 0, 0, 0])),
        Case("null is a missing float", 200, "", rows([None, 0, 0, 0])),
        Case(
            "NaN is no integer",
            400,
            "expected an integer (UINT8) at element 0, got the number NaN",
            mixed(count=float("nan")),
            "Mixed",
        ),
        Case(
            "null is no integer", 400, "expected an integer (UINT8) at element 0, got the null null", mixed(count=None), "Mixed"
        ),
        Case("null is no text", 400, "input 'word' is null at element 0", mixed(word=None), "Mixed"),
    ],
    34: [
        Case(
            "3.5",
            400,
            'instances (features): expected a number (FP32) at element 0, got the string "3.5"',
            rows(["3.5", 0, 0, 0]),
        )
    ],
    35: [
        Case("true as a number", 400, "expected a number (FP32) at element 0, got the boolean true", rows([True, 0, 0, 0])),
        Case(
            "true as an integer",
            400,
            "instances (count): expected an integer (UINT8) at element 0, got the boolean true",
            rows({**PAIR, "count": True}, PAIR),
            "Mixed",
        ),
        Case(
            "1 as a flag", 400, "instances (flag): expected true or false at element 0, got the number 1", mixed(flag=1), "Mixed"
        ),
    ],
    36: RAW,
    37: [
        Case(
            "b64 of half a letter",
            400,
            "column 'word', row 0: the bytes are not UTF-8",
            rows({"word": {"b64": "/w=="}, "number": 1}),
            "Words",
        )
    ],
    38: [
        Case("not base64", 400, "instances (word): element 0 is not base64", mixed(word={"b64": "!"}), "Mixed"),
        Case(
            "for a number",
            400,
            'expected a number (FP32) at element 0, got the object {"b64": "AAA="}',
            rows([{"b64": "AAA="}, 0, 0, 0]),
        ),
        Case(
            "with more beside it",
            400,
            "instances (word): expected a string (BYTES) at element 0, got the object",
            mixed(word={"b64": "AA==", "x": 1}),
            "Mixed",
        ),
    ],
    **dict.fromkeys((39, 40, 41, 42, 43), RAW),
    44: v2_cases.CASES[44],
    45: RAW,
    46: [
        Case(
            "a model",
            404,
            "unknown model 'tabel'; did you mean 'table'?; models here: table",
            GOOD,
            path="/v1/models/tabel:predict",
        ),
        Case("a version", 404, "model 'table' has no version '7'", GOOD, path="/v1/models/table/versions/7:predict"),
        Case(
            "a signature",
            400,
            "unknown signature_name 'serving'; did you mean 'serving_default'?; the model has: serving_default",
            rows(ROW, signature_name="serving"),
        ),
        Case(
            "a signature that is no text",
            400,
            "unknown signature_name 7; the model has: serving_default",
            rows(ROW, signature_name=7),
        ),
    ],
    47: [
        Case("abc", 404, "model 'table' has no version 'abc'", GOOD, path="/v1/models/table/versions/abc:predict"),
        Case(
            "twenty digits",
            404,
            "model 'table' has no version '99999999999999999999'",
            GOOD,
            path="/v1/models/table/versions/99999999999999999999:predict",
        ),
    ],
    48: v2_cases.CASES[48],
    49: [
        Case("a slash in it", 404, "unknown model 'a/table'", GOOD, path="/v1/models/a%2Ftable:predict"),
        Case("a way out", 404, "unknown model '../../etc/passwd'", GOOD, path="/v1/models/..%2F..%2Fetc%2Fpasswd:predict"),
        Case("a NUL", 404, "unknown model 'table\\x00'", GOOD, path="/v1/models/table%00:predict"),
        Case("10 kB of it", 404, "unknown model '" + "x" * 80 + "…'", GOOD, path="/v1/models/" + "x" * 10_000 + ":predict"),
    ],
    50: [
        Case("GET", 405, "method GET is not allowed here", method="GET"),
        Case("DELETE", 405, "method DELETE is not allowed here", method="DELETE"),
    ],
    51: "V1 has no parameters: a member that it does not know is passed over",
    52: [
        Case(
            "a header that is none",
            400,
            "header x-request-timeout is '-1', expected a number greater than 0",
            GOOD,
            headers={"x-request-timeout": "-1"},
        ),
        Case(
            "already over",
            504,
            "the deadline passed before the model answered",
            GOOD,
            headers={"x-request-timeout": "0.000001"},
            behind_others=429,
        ),
    ],
    53: "V1 has no id in its body",
    54: v2_cases.CASES[54],
    55: v2_cases.CASES[55],
    56: [
        Case(
            "an unknown category",
            400,
            "Found unknown categories ['purple'] in column 0",
            rows({"word": "purple", "number": 1}),
            "Words",
        ),
        Case("the model's own mistake", 500, "the model failed: ValueError", rows([-1, 0, 0, 0])),
    ],
    57: [
        Case("a row too few", 500, "the model returned", rows([-4, 0, 0, 0]), "Lossy"),
        Case("nothing", 500, "predict returned NoneType", rows([-5, 0, 0, 0])),
        Case("objects", 500, "an array of objects", rows([-6, 0, 0, 0])),
    ],
    58: [
        Case(
            "bytes that are no text",
            400,
            "output 'raw' holds bytes that are not UTF-8 and can't be JSON",
            rows({**PAIR, "word": {"b64": "/w=="}}),
            "Mixed",
        )
    ],
    59: [Case("MemoryError", 503, "ran out of memory", rows([-2, 0, 0, 0]))],
    60: v2_cases.CASES[60],
}
