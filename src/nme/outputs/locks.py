"""Locks between processes; of a killed one the kernel lets go.

Not by ``filelock``: it leaves its file, refuses other users' files, and makes one that outlives a killed process where
the file system has no locks.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import IO

WAIT_SECONDS = 0.5


class Lock(Enum):
    """What came of an attempt to take a lock; UNKNOWN: the file system has none."""

    OURS = "ours"
    TAKEN = "taken"
    UNKNOWN = "unknown"


def lock_of(output: Path) -> Path:
    """The lock of the job that makes ``output``, in a folder of its own."""
    return output.with_name("running")


@contextmanager
def one_at_a_time(lock: Path, log: Callable[[str], None] = print) -> Iterator[bool]:
    """Wait until no other process is inside with the same ``lock``, a file that is there only meanwhile.

    Two drivers, or a driver that was killed and its successor, may start the same job; a killed process holds nothing.
    On a file system without locks nobody waits. On some shared ones the lock of a node that has failed stays; deleting
    the file ends the waiting.

    Args:
        lock: the file.
        log: told once, if there is someone to wait for.

    Returns:
        Whether another process was inside.
    """
    new = not lock.parent.exists()
    waited = False
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("a")
        except FileNotFoundError:  # whoever was inside has just deleted the folder that was new
            continue
        if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is Lock.TAKEN:
            if not waited:
                log(
                    f"{lock}: another process is at work on this; waiting for it (has its node failed? delete the file)"
                )
            waited = True
        else:
            # Whoever was inside may have deleted the file that we have locked; a third one may hold its successor.
            with suppress(FileNotFoundError):
                if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                    break
        file.close()
        time.sleep(WAIT_SECONDS if waited else 0)
    try:
        yield waited
    finally:
        lock.unlink(missing_ok=True)
        file.close()
        if new:
            with suppress(OSError):  # not empty: something was made
                lock.parent.rmdir()


def at_work(lock: Path) -> bool:
    """Whether a process is inside ``one_at_a_time`` with this lock; without locks, whether its file is there."""
    try:
        with lock.open("rb") as file:
            return take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB) is not Lock.OURS
    except FileNotFoundError:
        return False


def take_lock(file: IO, how: int) -> Lock:
    """Lock the file until it is closed, unless another process holds it; ``how`` is that of ``flock``."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return Lock.UNKNOWN
    return Lock.OURS
