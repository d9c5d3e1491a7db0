"""Locks between processes. The kernel releases a killed process's lock.

``filelock`` is not used: it leaves its file behind, refuses files of other users, and on a file system without locks
creates a file that outlives a killed process.
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
    """Result of an attempt to take a lock; UNKNOWN: the file system does not support locks."""

    OURS = "ours"
    TAKEN = "taken"
    UNKNOWN = "unknown"


def lock_of(output: Path) -> Path:
    """Path of the lock of the job that writes ``output``; each job has its own folder."""
    return output.with_name("running")


@contextmanager
def one_at_a_time(lock: Path, log: Callable[[str], None] = print) -> Iterator[bool]:
    """Hold ``lock``, a file that exists only meanwhile; wait first if a different process holds it.

    Two drivers, or a killed driver and its successor, may start the same job; a killed process holds no lock.
    On a file system without locks no process waits. On some shared file systems, the lock of a failed node remains;
    deleting the file ends the waiting.

    Args:
        lock: the file.
        log: called once with a sentence, if this process has to wait.

    Yields:
        True if this process had to wait.
    """
    new = not lock.parent.exists()
    waited = False
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = lock.open("a")
        except FileNotFoundError:  # the previous holder has just deleted the new folder
            continue
        if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is Lock.TAKEN:
            if not waited:
                log(f"{lock}: waiting for the process that holds this lock. If its node failed, delete the file.")
            waited = True
        else:
            # The previous holder may have deleted the file that we locked; a third process may hold a new file.
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
            with suppress(OSError):  # not empty: the job wrote a file
                lock.parent.rmdir()


def at_work(lock: Path) -> bool:
    """True if a process holds this lock in ``one_at_a_time``; on a file system without locks, if the file exists."""
    try:
        with lock.open("rb") as file:
            return take_lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB) is not Lock.OURS
    except FileNotFoundError:
        return False


def take_lock(file: IO, how: int) -> Lock:
    """Lock the file until it is closed, unless a different process holds it; ``how`` is the argument of ``flock``."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        return Lock.UNKNOWN
    return Lock.OURS
