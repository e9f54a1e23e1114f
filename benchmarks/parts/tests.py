"""The tests marked for the device: those that CPUs skip."""

import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jobs import Job, Row

from parts import Chip, needs

REPOSITORY = Path(__file__).resolve().parents[2]


def jobs(chip: Chip, tiny: bool) -> list[Job]:
    """One run of pytest."""
    marker = "tpu" if chip["platform"] == "tpu" else "gpu"
    return [Job(f"tests marked {marker}", marked, {"marker": marker})]


def marked(options: Mapping[str, Any]) -> Iterator[Row]:
    """Runs the files that hold such tests, since others may need packages that are not here."""
    needs("pytest")
    marker = options["marker"]
    files = [
        str(file)
        for file in sorted((REPOSITORY / "tests").rglob("test_*.py"))
        if f"pytest.mark.{marker}" in file.read_text(encoding="utf-8")
    ]
    environment = {**os.environ, "NEOJAX_TEST_DEVICE": marker}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            marker,
            "-v",
            "-p",
            "no:cacheprovider",
            f"--junit-xml={report}",
        ]
        left = max(1.0, options["deadline"] - time.time() - 5)
        try:
            done = subprocess.run(
                command + files, cwd=REPOSITORY, env=environment, timeout=left, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired as e:
            so_far = Counter(re.findall(r" (PASSED|FAILED|ERROR|SKIPPED)\b", (e.stdout or b"").decode()))
            found = ", ".join(f"{count} {how.lower()}" for how, count in so_far.items()) or "none"
            yield {"error": f"not done after {left:.0f} s; of those that were: {found}"}
            return
        if not report.exists():
            yield {
                "error": (
                    f"pytest ended with status {done.returncode}: {done.stdout[-200:]}{done.stderr[-200:]}"
                )
            }
            return
        cases = list(ElementTree.parse(report).iter("testcase"))
    ends = {
        kind: [case for case in cases if case.find(kind) is not None]
        for kind in ("failure", "error", "skipped")
    }
    for case in [*ends["failure"], *ends["error"]]:
        message = next(found for kind in ("failure", "error") if (found := case.find(kind)) is not None)
        text = " ".join(message.get("message", "").split())[:200]
        yield {"what": f"{case.get('classname')}::{case.get('name')}", "error": text}
    yield {
        "passed": len(cases) - sum(map(len, ends.values())),
        "failed": len(ends["failure"]) + len(ends["error"]),
        "not_run": len(ends["skipped"]),
        "test_seconds": sum(float(case.get("time", 0)) for case in cases),
    }


def conclude(rows: list[Row]) -> list[Row]:
    """Nothing to compare."""
    return []
