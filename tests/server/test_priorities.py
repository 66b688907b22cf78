"""Who goes first, and that nobody who waits stands still."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from server.batcher import Batcher, Job, Limits
from server.cost import Cost
from server.errors import InvalidRequest
from server.priorities import IN_A_ROW, LEVELS, level_of
from server.protocols.parameters import timeout_of
from server.telemetry import Metrics
from server.tensors import Signature, TensorSpec

X, Y = TensorSpec("x", "FP64", (-1, -1)), TensorSpec("y", "FP64", (-1,))
ROW_WISE = Signature("sums", (X,), (Y,))
TOGETHER = Signature("whole", (X,), (Y,), batched=False)


@pytest.mark.parametrize(
    ("parameters", "level"),
    [
        ({}, 0),
        ({"priority": 0}, 0),
        ({"priority": 1}, 1),
        ({"priority": 15}, 15),
        ({"priority": LEVELS}, 0),
        ({"priority": 10**9}, 0),
    ],
)
def test_a_level_is_what_the_parameter_says_as_far_as_there_are_levels(parameters, level):
    assert level_of(parameters) == level
    assert timeout_of(parameters) is None


@pytest.mark.parametrize("value", [-1, "1", 1.0, True, None])
def test_a_priority_that_is_none_is_refused(value):
    with pytest.raises(InvalidRequest, match="parameter 'priority' is"):
        timeout_of({"priority": value})


def order_of(values_and_priorities, *, rows=1, signature=ROW_WISE, alone="", width=None) -> list[list[float]]:
    """The batches that a model sees of jobs that all wait when it gets free, one row each."""

    async def main():
        seen = []

        def predict(signature, inputs, outputs, parameters):
            seen.append(inputs["x"][:, 0].tolist())
            return {"y": inputs["x"][:, 0]}

        with ThreadPoolExecutor(1) as pool:
            metrics = Metrics().of_model("m", "")
            batcher = Batcher(predict, Limits(rows=rows, queue_rows=10_000), Cost(1e-5, 0.0), pool, metrics, alone=alone)
            waiting = []
            for value, priority in values_and_priorities:
                row = np.full((1, width(value) if width else 1), float(value))
                parameters = {"priority": priority} if priority else {}
                waiting.append(batcher.submit(Job(signature, {"x": row}, 1, ("y",), parameters)))
            answers = await asyncio.wait_for(asyncio.gather(*waiting), 10)
            await asyncio.wait_for(batcher.drained(), 10)
            assert batcher.queued_rows == 0
        assert [a.outputs["y"].tolist() for a in answers] == [[float(value)] for value, _ in values_and_priorities]
        return seen

    return asyncio.run(main())


MIXED = [(0, 0), (1, 0), (2, 3), (3, 1), (4, 0), (5, 1), (6, 3), (7, 0)]
BY_PRIORITY = [3, 5, 2, 6, 0, 1, 4, 7]


def test_the_first_level_goes_first_and_who_comes_first_of_one_level():
    assert order_of(MIXED) == [[v] for v in BY_PRIORITY]


def test_without_priorities_who_comes_first_goes_first():
    assert order_of([(n, 0) for n in range(9)]) == [[n] for n in range(9)]


def test_all_levels_share_a_batch_where_they_fit():
    assert order_of(MIXED, rows=3) == [[3, 5, 2], [6, 0, 1], [4, 7]]
    assert order_of(MIXED, rows=100) == [BY_PRIORITY]


def test_what_can_not_be_joined_is_not_and_goes_in_order_all_the_same():
    assert order_of(MIXED, rows=100, alone="the model says so") == [[v] for v in BY_PRIORITY]
    assert order_of(MIXED, rows=100, signature=TOGETHER) == [[v] for v in BY_PRIORITY]
    # odd and even ones are of two widths
    assert order_of(MIXED, rows=100, width=lambda value: 1 + value % 2) == [[3, 5, 1, 7], [2, 6, 0, 4]]


def test_those_without_a_priority_get_their_turn_after_so_many_batches():
    seen = order_of([(1000 + n, 0) for n in range(3)] + [(n, 1) for n in range(40)])
    assert [at for at, batch in enumerate(seen) if batch[0] >= 1000] == [IN_A_ROW, 2 * IN_A_ROW + 1, 3 * IN_A_ROW + 2]


def test_a_priority_does_not_keep_a_deadline_from_passing():
    async def main():
        with ThreadPoolExecutor(1) as pool:
            predict = lambda signature, inputs, outputs, parameters: {"y": inputs["x"][:, 0]}  # noqa: E731
            batcher = Batcher(predict, Limits(), Cost(1e-5, 0.0), pool, Metrics().of_model("m", ""))
            late = batcher.submit(Job(ROW_WISE, {"x": np.zeros((1, 1))}, 1, ("y",), {"priority": 1}, deadline=1.0))
            with pytest.raises(Exception, match="the deadline passed"):
                await late
            await asyncio.wait_for(batcher.drained(), 10)

    asyncio.run(main())


def test_over_the_wire_the_first_goes_first(serve, models, lane, gate, wire, in_flight):
    def body(value, **parameters):
        return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "INT64", "data": [value]}], "parameters": parameters}

    path = "/v2/models/gated/infer"
    with serve(f"{models}/gated.py:Gated", *lane, "--max_batch_size=1", env=gate.environment) as server:
        connections = [wire(server.http) for _ in range(5)]
        connections[0].send("POST", path, body(1000))
        with gate.held():
            gate.seen.clear()
            for at, (connection, priority) in enumerate(zip(connections[1:], (0, 2, 1, 2), strict=True)):
                connection.send("POST", path, body(10 + at, priority=priority))
                in_flight(server, at + 2)
        assert [connection.read().status for connection in connections] == [200] * 5
        for connection in connections:
            connection.close()
    assert gate.rows() == [12, 11, 13, 10]
