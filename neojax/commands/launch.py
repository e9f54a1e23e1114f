"""`neojax launch --processes N -- train CONFIG ...`: several processes of one job on this machine.

For machines with several GPUs, one process each or an equal share of them, and to rehearse a pod on a laptop,
where every process has fake CPU devices.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from neojax.errors import NeojaxError

MOST = 4096
END_SECONDS = (
    45.0  # after one process has failed, the others have this long to notice: a heartbeat's 30, and to end
)


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax launch`."""
    parser.add_argument(
        "--processes", type=int, required=True, metavar="N", help="how many processes to start"
    )
    parser.add_argument(
        "--cpu-devices",
        type=int,
        default=0,
        metavar="M",
        help="fake CPU devices of each; default: share the GPUs",
    )
    parser.add_argument(
        "command",
        nargs=REMAINDER,
        metavar="-- COMMAND ...",
        help="a neojax command, as in: -- train CONFIG.yml",
    )


def run(args: Namespace) -> None:
    """Starts the processes, passes signals on to them, and ends as the first of them that failed did."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise NeojaxError(
            "launch: give the command behind --, as in: neojax launch --processes 4 -- train CONFIG.yml"
        )
    if not 1 <= args.processes <= MOST:
        raise NeojaxError(f"--processes {args.processes}: expected 1 to {MOST}")
    if args.cpu_devices < 0:
        raise NeojaxError(f"--cpu-devices {args.cpu_devices}: expected a count")
    if args.cpu_devices:
        command = [*command, f"mesh.cpu_devices={args.cpu_devices}"]
    status = Launched(command, environments(args.processes, bool(args.cpu_devices))).wait()
    if status:
        sys.exit(status)


def environments(processes: int, on_cpu: bool) -> list[dict[str, str]]:
    """What tells each process which of how many it is, and which of the machine's GPUs are its own."""
    from neojax.layout.processes import local_gpus, visible_gpus

    gpus = 0 if on_cpu else visible_gpus(os.environ)
    address = f"127.0.0.1:{free_port()}"
    found = []
    for i in range(processes):
        own = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(i),
        }
        ids = local_gpus(processes, i, gpus) if processes > 1 else None
        if ids is not None:
            own["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, ids))
        found.append({**os.environ, **own})
    return found


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Launched:
    """Running processes. The first writes to our streams as it is, the others line by line behind their
    number."""

    def __init__(self, command: Sequence[str], environments: Sequence[dict[str, str]]):
        self.processes: list[subprocess.Popen] = []
        self.readers: list[threading.Thread] = []
        for i, environment in enumerate(environments):
            pipes: dict[str, Any] = {} if i == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(
                [sys.executable, "-m", "neojax", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                # A group of its own: Ctrl-C reaches the processes once, through us, since a second one means
                # at once.
                start_new_session=True,
                **pipes,
            )
            self.processes.append(process)
            if i:
                reader = threading.Thread(target=self._copy, args=(i, process), daemon=True)
                reader.start()
                self.readers.append(reader)

    @staticmethod
    def _copy(i: int, process: subprocess.Popen) -> None:
        assert process.stdout
        for line in process.stdout:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"[{i}] {line.decode(errors='replace')}")
                sys.stderr.flush()

    def wait(self) -> int:
        """The exit status of the process that failed first, 0 where none did."""
        passed = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            passed.append(signal.SIGHUP)
        before = {s: signal.signal(s, lambda number, _: self.send(number)) for s in passed}
        try:
            return self._wait()
        finally:
            self.send(signal.SIGKILL)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> int:
        status, failed = 0, None
        running = list(self.processes)
        while running:
            for process in list(running):
                code = process.poll()
                if code is None:
                    continue
                running.remove(process)
                if code and failed is None:
                    # Processes that a signal ended have negative codes here, and 128 + its number in a shell.
                    status, failed = (code if code > 0 else 128 - code), time.monotonic()
            if running and failed is not None and time.monotonic() - failed > END_SECONDS:
                # It may wait for one that will never join it, for as long as hosts of a pod may start apart.
                names = ", ".join(str(self.processes.index(process)) for process in running)
                print(
                    f"error: process {names} had not ended {END_SECONDS:.0f} s after another failed; killed",
                    file=sys.stderr,
                )
                self.send(signal.SIGKILL)
                failed = float("inf")
            time.sleep(0.05)
        for reader in self.readers:
            reader.join(timeout=5)
        return status

    def send(self, number: int) -> None:
        """Sends a signal to every process that still runs."""
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)
