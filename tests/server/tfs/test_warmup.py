"""Warm-up files: written by TensorFlow and TensorFlow Serving's own messages, replayed by us, and damaged in every way."""

import io
import shutil
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_serving.apis import prediction_log_pb2

from server.protocols.tfrecord import crc32c, masked, records

Log = prediction_log_pb2.PredictionLog


@pytest.mark.parametrize(
    ("data", "crc"),
    # RFC 3720, B.4
    [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_a_checksum_is_castagnolis(data, crc):
    assert crc32c(data) == crc


@given(st.integers(4000, 40_000), st.integers(0, 2**32 - 1))
def test_many_bytes_have_the_checksum_that_they_have_one_by_one(size, seed):
    data = np.random.default_rng(seed).bytes(size)
    framed = io.BytesIO()
    framed.write(record(data))
    framed.seek(0)
    (found,) = records(framed, framed.getbuffer().nbytes, size)
    assert found == (data, "")


def slow_crc(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked(slow_crc(length))), data, struct.pack("<I", masked(slow_crc(data)))))


def read(data: bytes, largest: int = 1000):
    return list(records(io.BytesIO(data), len(data), largest))


GOOD = record(b"one") + record(b"") + record(b"three")


def test_what_tensorflow_writes_is_read(tmp_path):
    written = [b"one", b"", b"x" * 100_000]
    with tf.io.TFRecordWriter(str(tmp_path / "file")) as writer:
        for one in written:
            writer.write(one)
    data = (tmp_path / "file").read_bytes()
    assert [(r.data, r.wrong) for r in read(data, 100_000)] == [(one, "") for one in written]


@pytest.mark.parametrize(
    ("data", "good", "wrong"),
    [
        (GOOD, 3, ""),
        (b"", 0, ""),
        (GOOD[:-1], 2, "it was cut short"),
        (GOOD[:20], 1, "the file ends 1 bytes into a record's head, at byte 19"),
        (GOOD.replace(b"three", b"there"), 2, "its checksum is wrong: it is damaged"),
        (GOOD.replace(b"one", b"two"), 2, "its checksum is wrong"),
        (b"PK\3\4" + bytes(100), 0, "this is no TFRecord file, or a damaged one"),
        (record(b"x" * 1001), 0, "it has 1001 bytes, the limit is 1000"),
        (record(b"")[:8] + b"\0" * 8, 0, "the checksum of its length is wrong"),
        (struct.pack("<Q", 2**63) + struct.pack("<I", masked(slow_crc(struct.pack("<Q", 2**63)))), 0, "it was cut short"),
    ],
)
def test_a_damaged_file_gives_what_is_whole_of_it_and_says_what_is_not(data, good, wrong):
    found = read(data)
    assert len([r for r in found if not r.wrong]) == good
    assert [wrong in r.wrong for r in found if r.wrong] == ([True] if wrong else [])


@given(st.binary(max_size=100))
def test_any_bytes_are_read_to_an_end(data):
    assert all(len(r.data) <= len(data) for r in read(data))


@pytest.fixture
def recorded(tmp_path, half_plus_two):
    """`recorded(log, …)`: a copy of the model with these warm-up requests."""

    def make(*logs):
        folder = tmp_path / "half_plus_two"
        shutil.copytree(half_plus_two, folder)
        (folder / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            for log in logs:
                writer.write(log if isinstance(log, bytes) else log.SerializeToString())
        return folder

    return make


@pytest.fixture
def logs(messages, example):
    spec = {"name": "half_plus_two"}
    predict = messages.Predict(model_spec=spec)
    predict.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([[1.0]], np.float32)))
    examples = {"example_list": {"examples": [example(x=1.0)]}}
    regress = messages.Regress(model_spec={**spec, "signature_name": "regress_x"}, input=examples)
    classify = messages.Classify(model_spec={**spec, "signature_name": "classify_x"}, input=examples)
    multi = messages.MultiInference(input=examples)
    for request, method in ((classify, "classify"), (regress, "regress")):
        multi.tasks.add(model_spec=request.model_spec, method_name=f"tensorflow/serving/{method}")
    return {
        "predict": Log(predict_log={"request": predict}),
        "regress": Log(regress_log={"request": regress}),
        "classify": Log(classify_log={"request": classify}),
        "multi_inference": Log(multi_inference_log={"request": multi}),
    }


def test_recorded_requests_of_every_kind_are_replayed_before_the_model_is_ready(serve, recorded, logs):
    with serve(recorded(*logs.values())) as server:
        assert '"event":"warm-up requests replayed"' in server.stderr
        assert '"replayed":4,"left_out":0' in server.stderr
        assert "left out" not in server.stderr


def test_a_bad_record_is_told_by_its_number_and_the_others_are_replayed(serve, recorded, logs):
    other = Log.FromString(logs["predict"].SerializeToString())
    other.predict_log.request.inputs["y"].CopyFrom(other.predict_log.request.inputs["x"])
    session = Log(session_run_log={"request": {"model_spec": {"name": "half_plus_two"}}})
    with serve(recorded(logs["predict"], b"\xff\xff", other, session, logs["regress"])) as server:
        said = [line for line in server.stderr.splitlines() if "a warm-up record is left out" in line]
        assert [number in line for number, line in zip(('"record":1', '"record":2', '"record":3'), said, strict=True)] == [
            True
        ] * 3
        for words, line in zip(
            ("not a valid tensorflow.serving.PredictionLog", "unknown input 'y'", "holds no request of"), said, strict=True
        ):
            assert words in line
        assert '"replayed":2,"left_out":3' in server.stderr


def test_a_file_that_is_none_is_a_warning_and_the_model_serves(serve, recorded):
    folder = recorded()
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"<html>not found</html>")
    with serve(folder) as server:
        assert "this is no TFRecord file, or a damaged one" in server.stderr
