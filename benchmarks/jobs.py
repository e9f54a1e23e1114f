"""Measurements under a deadline, kept as they come: jobs in processes of their own, one at a time.

A job is a function of options that yields rows: dictionaries with `what` was measured, unique in its part,
and numbers. One accelerator's memory belongs to one job at a time, and what a job leaves behind ends with its
process. A job that does not fit into what is left of its part's time is skipped and says so; one that runs
past it is stopped.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

Row = dict[str, Any]
Measure = Callable[[Mapping[str, Any]], Iterator[Row]]
MARGIN = 5.0  # seconds that a process gets to end, and its part to be written


class Skip(Exception):
    """Why a job has nothing to measure here."""


@dataclass(frozen=True)
class Job:
    """One measurement: `measure(options)` yields its rows, and takes at least `least` seconds, at most
    `most`."""

    what: str
    measure: Measure
    options: Mapping[str, Any] = field(default_factory=dict)
    least: float = 0.0
    most: float = float("inf")


def run(jobs: Iterable[Job], deadline: float, in_process: bool = False) -> Iterator[Row]:
    """The rows of all jobs, one job after another, until `deadline` (of `time.time`); what is left out is a
    row too, with `skipped` or `error` in place of numbers."""
    for job in jobs:
        left = deadline - time.time()
        if left <= job.least:
            needs = f"takes about {job.least:.0f} s, and " if job.least else ""
            yield {"what": job.what, "skipped": f"{needs}{max(left, 0):.0f} s are left"}
            continue
        until = min(deadline, time.time() + job.most)
        options = {**job.options, "deadline": until}
        for row in _here(job.measure, options) if in_process else _apart(job.measure, options):
            yield {"what": job.what, **row}


def fitting(
    items: Iterable[Any], options: Mapping[str, Any], first: float = 0.0
) -> Iterator[tuple[Any, str]]:
    """Each of `items` with "", or with why it is skipped: where less time is left than the longest so far
    took (before there is one, `first` seconds)."""
    took: list[float] = []
    for item in items:
        start = time.time()
        longest = max(took, default=first)
        left = options["deadline"] - start
        if left < longest * 1.2:
            yield item, f"takes about {longest:.0f} s, and {max(left, 0):.0f} s are left"
        else:
            yield item, ""
            took.append(time.time() - start)


def _here(measure: Measure, options: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a job in this process; what goes wrong is a row."""
    try:
        yield from measure(options)
    except Skip as e:
        yield {"skipped": str(e)}
    except Exception as e:
        yield {"error": one_line(e)}


def _serve(measure: Measure, options: Mapping[str, Any], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    for row in _here(measure, options):
        pipe.send(row)
    pipe.send(None)


def _apart(measure: Measure, options: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a job in a process of its own, which is ended at the deadline, or when nobody wants more
    rows."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(measure, options, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        while ours.poll(max(0.0, options["deadline"] - time.time())):
            row = ours.recv()
            if row is None:
                process.join(MARGIN)
                return
            yield row
        yield {"skipped": "stopped: it ran past its time"}
    except EOFError:  # the system ended it, for its memory, say
        process.join(MARGIN)
        yield {"error": f"the process ended with status {process.exitcode}"}
    finally:
        for end in (process.terminate, process.kill):
            if process.is_alive():
                end()
                process.join(MARGIN)
        ours.close()


def one_line(error: BaseException) -> str:
    """An error's type and the beginning of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]
