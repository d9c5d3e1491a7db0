"""One process at a time makes an output, and GPUs are shared out evenly."""

import multiprocessing
import os
import signal
import time

import pytest

from nme.outputs.locks import at_work, lock_of, one_at_a_time
from nme.runtime.device import take_places

FORK = multiprocessing.get_context("fork")


def until(path):
    """Wait for a file; a killed process that waits for an Event would block whoever sets it."""
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def inside(lock, entered, leave, waited):
    with one_at_a_time(lock, lambda text: waited.touch()):
        entered.touch()
        until(leave)


@pytest.fixture
def other(tmp_path):
    """A process inside the lock of an output; with events to let it leave."""
    lock, leave = lock_of(tmp_path / "job/metrics.parquet"), tmp_path / "leave"
    process = FORK.Process(target=inside, args=(lock, tmp_path / "entered", leave, tmp_path / "waited"))
    process.start()
    assert until(tmp_path / "entered")
    process.lock, process.leave = lock, leave
    yield process
    leave.touch()
    process.join(30)


def test_alone_nobody_waits_and_nothing_is_left(tmp_path):
    lock = tmp_path / "job/running"
    with one_at_a_time(lock, pytest.fail) as waited:
        assert not waited
    assert not lock.exists()
    assert not at_work(lock)


def test_the_second_process_waits_for_the_first(other, tmp_path):
    assert at_work(other.lock)
    entered, waited = tmp_path / "second entered", tmp_path / "second waited"
    second = FORK.Process(target=inside, args=(other.lock, entered, other.leave, waited))
    second.start()
    assert until(waited)
    time.sleep(0.2)
    assert not entered.exists()
    other.leave.touch()
    assert until(entered)
    second.join(30)
    assert not other.lock.exists()


def test_a_killed_process_holds_nothing(other):
    os.kill(other.pid, signal.SIGKILL)
    other.join(30)
    assert other.lock.exists()
    assert not at_work(other.lock)
    with one_at_a_time(other.lock, pytest.fail) as waited:
        assert not waited


def test_many_processes_take_turns(tmp_path):
    """Each reads, waits and writes a number; a lost update shows that two were inside."""
    lock, number = tmp_path / "running", tmp_path / "number"
    number.write_text("0")

    def add():
        for _ in range(5):
            with one_at_a_time(lock, lambda text: None):
                found = int(number.read_text())
                time.sleep(0.002)
                number.write_text(str(found + 1))

    processes = [FORK.Process(target=add) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert number.read_text() == "20"


def places(folder, identifiers, queue, leave, count=1):
    found = take_places(count, identifiers, folder)
    queue.put(found[0] if count == 1 else found)
    until(leave)


def test_processes_are_spread_over_the_gpus(tmp_path):
    queue, leave = FORK.Queue(), tmp_path / "leave"

    def start(identifiers):
        process = FORK.Process(target=places, args=(tmp_path, identifiers, queue, leave))
        process.start()
        return queue.get(timeout=30), process

    found, processes = zip(*(start(["a", "b", "c"]) for _ in range(6)), strict=True)
    assert found == (0, 1, 2, 0, 1, 2)
    processes[4].kill()
    processes[4].join(30)
    last, one_more = start(["a", "b", "c"])
    assert last == 1, "the place of a killed process is free"
    other, also = start(["d"])
    assert other == 0, "it sees another GPU"
    leave.touch()
    for process in (*processes, one_more, also):
        process.join(30)


def test_jobs_with_several_gpus_get_different_ones(tmp_path):
    queue, leave = FORK.Queue(), tmp_path / "leave"

    def start(count):
        process = FORK.Process(target=places, args=(tmp_path, list("abcde"), queue, leave, count))
        process.start()
        return queue.get(timeout=30), process

    found, processes = zip(*(start(count) for count in (2, 2, 3)), strict=True)
    assert found == ([0, 1], [2, 3], [4, 0, 1])
    leave.touch()
    for process in processes:
        process.join(30)
