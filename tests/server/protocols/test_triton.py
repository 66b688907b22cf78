"""What Triton's clients are told of a model, from plain values."""

import pytest

from server.class_labels import ClassLabels
from server.protocols.triton import Batches, Counted, Queueing, Total, config, message, statistics
from server.tensors import Signature, TensorSpec

NO_LABELS = ClassLabels()
QUEUEING = Queueing(rows=64, queue_rows=1024, concurrency=2, timeout=60.0, levels=16, alone=False)


def signature(inputs, outputs=((-1, 3),), batched=True, **more):
    return Signature(
        "s",
        tuple(TensorSpec(f"x{n}", "FP32", shape, **more) for n, shape in enumerate(inputs)),
        tuple(TensorSpec(f"y{n}", "BYTES", shape) for n, shape in enumerate(outputs)),
        batched=batched,
    )


def of(signature, queueing=QUEUEING, labels=NO_LABELS, platform="onnx_onnxv1"):
    return config("m", platform, signature, queueing, {"opsets": "13"}, labels)


@pytest.mark.parametrize(
    ("described", "most", "inputs", "outputs"),
    [
        (signature([(-1, 4)]), 64, [[4]], [[3]]),
        (signature([(-1,), (-1, -1, 3)]), 64, [[], [-1, 3]], [[3]]),
        (signature([(-1, 4)], batched=False), 0, [[-1, 4]], [[-1, 3]]),
        (signature([(2, 4)]), 0, [[2, 4]], [[-1, 3]]),
        (signature([(-1, 4)], [(3,)]), 0, [[-1, 4]], [[3]]),
        (signature([(-1,)], unknown_rank=True), 0, [[-1]], [[-1, 3]]),
        (signature([], []), 0, [], []),
    ],
)
def test_dimensions_are_without_the_batch_where_there_is_one(described, most, inputs, outputs):
    found = of(described)
    assert (found["max_batch_size"], [i["dims"] for i in found["input"]], [o["dims"] for o in found["output"]]) == (
        most,
        inputs,
        outputs,
    )
    assert message("ModelConfig", found).max_batch_size == most


def test_the_configuration_says_how_requests_are_joined():
    found = message("ModelConfig", of(signature([(-1, 4)], optional=True)))
    assert (found.name, found.platform, found.backend) == ("m", "onnx_onnxv1", "onnxruntime")
    assert [(i.data_type, i.optional) for i in found.input] == [(11, True)]
    assert [o.data_type for o in found.output] == [13]
    assert [(g.count, g.kind) for g in found.instance_group] == [(2, 2)]
    batching = found.dynamic_batching
    assert (list(batching.preferred_batch_size), batching.priority_levels, batching.default_priority_level) == ([64], 16, 16)
    policy = batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override, policy.max_queue_size) == (60_000_000, True, 1024)
    assert found.parameters["opsets"].string_value == "13"
    assert found.model_transaction_policy.decoupled is False


def test_a_model_whose_requests_are_not_joined_has_no_dynamic_batching():
    assert not message("ModelConfig", of(signature([(-1, 4)]), QUEUEING._replace(alone=True))).HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (ClassLabels(), ""),
        (ClassLabels(("a", "b", "c")), ""),
        (ClassLabels(("a", "b", "c"), in_file=True), "labels.txt"),
        (ClassLabels(("a", "b"), in_file=True), ""),
    ],
)
def test_a_file_of_names_is_told_for_outputs_that_it_fits(labels, name):
    assert of(signature([(-1, 4)]), labels=labels)["output"][0]["label_filename"] == name


@pytest.mark.parametrize(
    ("platform", "backend"),
    [
        ("sklearn_skops", "sklearn"),
        ("onnx_onnxv1", "onnxruntime"),
        ("tensorflow_savedmodel", "tensorflow"),
        ("keras_keras", "tensorflow"),
    ],
)
def test_a_backend_is_named_as_triton_names_it(platform, backend):
    assert of(signature([(-1, 4)]), platform=platform)["backend"] == backend


def test_statistics_count_requests_rows_and_batches():
    batches = [Batches(1, Total(2, 0.5)), Batches(8, Total(3, 1.5))]
    counted = Counted(Total(20, 4.0), Total(1, 0.25), 1.0, 13.0, 26, batches, 1_700_000_000_123, 4096)
    found = message("ModelStatistics", statistics("m", "3", counted))
    assert (found.name, found.version, found.last_inference) == ("m", "3", 1_700_000_000_123)
    assert (found.inference_count, found.execution_count) == (26, 5)
    inside = found.inference_stats
    assert [(d.count, d.ns) for d in (inside.success, inside.fail, inside.queue, inside.compute_infer, inside.compute_input)] == [
        (20, 4 * 10**9), (1, 25 * 10**7), (20, 10**9), (20, 13 * 10**9), (20, 0),
    ]  # fmt: skip
    assert [(b.batch_size, b.compute_infer.count, b.compute_infer.ns) for b in found.batch_stats] == [
        (1, 2, 5 * 10**8),
        (8, 3, 15 * 10**8),
    ]
    assert [(m.type, m.byte_size) for m in found.memory_usage] == [("CPU", 4096)]
