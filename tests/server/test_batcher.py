"""What one request can do to another: nothing.  The faults are numbered as in docs/isolation.md."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from server.batcher import Batcher, Job, Limits, chunks, submit_whole
from server.cost import Cost, measure
from server.errors import DeadlineExceeded, InvalidInput, Overloaded, ResourceExhausted, RuntimeFailed
from server.tensors import Signature, TensorSpec

X = TensorSpec("x", "FP64", (-1, -1))
Y = TensorSpec("y", "FP64", (-1,))
SUMS = Signature("sums", (X,), (Y,))


class Seen:
    """An observer that remembers, standing where the metrics stand."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.fallbacks = 0
        self.rejections: list[str] = []
        self.alone_because = ""

    def batch(self, rows, seconds):
        self.batches.append(rows)

    def fallback(self):
        self.fallbacks += 1

    def rejected(self, reason):
        self.rejections.append(reason)

    def queued(self, rows):
        pass

    def alone(self, why):
        self.alone_because = why


class Model:
    """Row sums, with a gate that holds a batch until it is opened, and a memory of what it was called with."""

    def __init__(self, predict=None) -> None:
        self.calls: list[dict] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._predict = predict or (lambda x: x.sum(axis=1))

    def __call__(self, signature, inputs, outputs, parameters):
        self.calls.append(
            {
                "rows": len(inputs["x"]),
                "width": inputs["x"].shape[-1],
                "outputs": outputs,
                "parameters": dict(parameters),
                "dtype": inputs["x"].dtype,
            }
        )
        self.entered.set()
        assert self.gate.wait(10)
        return {"y": self._predict(inputs["x"])}


def rows(*values, width=2):
    return np.array([[v] * width for v in values], float)


def job(x, *, outputs=("y",), deadline=None, signature=SUMS, **parameters):
    return Job(signature, {"x": x}, len(x), outputs, parameters, deadline)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as executor:
        yield executor


THREADED = Cost(1.0, 0.0)
INLINE = Cost(1e-5, 0.0)


def make(model, pool, *, cost=THREADED, seen=None, **limits):
    # a fresh cost each: it learns
    return Batcher(model, Limits(**limits), Cost(cost.fixed, cost.per_row), pool, seen or Seen())


async def busy(batcher, model):
    """Fill the only slot, so that what comes next is queued and joined; returns the future of the filler."""
    model.gate.clear()
    model.entered.clear()
    first = batcher.submit(job(rows(0.0)))
    await asyncio.get_running_loop().run_in_executor(None, model.entered.wait, 10)
    return first


async def settle(*futures):
    return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)


def both_ways(test):
    return pytest.mark.parametrize("cost", [THREADED, INLINE], ids=["in threads", "in the event loop"])(test)


@both_ways
def test_waiting_requests_run_as_one_batch_and_each_gets_its_own_rows(pool, cost):
    async def main():
        model, seen = Model(), Seen()
        batcher = make(model, pool, cost=cost, seen=seen)
        futures = [batcher.submit(job(rows(*range(n, n + 3)))) for n in range(20)]
        answers = await settle(*futures)
        for n, answer in enumerate(answers):
            assert answer.outputs["y"].tolist() == [2.0 * v for v in range(n, n + 3)]
        assert max(seen.batches) > 3
        assert sum(seen.batches) == 60

    asyncio.run(main())


def test_an_idle_server_runs_a_request_without_waiting_for_others(pool):
    async def main():
        model = Model()
        result = await make(model, pool, cost=INLINE).submit(job(rows(1.0)))
        assert result.timing.batch_rows == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("what", "odd"),
    [
        ("1: another shape", lambda: job(rows(5.0, width=3))),
        ("5: other parameters", lambda: job(rows(5.0), temperature=2)),
        ("6: other outputs", lambda: job(rows(5.0), outputs=("z",))),
        ("1: another signature", lambda: job(rows(5.0), signature=Signature("other", (X,), (Y,)))),
    ],
)
def test_requests_that_differ_are_never_joined(pool, what, odd):
    async def main():
        model = Model()
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        futures = [batcher.submit(job(rows(1.0))), batcher.submit(odd()), batcher.submit(job(rows(2.0)))]
        model.gate.set()
        await settle(filler, *futures)
        assert [c["rows"] for c in model.calls] == [1, 2, 1]
        assert futures[0].result().outputs["y"].tolist() == [2.0]
        assert futures[2].result().outputs["y"].tolist() == [4.0]

    asyncio.run(main())


def test_transport_parameters_do_not_keep_requests_apart(pool):
    async def main():
        model = Model()
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        futures = [batcher.submit(job(rows(1.0), binary_data_output=True)), batcher.submit(job(rows(2.0)))]
        model.gate.set()
        await settle(filler, *futures)
        assert [c["rows"] for c in model.calls] == [1, 2]

    asyncio.run(main())


def fails_on_negative(x):
    if (x < 0).any():
        raise InvalidInput("negative")
    return x.sum(axis=1)


@both_ways
@pytest.mark.parametrize("bad_at", [0, 7, 15])
def test_3_a_value_that_makes_the_model_raise_fails_its_own_request_only(pool, cost, bad_at):
    async def main():
        model, seen = Model(fails_on_negative), Seen()
        batcher = make(model, pool, cost=cost, seen=seen)
        futures = [batcher.submit(job(rows(-1.0 if n == bad_at else float(n)))) for n in range(16)]
        answers = await settle(*futures)
        for n, answer in enumerate(answers):
            if n == bad_at:
                assert isinstance(answer, InvalidInput)
            else:
                assert answer.outputs["y"].tolist() == [2.0 * n]
        assert seen.fallbacks > 0

    asyncio.run(main())


def test_a_models_own_exception_is_a_runtime_failure_and_running_out_of_memory_says_so(pool):
    def fails(x):
        if x[0, 0] == 1:
            raise KeyError("internal detail")
        raise MemoryError

    async def main():
        batcher = make(Model(fails), pool)
        one, two = await settle(batcher.submit(job(rows(1.0))), batcher.submit(job(rows(2.0))))
        assert isinstance(one, RuntimeFailed)
        assert "internal detail" not in str(one)
        assert isinstance(two, ResourceExhausted)

    asyncio.run(main())


@both_ways
def test_8_a_cancelled_caller_leaves_the_others_their_answers_and_its_work_undone(pool, cost):
    async def main():
        model = Model()
        batcher = make(model, pool, cost=cost)
        futures = [batcher.submit(job(rows(float(n)))) for n in range(4)]
        for n in (1, 2):
            futures[n].cancel()
        await settle(*futures)
        assert [f.cancelled() for f in futures] == [False, True, True, False]
        assert futures[3].result().outputs["y"].tolist() == [6.0]
        assert sum(c["rows"] for c in model.calls) <= 3

    asyncio.run(main())


def test_8_a_cancelled_caller_gives_its_place_in_the_queue_back_at_once(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, queue_rows=2)
        filler = await busy(batcher, model)
        waiting = [batcher.submit(job(rows(1.0))), batcher.submit(job(rows(2.0)))]
        with pytest.raises(Overloaded):
            batcher.submit(job(rows(3.0)))
        waiting[0].cancel()
        await asyncio.sleep(0)
        third = batcher.submit(job(rows(3.0)))
        model.gate.set()
        await settle(filler, *waiting, third)
        assert third.result().outputs["y"].tolist() == [6.0]

    asyncio.run(main())


def test_8_a_caller_who_goes_while_the_batch_runs_leaves_the_others_their_answers(pool):
    async def main():
        running, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def held(x):
            if len(x) > 1:
                loop.call_soon_threadsafe(running.set)
                assert go_on.wait(10)
            return x.sum(axis=1)

        model = Model(held)
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        batch = [batcher.submit(job(rows(float(n)))) for n in range(3)]
        model.gate.set()
        await asyncio.wait_for(running.wait(), 10)
        batch[0].cancel()
        go_on.set()
        await settle(filler, *batch)
        assert [f.result().outputs["y"].tolist() for f in batch[1:]] == [[2.0], [4.0]]
        assert [c["rows"] for c in model.calls] == [1, 3]

    asyncio.run(main())


def test_9_each_request_has_its_own_deadline_and_the_batch_none(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, cost=Cost(0.001, 0.0))
        filler = await busy(batcher, model)
        now = asyncio.get_running_loop().time()
        soon = batcher.submit(job(rows(1.0), deadline=now + 0.05))
        later = batcher.submit(job(rows(2.0)))
        (expired,) = await settle(soon)
        assert isinstance(expired, DeadlineExceeded)
        assert not filler.done()
        model.gate.set()
        await settle(filler, later)
        assert later.result().outputs["y"].tolist() == [4.0]
        # what was no longer wanted was not computed
        assert sum(c["rows"] for c in model.calls) == 2

    asyncio.run(main())


def test_9_a_request_whose_time_would_be_over_before_its_answer_is_not_run(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, cost=Cost(100.0, 0.0))
        late = batcher.submit(job(rows(1.0), deadline=asyncio.get_running_loop().time() + 5))
        (expired,) = await settle(late)
        assert isinstance(expired, DeadlineExceeded)
        assert model.calls == []

    asyncio.run(main())


def test_a_request_that_the_queue_can_not_answer_in_time_is_refused_when_it_comes(pool):
    async def main():
        model, seen = Model(), Seen()
        batcher = make(model, pool, cost=Cost(2.0, 0.0), seen=seen)
        filler = await busy(batcher, model)
        waiting = batcher.submit(job(rows(1.0)))
        with pytest.raises(Overloaded, match="deadline") as refused:
            batcher.submit(job(rows(2.0), deadline=asyncio.get_running_loop().time() + 1))
        assert refused.value.retry_after >= 1
        assert seen.rejections == ["no_time"]
        model.gate.set()
        await settle(filler, waiting)

    asyncio.run(main())


@both_ways
@pytest.mark.parametrize(
    "change", [lambda y: y[:-1], lambda y: np.append(y, 0.0), lambda y: y.sum()], ids=["fewer", "more", "scalar"]
)
def test_10_a_result_with_the_wrong_rows_is_never_sliced_and_joining_stops(pool, cost, change):
    def predict(x):
        return x.sum(axis=1) if len(x) == 1 else change(x.sum(axis=1))

    async def main():
        model, seen = Model(predict), Seen()
        batcher = make(model, pool, cost=cost, seen=seen)
        futures = [batcher.submit(job(rows(float(n)))) for n in range(5)]
        answers = await settle(*futures)
        assert [a.outputs["y"].tolist() for a in answers] == [[2.0 * n] for n in range(5)]
        assert "the model returned" in seen.alone_because
        assert batcher.alone
        model.calls.clear()
        await settle(*[batcher.submit(job(rows(float(n)))) for n in range(3)])
        assert [c["rows"] for c in model.calls] == [1, 1, 1]

    asyncio.run(main())


def test_10_a_single_request_that_gets_the_wrong_rows_is_a_failure_with_both_numbers(pool):
    async def main():
        batcher = make(Model(lambda x: np.zeros(3)), pool)
        (answer,) = await settle(batcher.submit(job(rows(1.0, 2.0, 3.0, 4.0))))
        assert isinstance(answer, RuntimeFailed)
        assert "3 rows for 4" in str(answer)

    asyncio.run(main())


def test_12_batches_count_rows_and_bytes_not_requests(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, rows=10, nbytes=10_000)
        filler = await busy(batcher, model)
        many = [batcher.submit(job(rows(*range(6)))) for _ in range(3)]
        fat = [batcher.submit(job(rows(1.0, width=1000))) for _ in range(2)]
        model.gate.set()
        await settle(filler, *many, *fat)
        assert all(c["rows"] <= 10 for c in model.calls)
        assert len(model.calls) == 6

    asyncio.run(main())


def test_12_a_large_request_goes_chunk_by_chunk_and_a_small_one_runs_in_between(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, rows=10)
        filler = await busy(batcher, model)
        large = asyncio.ensure_future(submit_whole(batcher, job(rows(*map(float, range(35))))))
        await asyncio.sleep(0)
        small = batcher.submit(job(rows(7.0, width=3)))
        model.gate.set()
        await settle(filler, large, small)
        assert large.result().outputs["y"].tolist() == [2.0 * n for n in range(35)]
        sizes = [c["rows"] for c in model.calls]
        assert sizes == [1, 10, 1, 10, 10, 5]

    asyncio.run(main())


def test_13_the_queue_is_bounded_by_rows_and_by_bytes(pool):
    async def main():
        model, seen = Model(), Seen()
        batcher = make(model, pool, seen=seen, queue_rows=4, queue_bytes=1000)
        filler = await busy(batcher, model)
        waiting = [batcher.submit(job(rows(1.0, 2.0)))]
        for too_much in (rows(1.0, 2.0, 3.0), rows(1.0, width=200)):
            with pytest.raises(Overloaded, match="queue is full"):
                batcher.submit(job(too_much))
        assert seen.rejections == ["queue_full", "queue_full"]
        model.gate.set()
        await settle(filler, *waiting)

    asyncio.run(main())


def test_13_a_request_larger_than_the_queue_is_taken_by_an_idle_server(pool):
    async def main():
        batcher = make(Model(), pool, queue_rows=2)
        (answer,) = await settle(batcher.submit(job(rows(1.0, 2.0, 3.0))))
        assert answer.outputs["y"].tolist() == [2.0, 4.0, 6.0]

    asyncio.run(main())


def test_14_an_idle_batcher_asks_nothing_of_the_event_loop(pool):
    async def main():
        loop = asyncio.get_running_loop()
        batcher = make(Model(), pool)
        await batcher.submit(job(rows(1.0)))
        await asyncio.wait_for(batcher.drained(), 5)
        assert not [h for h in loop._scheduled if not h.cancelled()]

    asyncio.run(main())


def test_15_alternating_shapes_are_joined_shape_by_shape(pool):
    async def main():
        model = Model()
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        futures = [batcher.submit(job(rows(float(n), width=2 + n % 2))) for n in range(10)]
        model.gate.set()
        await settle(filler, *futures)
        assert [c["rows"] for c in model.calls] == [1, 5, 5]

    asyncio.run(main())


def test_15_a_shape_that_is_always_asked_for_leaves_the_others_their_turns(pool):
    async def main():
        model = Model()
        batcher = make(model, pool, rows=2)
        filler = await busy(batcher, model)
        many = [batcher.submit(job(rows(float(n)))) for n in range(8)]
        one = batcher.submit(job(rows(1.0, width=3)))
        model.gate.set()
        await settle(filler, one, *many)
        widths = [c["width"] for c in model.calls]
        assert widths == [2, 2, 3, 2, 2, 2]

    asyncio.run(main())


@both_ways
def test_16_an_exception_of_the_model_does_not_end_the_queue(pool, cost):
    def once(x):
        if x[0, 0] == 13:
            raise SystemError("unlucky")
        return x.sum(axis=1)

    async def main():
        batcher = make(Model(once), pool, cost=cost)
        for n in (13.0, 1.0, 13.0, 2.0):
            (answer,) = await settle(batcher.submit(job(rows(n))))
            assert isinstance(answer, RuntimeFailed) == (n == 13.0)

    asyncio.run(main())


def test_18_a_model_without_a_batch_dimension_runs_each_request_alone(pool):
    scalar = Signature("scalar", (TensorSpec("x", "FP64", (2, 2)),), (TensorSpec("y", "FP64", (2,)),), batched=False)

    async def main():
        model = Model()
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        futures = [batcher.submit(job(rows(float(n), float(n)), signature=scalar)) for n in range(3)]
        model.gate.set()
        await settle(filler, *futures)
        assert [c["rows"] for c in model.calls] == [1, 2, 2, 2]

    asyncio.run(main())


def test_19_strings_of_different_lengths_are_joined_whole(pool):
    words = Signature("words", (TensorSpec("x", "BYTES", (-1, 1)),), (TensorSpec("y", "BYTES", (-1,)),))

    def word(text):
        array = np.empty((1, 1), object)
        array[0, 0] = text
        return array

    async def main():
        model = Model(lambda x: x[:, 0])
        batcher = make(model, pool)
        filler = batcher.submit(job(word(b"z"), signature=words))
        texts = [b"a", b"a much longer text than that", b"", b"\x00\xff"]
        futures = [batcher.submit(job(word(t), signature=words)) for t in texts]
        await settle(filler, *futures)
        assert [f.result().outputs["y"].tolist() for f in futures] == [[t] for t in texts]

    asyncio.run(main())


def test_a_batch_keeps_the_datatype_of_its_members(pool):
    """2: nothing is upcast by a neighbour, because the signature has made them equal before."""

    async def main():
        model = Model()
        batcher = make(model, pool)
        filler = await busy(batcher, model)
        half = [batcher.submit(job(rows(float(n)).astype(np.float32))) for n in range(3)]
        model.gate.set()
        await settle(filler, *half)
        assert model.calls[-1]["dtype"] == np.float32

    asyncio.run(main())


def test_an_async_model_runs_in_the_event_loop_up_to_its_concurrency(pool):
    running = 0
    most = 0

    async def predict(signature, inputs, outputs, parameters):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        if inputs["x"][0, 0] == 3:
            raise InvalidInput("three")
        return {"y": inputs["x"].sum(axis=1)}

    async def main():
        batcher = Batcher(predict, Limits(concurrency=2), Cost(0.01, 0.0), pool, Seen(), alone="async", is_async=True)
        answers = await settle(*[batcher.submit(job(rows(float(n)))) for n in range(6)])
        assert isinstance(answers[3], InvalidInput)
        assert [a.outputs["y"].tolist() for n, a in enumerate(answers) if n != 3] == [[2.0 * n] for n in (0, 1, 2, 4, 5)]
        assert most == 2

    asyncio.run(main())


def test_chunks_cover_a_job_in_order():
    parts = chunks(job(rows(*map(float, range(7)))), 3)
    assert [p.rows for p in parts] == [3, 3, 1]
    assert np.concatenate([p.arrays["x"] for p in parts])[:, 0].tolist() == list(range(7))


def test_the_probe_tells_fixed_cost_from_cost_per_row():
    clock = [0.0]

    def probe(n):
        clock[0] += 0.010 + 0.001 * n

    cost = measure(probe, lambda: clock[0])
    assert cost.fixed == pytest.approx(0.010)
    assert cost.per_row == pytest.approx(0.001)
    assert cost.of(100) == pytest.approx(0.110)


TEXTS = Signature("texts", (TensorSpec("x", "BYTES", (-1,)),), (Y,))
PAIRS = Signature("pairs", (TensorSpec("x", "FP64", (-1, 2)),), (Y,))


@pytest.mark.parametrize(
    ("signature", "shape", "nbytes", "inline"),
    [
        (PAIRS, (1, 2), 0, True),
        (PAIRS, (1, 2), 1 << 20, True),  # spaces in the JSON, perhaps: the rows tell what it costs
        (SUMS, (1, 2), 0, True),
        (SUMS, (1, 100_000), 0, False),
        (TEXTS, (1,), 100, True),
        (TEXTS, (1,), 1 << 20, False),
    ],
)
def test_rows_of_any_size_leave_the_event_loop_free_when_they_are_large(signature, shape, nbytes, inline):
    """Fault 12: the number of rows does not tell what one long text costs."""
    ran_in = []

    def predict(signature, inputs, outputs, parameters):
        ran_in.append(threading.get_ident())
        return {"y": np.zeros(len(inputs["x"]))}

    async def run():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(predict, Limits(), Cost(1e-6, 1e-7), executor, Seen())
            x = np.zeros(shape, object if signature is TEXTS else np.float64)
            await batcher.submit(Job(signature, {"x": x}, len(x), ("y",), {}, nbytes=nbytes))

    asyncio.run(run())
    assert (ran_in == [threading.get_ident()]) is inline


def test_the_size_of_a_request_is_shared_among_its_chunks():
    job = Job(TEXTS, {"x": np.zeros(10, object)}, 10, ("y",), {}, nbytes=1000)
    assert [(c.rows, c.nbytes) for c in chunks(job, 4)] == [(4, 400), (4, 400), (2, 200)]
