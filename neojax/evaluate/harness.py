"""Tasks of lm-evaluation-harness, run on a model of ours."""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from traceback import walk_tb
from types import ModuleType
from typing import Any

from neojax.errors import NeojaxError, nearest
from neojax.models import Transformer

BOOTSTRAP = 1000  # resamples behind standard errors that have no formula; the harness's 100,000 take minutes


@dataclass(frozen=True)
class Chat:
    """Requests as conversations, written by `template` (Jinja), with what the `system` says, and examples as
    questions and answers before the question, or (not `by_turns`) all in one message."""

    template: str
    system: str = ""
    by_turns: bool = True

    def options(self) -> dict[str, Any]:
        """What the harness is told."""
        return {
            "apply_chat_template": True,
            "fewshot_as_multiturn": self.by_turns,
            "system_instruction": self.system or None,
        }


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition(".")[0] == "neojax":
            raise
        raise NeojaxError(
            f"lm-evaluation-harness needs {e.name}, which is not installed: pip install 'neojax[eval]'"
        ) from None


def evaluate(
    model: Transformer,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | None = None,
    chat: Chat | None = None,
) -> dict[str, Any]:
    """The results of `tasks`, by the names that the harness or the yaml files in `include_path` give them, as
    the harness has them (`results`, `n-shot`, `n-samples`, `configs`, ...). num_fewshot: examples before each
    question; None: as each task says. limit: how many documents of each. chat: how requests are written as
    conversations; None: they are not. Raises `NeojaxError`, also where a task cannot be read."""
    own = _module("neojax.evaluate.lm_eval")
    lm = own.NeojaxLM(model, chat_template=None if chat is None else chat.template)
    manager = _manager(tasks, include_path)
    try:
        loaded = manager.load(list(tasks))
    except Exception as e:  # of data sets' hubs, yaml, templates, tasks' own code
        raise NeojaxError(
            f"--tasks {','.join(tasks)} cannot be read: {_told(e)}; tasks of local files are read with "
            "--include-path DIR"
        ) from None
    manager.load = lambda _: loaded  # once is enough
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the harness says there what it does
            return _module("lm_eval").simple_evaluate(
                lm,
                tasks=list(tasks),
                num_fewshot=num_fewshot,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=BOOTSTRAP,
                log_samples=False,
                **({} if chat is None else chat.options()),
            )
    except NeojaxError:
        raise
    except Exception as e:
        if any(frame.f_globals.get("__name__") == own.__name__ for frame, _ in walk_tb(e.__traceback__)):
            raise  # of our model
        raise NeojaxError(
            f"--tasks {','.join(tasks)}: the harness cannot ask them so: {_told(e)}; --num-fewshot and "
            "--limit must suit the documents of a task"
        ) from None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """The harness's index of tasks; its own are left out, which takes seconds, where they are not asked
    for."""
    make = _module("lm_eval.tasks").TaskManager
    if include_path is not None:
        manager = make(include_path=include_path, include_defaults=False)
        if all(name in manager.all_tasks for name in tasks):
            return manager
    manager = make(include_path=include_path)
    for name in tasks:
        if name not in manager.all_tasks:
            near = nearest(name, manager.all_tasks)
            raise NeojaxError(
                f"lm-evaluation-harness has no task {name}"
                + (f"; did you mean {near}?" if near else "; `lm-eval ls tasks` lists them")
            )
    return manager


def plain(results: dict[str, Any]) -> dict[str, Any]:
    """The results as JSON has them: functions of tasks by their names."""
    return json.loads(json.dumps(results, default=str))


def table(results: dict[str, Any]) -> str:
    """The results for people, as the harness shows them."""
    make_table = _module("lm_eval.utils").make_table
    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables)
