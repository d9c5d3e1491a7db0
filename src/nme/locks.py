"""Locks between processes. The kernel lets go of a killed process's, so none is ever stale."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def lock_of(output: Path) -> Path:
    """The lock of the job that makes ``output``, in a folder of its own."""
    return output.with_name("running")


@contextmanager
def one_at_a_time(lock: Path, log: Callable[[str], None] = print) -> Iterator[bool]:
    """Wait until no other process is inside with the same ``lock``, a file that is there only meanwhile.

    Two drivers, or a driver that was killed and its successor, may start the same job; a killed process holds nothing.
    On a file system without locks nobody waits.

    Args:
        lock: the file.
        log: told once, if there is someone to wait for.

    Returns:
        Whether another process was inside.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    waited = False
    while True:
        file = lock.open("a")
        if not take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if not waited:
                log(f"{lock.parent}: another process is at work on this; waiting for it")
            waited = True
            take_lock(file, fcntl.LOCK_EX)
        # Whoever was inside has deleted the file that we have just locked; a third one may hold its successor.
        with suppress(FileNotFoundError):
            if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                break
        file.close()
    try:
        yield waited
    finally:
        lock.unlink(missing_ok=True)
        file.close()


def at_work(lock: Path) -> bool:
    """Whether a process is inside ``one_at_a_time`` with this lock."""
    try:
        with lock.open("rb") as file:
            return not take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False


def take_lock(file: IO, how: int) -> bool:
    """Lock the file until it is closed; False if another process holds it and ``how`` (as of ``flock``) is not to wait.

    True also on a file system that knows no locks.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    return True
