"""Tasks from local files, asked as likelihoods: examples before questions, answers, and what they come to.

Without lm-evaluation-harness, and with its arithmetic: on the same file and weights the numbers are its.
"""

import random
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neojax.data.records import Record, read_records, with_labels
from neojax.errors import NeojaxError, suggest
from neojax.evaluate import bias
from neojax.evaluate.intervals import bootstrap_error, mean_error
from neojax.evaluate.requests import log_likelihoods
from neojax.evaluate.tasks import TASKS, Asked, Task, question
from neojax.models import Transformer
from neojax.storage.remote import place
from neojax.training.measures import f1, matthews

SEED = 1234  # of the examples, as the harness has it
GROUP = 2048  # questions whose requests are scored in one go


class Local(NamedTuple):
    """A task by its name, the file (or folder or .zip of files, each a set) of its questions, and the file
    that examples come from; empty: the questions' own."""

    name: str
    file: str
    examples: str = ""


class Asking(NamedTuple):
    """A question, and the row that it is from."""

    record: Record
    asked: Asked


def local_task(text: str) -> Local:
    """NAME=FILE or NAME=FILE+EXAMPLES, parsed. Raises `NeojaxError`."""
    name, _, files = text.partition("=")
    file, _, examples = files.partition("+")
    known = [*TASKS, *bias.TASKS]
    if name not in known:
        raise NeojaxError(f"no task of local files is called {name}{suggest(name, known)}")
    if not file:
        raise NeojaxError(f"task {text}: expected {name}=FILE, or {name}=FILE+FILE_OF_EXAMPLES")
    return Local(name, file, examples)


def evaluate(
    model: Transformer, local: Local, *, num_fewshot: int = 0, limit: int | None = None
) -> list[dict[str, Any]]:
    """What a task comes to, see `Questions`."""
    return Questions(local, num_fewshot, limit).ask(model)


class Questions:
    """The questions of a task, read, each with what stands before it; `metrics` are what is measured.

    num_fewshot: examples before each question. limit: how many questions of each set. Raises `NeojaxError`,
    which names the file and row of what is not as the task has it.
    """

    def __init__(self, local: Local, num_fewshot: int = 0, limit: int | None = None):
        self.local, self._num_fewshot = local, num_fewshot
        self._records: list[Record] = []
        self._sets: list[tuple[str, list[tuple[str, Asked]]]] = []
        task = TASKS.get(local.name)
        if num_fewshot and (task is None or task.leaves_out is None):
            raise NeojaxError(f"task {local.name} takes no examples; ask for 0")
        if local.examples and not num_fewshot:
            raise NeojaxError(
                f"task {local.name}: no examples are asked for, and {local.examples} holds some; say how "
                f"many with --num-fewshot or train.eval_tasks_fewshot, or leave +{local.examples} out"
            )
        if task is None:
            self.metrics = bias.METRICS[local.name]
            self._records = read_records(local.file)[:limit]
            bias.pairs_of(local.name, self._records)  # raises for what is no pair
            return
        self.metrics = task.metrics
        pool = [] if not local.examples else asking(task, read(local.name, place(local.examples)))
        with sets(local) as files:
            for name, file in files.items():
                own = asking(task, read(local.name, file))
                before = prompts(task, own[:limit], pool or own, num_fewshot)
                self._sets.append((name, [(shots, each.asked) for shots, each in zip(before, own)]))

    def ask(self, model: Transformer, errors: bool = True) -> list[dict[str, Any]]:
        """What the answers of `model` come to: a row for each set, and behind several one of all, with its
        questions, and each metric with its standard error (`acc`, `acc_stderr`, ...; None where there is
        none, or where `errors` are not asked for)."""
        local = self.local
        if local.name in bias.TASKS:
            return bias.evaluate(model, local.name, local.file, self._records)
        task, every, rows = TASKS[local.name], [], []
        about = {"file": local.file, "num_fewshot": self._num_fewshot}
        for name, questions in self._sets:
            results = _results(model, task, questions)
            every += results
            rows.append({"task": name, **about, **_measured(task, results, errors)})
        if len(rows) > 1:
            rows.append({"task": local.name, **about, **_measured(task, every, errors)})
        return rows


@contextmanager
def sets(local: Local) -> Iterator[dict[str, Path]]:
    """Within, the files of a task by the names of its sets: `local.name`, or NAME_SET of a folder or .zip of
    them. Raises `NeojaxError`."""
    path = place(local.file)
    with ExitStack() as stack:
        if path.suffix == ".zip":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            try:
                with zipfile.ZipFile(path) as archive:
                    archive.extractall(folder)
            except (OSError, RuntimeError, zlib.error, zipfile.BadZipFile) as e:  # a password, broken data
                raise NeojaxError(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from None
            path = Path(folder)
        if not path.is_dir():
            yield {local.name: path}
            return
        files = sorted(file for file in path.rglob("*.jsonl") if not _is_hidden(file.relative_to(path)))
        if not files:
            raise NeojaxError(f"{local.file} holds no .jsonl files")
        try:
            yield {f"{local.name}_{file.stem}": file for file in files}
        except NeojaxError as e:  # of a .zip's, which are elsewhere now
            raise NeojaxError(str(e).replace(str(path), local.file)) from None


def _is_hidden(path: Path) -> bool:
    """Whether a file is none of a task's, as what macOS puts into archives."""
    return any(part.startswith((".", "__")) for part in path.parts)


def read(name: str, path: Path) -> list[Record]:
    """The rows of a file of task `name`. Raises `NeojaxError`."""
    if name == "lambada" and path.suffix == ".txt":
        lines = _lines(path)
        texts = (line.strip() for line in lines)  # a blank at the end would be the word that is asked
        return [Record(f"{path}:{i}", {"text": text}) for i, text in enumerate(texts, 1) if text]
    records = read_records(path)
    if name == "cola" and path.suffix == ".tsv" and "sentence" not in records[0].values:
        return read_records(path, header=False)  # GLUE's own
    return with_labels(path, records)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as e:
        raise NeojaxError(f"cannot read {path}: {e.strerror or e}") from None
    except UnicodeDecodeError as e:
        raise NeojaxError(f"{path}: byte {e.start} is not UTF-8; save the file as UTF-8") from None


def asking(task: Task, records: Sequence[Record]) -> list[Asking]:
    """The questions of rows. Raises `NeojaxError`, which names the row."""
    found = []
    for record in records:
        try:
            found.append(Asking(record, question(task, record.values)))
        except NeojaxError as e:
            raise NeojaxError(f"{record.where}: {e}") from None
    return found


def prompts(
    task: Task, questions: Sequence[Asking], pool: Sequence[Asking], num_fewshot: int
) -> Iterator[str]:
    """What stands before each question: examples of the pool, drawn as the harness draws them."""
    draw = random.Random(SEED)
    if num_fewshot and len(pool) < num_fewshot + bool(task.leaves_out):
        raise NeojaxError(
            f"{num_fewshot} examples are asked for, and {len(pool)} rows are there to draw from"
        )
    for own in questions:
        chosen: list[Asking] = []
        if num_fewshot and task.leaves_out:
            drawn = draw.sample(pool, num_fewshot + 1)
            chosen = [each for each in drawn if each.record.values != own.record.values][:num_fewshot]
            if len(chosen) < num_fewshot:  # rows that are there twice
                others = [each for each in pool if each.record.values != own.record.values]
                if len(others) < num_fewshot:
                    raise NeojaxError(
                        f"{own.record.where}: {num_fewshot} examples are asked for, and {len(others)} rows "
                        "that differ from this one are there to draw from"
                    )
                chosen = draw.sample(others, num_fewshot)
        elif num_fewshot:
            chosen = draw.sample(pool, num_fewshot)
        yield "".join(f"{example(each.asked)}\n\n" for each in chosen)


def example(asked: Asked) -> str:
    """A question with its right answer."""
    if len(asked.contexts) > 1:
        return f"{asked.contexts[asked.gold]} {asked.answers[0]}"
    return f"{asked.contexts[0]} {asked.answers[asked.gold]}"


class _Result(NamedTuple):
    """Of one question: the log-likelihood of each answer and its length in characters, whether the first is
    greedy, and which is right."""

    nats: list[float]
    lengths: list[int]
    is_greedy: bool
    gold: int

    @property
    def said(self) -> int:
        return int(np.argmax(self.nats))

    @property
    def said_by_length(self) -> int:
        return int(np.argmax(np.array(self.nats) / np.maximum(self.lengths, 1)))


def _results(model: Transformer, task: Task, questions: Sequence[tuple[str, Asked]]) -> list[_Result]:
    """The answers to questions, each with what stands before it."""
    found: list[_Result] = []
    for start in range(0, len(questions), GROUP):
        group = questions[start : start + GROUP]
        requests = [
            [(before + context, task.delimiter + answer) for context, answer in asked.requests]
            for before, asked in group
        ]
        scores = iter(log_likelihoods(model, [pair for pairs in requests for pair in pairs]))
        for _, asked in group:
            lengths = [len(answer) for _, answer in asked.requests]
            likelihoods = [next(scores) for _ in lengths]
            nats = [each for each, _ in likelihoods]
            found.append(_Result(nats, lengths, likelihoods[0][1], asked.gold))
    return found


def _measured(task: Task, results: Sequence[_Result], errors: bool) -> dict[str, Any]:
    """What answers come to."""
    row: dict[str, Any] = {"questions": len(results)}
    said, gold = (np.array(column) for column in zip(*((each.said, each.gold) for each in results)))
    first = np.array([each.nats[0] for each in results])
    resampled: dict[str, Callable[[np.ndarray], float]] = {
        "perplexity": lambda at: float(np.exp(-first[at].mean())),
        "mcc": lambda at: matthews(said[at], gold[at]),
        "f1": lambda at: _f1(said[at], gold[at], len(task.labels)),
    }
    for metric in task.metrics:
        if measure := resampled.get(metric):
            row[metric] = measure(np.arange(len(results)))
            # The harness gives no error of the mean over the classes of CB.
            has_error = errors and (metric != "f1" or len(task.labels) == 2)
            row[f"{metric}_stderr"] = bootstrap_error(measure, len(results)) if has_error else None
            continue
        if len(results[0].nats) == 1:
            hits = [float(each.is_greedy) for each in results]
        else:
            hits = [float((e.said if metric == "acc" else e.said_by_length) == e.gold) for e in results]
        row |= {metric: float(np.mean(hits)), f"{metric}_stderr": mean_error(hits)}
    return row


def _f1(said: np.ndarray, gold: np.ndarray, classes: int) -> float:
    """Of class 1 where there are two, else the mean over all, also those that do not occur."""
    if classes == 2:
        return f1(said, gold)
    return float(np.mean([f1((said == k).astype(int), (gold == k).astype(int)) for k in range(classes)]))
