"""A result to come, for each kind of waiter: our own, and all that asyncio has for futures."""

import asyncio

import pytest

from server.pending import Pending
from server.work import Work


def running(test):
    """The coroutine function as a test; it is given the event loop."""

    def run():
        async def main():
            await test(asyncio.get_running_loop())

        asyncio.run(asyncio.wait_for(main(), 10))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@running
async def test_a_work_goes_on_within_set_result(loop):
    pending, seen = Pending(loop), []

    async def double():
        return 2 * await pending

    Work(double(), seen.append)
    pending.set_result(4)
    assert seen == [8]


@running
async def test_a_task_goes_on_in_a_turn_of_its_own(loop):
    pending = Pending(loop)

    async def double():
        return 2 * await pending

    task = asyncio.create_task(double())
    await asyncio.sleep(0)
    pending.set_result(4)
    assert not task.done()
    assert await task == 8


@running
async def test_asyncios_functions_take_it_for_a_future(loop):
    assert asyncio.isfuture(Pending(loop))
    done, late, gone, failed = (Pending(loop) for _ in range(4))
    done.set_result(1)
    gone.cancel()
    failed.set_exception(ValueError("no"))
    loop.call_soon(late.set_result, 2)
    found = await asyncio.gather(done, late, gone, failed, return_exceptions=True)
    assert found[:2] == [1, 2]
    assert [type(one) for one in found[2:]] == [asyncio.CancelledError, ValueError]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Pending(loop), 0.01)
    assert await asyncio.wait_for(done, 1) == 1


@running
async def test_a_cancelled_task_cancels_what_it_waits_for_and_the_other_way_round(loop):
    for cancel in (lambda task, pending: task.cancel(), lambda task, pending: pending.cancel()):
        pending = Pending(loop)

        async def wait(pending=pending):
            await pending

        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        assert cancel(task, pending)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pending.cancelled()


@running
async def test_a_cancelled_work_is_told_at_once(loop):
    pending, seen = Pending(loop), []

    async def wait():
        try:
            await pending
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    work = Work(wait(), seen.append)
    work.cancel()
    assert seen == ["cancelled"]
    assert not pending.cancel()
    work.cancel()
    assert seen == ["cancelled"]


@running
async def test_a_waiter_that_fails_stops_no_other(loop):
    pending, seen, faults = Pending(loop), [], []
    loop.set_exception_handler(lambda loop, context: faults.append(str(context["exception"])))

    async def fail():
        await pending
        raise KeyError("of mine")

    async def go_on():
        seen.append(await pending)

    Work(fail())
    Work(go_on())
    pending.set_result("here")
    assert seen == ["here"]
    assert faults == ["'of mine'"]


@running
async def test_an_error_is_raised_where_it_is_waited_for(loop):
    pending = Pending(loop)
    with pytest.raises(asyncio.InvalidStateError):
        pending.result()
    pending.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await pending
    assert isinstance(pending.exception(), ValueError)
    assert not pending.cancelled()
