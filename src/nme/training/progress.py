"""Progress of a long job: a bar on a terminal, plain lines in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES_PER_MEMBER = 5


@contextmanager
def training_progress(members: int, epochs: int) -> Iterator[tuple[Callable[[dict], None], Callable[[str], None]]]:
    """Yield two functions: the first takes the row of each finished epoch, the second a sentence for the log.

    Args:
        members: number of members to train.
        epochs: epochs of each member.
    """
    console = Console(stderr=True)

    def sentence(row: dict) -> str:
        where = f"seed {row['seed']}  epoch {row['epoch']}/{epochs}"
        if row["diverged"]:
            return f"{where}  diverged"
        tested = "" if row["test_accuracy"] is None else f"  test accuracy {row['test_accuracy']:.4f}"
        return f"{where}  train loss {row['train_loss']:.4f}{tested}"

    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("training", total=members * epochs)

            def show(row: dict) -> None:
                skipped = epochs - row["epoch"] if row["diverged"] else 0
                bar.update(task, advance=1 + skipped, description=sentence(row))

            yield show, console.print
        return

    def line(row: dict) -> None:
        if row["diverged"] or row["epoch"] == epochs or row["epoch"] % max(1, epochs // LINES_PER_MEMBER) == 0:
            print(f"{sentence(row)}  {row['seconds']:.2f} s/epoch", file=sys.stderr, flush=True)

    yield line, lambda text: print(text, file=sys.stderr, flush=True)
