"""The queue of the controller, on a clock that only moves when told to."""

import threading

from deployer.workqueue import WorkQueue


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def made():
    clock = Clock()
    return clock, WorkQueue(clock, jitter=lambda: 1.0)


def due(queue):
    """What could be taken now, without waiting for more."""
    taken = []
    while (wait := queue._until_next()) is not None and wait <= 0:
        taken.append(queue.take())
    return taken


def test_a_key_that_is_added_twice_is_taken_once():
    _, queue = made()
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert due(queue) == ["a", "b"]


def test_a_key_in_work_is_not_given_to_another_hand():
    _, queue = made()
    queue.add("a")
    assert due(queue) == ["a"]
    queue.add("a")
    assert due(queue) == []
    queue.done("a")
    assert due(queue) == ["a"]


def test_a_key_waits_until_it_is_due_and_comes_earlier_when_asked_to():
    clock, queue = made()
    queue.add("a", after=30)
    assert due(queue) == []
    queue.add("a", after=1)
    clock.now = 1.0
    assert due(queue) == ["a"]
    clock.now = 100.0
    assert due(queue) == []


def test_pauses_double_with_every_failure_and_are_forgotten_with_success():
    clock, queue = made()
    queue.add("a")
    for pause in (0.2, 0.4, 0.8, 1.6):
        assert due(queue) == ["a"]
        queue.done("a", failed=True)
        assert due(queue) == []
        clock.now += pause + 1e-9
    assert due(queue) == ["a"]
    queue.done("a")
    queue.add("a")
    assert due(queue) == ["a"]


def test_one_failing_key_holds_up_no_other():
    _, queue = made()
    queue.add("bad")
    assert due(queue) == ["bad"]
    queue.done("bad", failed=True)
    queue.add("good")
    assert due(queue) == ["good"]


def test_closing_ends_those_who_wait():
    queue = WorkQueue()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(queue.take()))
    thread.start()
    queue.close()
    thread.join(5)
    assert taken == [None]


def test_a_key_that_fails_for_days_comes_back_every_minute():
    clock, queue = made()
    queue.add("a")
    for _ in range(1100):
        assert due(queue) == ["a"]
        queue.done("a", failed=True)
        clock.now += 60.0
    assert due(queue) == ["a"]
