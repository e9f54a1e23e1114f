"""A training step compiled in a process of its own, which can be ended while the compiler works, and gives
back the memory that the compiler took."""

import multiprocessing
import signal
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection

import jax

from neojax.config import Config
from neojax.errors import NeojaxError
from neojax.layout.topology import tpu_devices
from neojax.plan.buffers import Memory
from neojax.plan.compiled import Moved, compile_step


@dataclass(frozen=True)
class Answer:
    """What the compiler says of a step, as `neojax.plan.compiled.Compiled` has it."""

    memory: Memory | None
    fits: bool
    moved: tuple[Moved, ...]


def compile_apart(config: Config, topology: str, timeout: float | None = None) -> Answer | None:
    """The step of `config`, compiled with little effort for a TPU slice; None where that takes longer than
    `timeout` seconds. Ctrl-C ends the compilation at once, and is raised as ever. Raises `NeojaxError` where
    the layout does not fit, or the compiler refuses the step for another reason than memory."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, config, topology), daemon=True)
    try:
        process.start()
        theirs.close()
        if not mine.poll(timeout):
            return None
        answer = mine.recv()
    except EOFError:
        raise NeojaxError("the compiler ended without an answer; is there memory left here?") from None
    finally:
        if process.pid is not None:
            process.kill()  # nothing is lost, and libtpu tells of any other signal at length
            process.join()
    if isinstance(answer, str):
        raise NeojaxError(answer)
    return answer


def _answer(pipe: Connection, config: Config, topology: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C the caller decides
    warnings.simplefilter("ignore")  # of a mesh that splits the torus: the estimate knows
    jax.config.update("jax_platforms", "cpu")  # nothing runs
    answer: Answer | str
    try:
        one = compile_step(config, tpu_devices(topology), quick=True)
        answer = Answer(one.memory, one.fits, one.moved)
    except NeojaxError as e:
        answer = str(e)
    pipe.send(answer)
