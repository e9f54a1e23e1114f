"""Training with train.eval_tasks: tasks from local files, asked at every evaluation."""

from collections.abc import Callable

from neojax.config import Config
from neojax.data import tokenizer as tokenizers
from neojax.errors import NeojaxError
from neojax.evaluate.local_tasks import Questions, local_task
from neojax.models import Transformer
from neojax.training import loop
from neojax.training.signals import Stop


def train(config: Config, stop: Stop | None = None) -> None:
    """Runs (or resumes) the training run of `config` to its end, or until `stop` (default: one of its own) is
    asked.

    Raises `NeojaxError` for what the user can mend.
    """
    loop.train(config, stop, EvalTasks)


class EvalTasks:
    """The questions of train.eval_tasks, read. Raises `NeojaxError`."""

    def __init__(self, config: Config, tokenizer: str | None, eos_token_id: int | None):
        if not config.model.causal or config.model.head.kinds != ("lm",):
            raise NeojaxError(
                "train.eval_tasks are for models that continue texts (model.causal, head lm); leave it out"
            )
        if tokenizer is None:
            raise NeojaxError("train.eval_tasks need a tokenizer; name it with data.tokenizer")
        self._tokenizer = tokenizers.parse(tokenizer, "data.tokenizer")
        self._end = eos_token_id
        if eos_token_id is None:
            raise NeojaxError("train.eval_tasks: the tokenizer names no token that stands before a text")
        tasks = [local_task(text) for text in config.train.eval_tasks]
        names = [task.name for task in tasks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise NeojaxError(f"train.eval_tasks has {twice} twice; name every task once")
        train = config.train
        self._tasks = [Questions(t, train.eval_tasks_fewshot, train.eval_tasks_limit or None) for t in tasks]
        self.names = [f"{task.local.name}_{task.metrics[0]}" for task in self._tasks]

    def __call__(self, model: Transformer, unless_stopped: Callable[[], None]) -> dict[str, float]:
        """The metrics of every task, without standard errors, which `neojax eval` gives."""
        model = model.accompanied(self._tokenizer, self._end)
        found: dict[str, float] = {}
        for task in self._tasks:
            unless_stopped()
            row = task.ask(model, errors=False)[-1]
            found |= {f"{task.local.name}_{metric}": row[metric] for metric in task.metrics}
        return found
