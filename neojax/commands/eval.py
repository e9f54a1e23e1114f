"""`neojax eval RUN_OR_DIR [DATA ...] [--stride N] [--by-document] [--json] [mesh.key=value ...]`."""

import re
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from neojax import config
from neojax.arguments import text, whole
from neojax.commands.chat import template_for
from neojax.commands.opening import add_adapter, opened
from neojax.convert import hf
from neojax.data.inputs import expand
from neojax.data.readers import may_have_keys
from neojax.errors import NeojaxError
from neojax.evaluate import bias, harness, local_tasks
from neojax.evaluate.held_out import Reading, documents, is_stored
from neojax.evaluate.likelihood import Measured, Tally, measure
from neojax.evaluate.local_tasks import local_task
from neojax.evaluate.tasks import TASKS
from neojax.loading import find_run, with_adapter
from neojax.models import Transformer
from neojax.output import json_line
from neojax.sampling.requests import usable
from neojax.storage.remote import place

OVERRIDE = re.compile(r"(model|mesh|data|train)\.[a-z_.0-9]+=")
"""How a word begins that sets a key."""


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of `neojax eval`."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_DIR",
        help="a run directory, RUN/checkpoints/STEP, or a Hugging Face directory",
    )
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="held-out data: token stores, folders that `neojax prepare` wrote, TFRecords, or files, folders "
        "and globs of text (default: the run's data.validation); mesh.key=value among them, such as "
        "mesh.cpu_devices=8, says what to run on (default: one device)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="windows that begin every N tokens, with nothing before a document, as on Hugging Face's page "
        "on perplexity (default: disjoint windows after the end-of-document token, as lm-evaluation-harness)",
    )
    parser.add_argument(
        "--wikitext",
        action="store_true",
        help="the text is a raw file of WikiText: its pages are documents, shown detokenized and counted as "
        "they are; with --stride, its lines joined as Hugging Face does",
    )
    parser.add_argument(
        "--text-key", metavar="KEY", help="key of JSON lines and Parquet that holds the text (default: text)"
    )
    parser.add_argument(
        "--tasks",
        default="",
        metavar="A,B",
        help="tasks instead of DATA: NAME=FILE, or NAME=FILE+FILE_OF_EXAMPLES, asks what a local file holds "
        f"({', '.join((*TASKS, *bias.TASKS))}); NAME is a task of lm-evaluation-harness (pip install "
        "'neojax[eval]')",
    )
    number = parser.add_argument
    number("--num-fewshot", type=int, metavar="N", help="examples before each question (default: the task's)")
    number("--limit", type=int, metavar="N", help="the first N documents of each task (default: all)")
    parser.add_argument(
        "--include-path", metavar="DIR", help="a folder with yaml files of tasks, such as of local files"
    )
    add_adapter(parser)
    parser.add_argument(
        "--chat",
        action="store_true",
        help="ask tasks of lm-evaluation-harness in conversations, as the model's chat template writes them",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="with --chat: a template in Jinja (default: the model's own); plain: as User: and Assistant:",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="with --chat: what the model is told before all else"
    )
    parser.add_argument(
        "--single-turn",
        action="store_true",
        help="with --chat: examples and question in one message (default: an example is a turn)",
    )
    parser.add_argument("--by-document", action="store_true", help="show every document, too")
    parser.add_argument(
        "--dtype", default="auto", help="compute in float32 or bfloat16 (default: bfloat16 on TPU and GPU)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each DATA")
    parser.set_defaults(overrides=[])  # those behind options


def run(args: Namespace) -> None:
    """Prints what the arguments ask for."""
    overrides = [word for word in args.data if OVERRIDE.match(word) and not place(word).exists()]
    named = [word for word in args.data if word not in overrides]
    overrides += args.overrides
    if other := next((word for word in overrides if not word.startswith("mesh.")), None):
        raise NeojaxError(
            f"{other}: expected DATA, or a key of the mesh to run on, such as mesh.cpu_devices=8; no other "
            "key is for this command"
        )
    tasks = named_tasks(args.tasks)
    check(args, named, tasks)
    chat = chat_of(args)
    for word in tasks:
        if "=" in word:
            local_task(word)  # before the weights are read
    files = [file for word in named if not is_stored(word) for file in expand([word])[0]]  # raises, too
    if args.text_key is not None and not any(may_have_keys(file.name) for file in files):
        what = f"{named[0]} holds {'text itself' if files else 'tokens'}" if named else "no text is named"
        raise NeojaxError(
            f"--text-key {args.text_key} is for text in JSON lines and Parquet, and {what}; leave it out"
        )
    data = [] if tasks else [(word, "") for word in named] or held_out_of(args.source)
    model = usable(opened(args, overrides, args.dtype), "score a text token by token")
    for row in task_rows(model, tasks, args.num_fewshot, args.limit, args.include_path, chat):
        if not jax.process_index():
            print(json_line(row) if args.json else task_table(row), flush=True)
    reading = Reading(
        args.text_key or Reading.text_key, args.wikitext, joined=args.wikitext and args.stride is not None
    )
    for path, split in data:
        for row in rows(model, path, split, reading, args.stride, args.by_document):
            if not jax.process_index():
                print(json_line(row) if args.json else table(row), flush=True)


def named_tasks(text: str) -> list[str]:
    """The tasks of --tasks, which commas part; one that is part of the name of a file that is there does
    not."""
    words = [word for word in text.split(",") if word.strip()]
    tasks: list[str] = []
    while words:
        ends = range(len(words), 1, -1) if "=" in words[0] else ()
        end = next((n for n in ends if _is_there(",".join(words[:n]))), 1)
        tasks.append(",".join(words[:end]).lstrip())
        words = words[end:]
    return tasks


def _is_there(task: str) -> bool:
    _, _, files = task.partition("=")
    return all(file and place(file).exists() for file in files.split("+", 1))


def check(args: Namespace, data: list[str], tasks: list[str]) -> None:
    """Raises `NeojaxError` for arguments that do not go together, or are no numbers that are good."""
    of_tasks = {"--num-fewshot": args.num_fewshot, "--limit": args.limit, "--include-path": args.include_path}
    for name, value in of_tasks.items():
        if value is not None and not tasks:
            raise NeojaxError(f"{name} is for tasks; name some with --tasks")
    other = args.stride is not None or args.wikitext or args.by_document or args.text_key is not None
    if tasks and (data or other):
        what = data[0] if data else "--stride, --wikitext, --by-document and --text-key"
        raise NeojaxError(f"--tasks have texts of their own; leave {what} out, or run another command for it")
    if args.include_path is not None and all("=" in word for word in tasks):
        raise NeojaxError(
            "--include-path is for tasks of lm-evaluation-harness, and each is of a local file; leave it out"
        )
    of_chat = {"--chat-template": args.chat_template, "--system": args.system}
    if args.single_turn:
        of_chat["--single-turn"] = ""
    for name, value in of_chat.items():
        if value is not None and not args.chat:
            raise NeojaxError(f"{name} is for --chat; give both, or neither")
    of_files = [word for word in tasks if "=" in word]
    if args.chat and (of_files or not tasks):
        what = f"{of_files[0]} is of a local file" if of_files else "--tasks names none"
        raise NeojaxError(f"--chat is for tasks of lm-evaluation-harness, and {what}; leave --chat out")
    if args.num_fewshot is not None:
        whole("--num-fewshot", args.num_fewshot, lambda n: n >= 0, "at least 0")
    if args.limit is not None:
        whole("--limit", args.limit, lambda n: n >= 1, "at least 1")


def chat_of(args: Namespace) -> harness.Chat | None:
    """How requests are written as conversations, where --chat asks for it. Raises `NeojaxError`."""
    if not args.chat:
        return None
    return harness.Chat(template_for(args), text("--system", args.system or ""), not args.single_turn)


def task_rows(
    model: Transformer,
    tasks: Sequence[str],
    num_fewshot: int | None,
    limit: int | None,
    include_path: str | None,
    chat: harness.Chat | None = None,
) -> Iterator[dict[str, Any]]:
    """What local tasks come to, a row for each, and then what the harness has of the others."""
    for local in [local_task(word) for word in tasks if "=" in word]:
        yield from local_tasks.evaluate(model, local, num_fewshot=num_fewshot or 0, limit=limit)
    if others := [word for word in tasks if "=" not in word]:
        found = harness.evaluate(
            model, others, num_fewshot=num_fewshot, limit=limit, include_path=include_path, chat=chat
        )
        yield harness.plain(found)


def task_table(row: dict[str, Any]) -> str:
    """A row of a task for people: one line; of the harness, its tables."""
    if "task" not in row:
        return harness.table(row)
    parts = [f"{row['task']}: {row['questions']:,} questions, {row['num_fewshot']} examples"]
    for name, value in row.items():
        if isinstance(value, float) and not name.endswith("_stderr"):
            error, interval = row.get(f"{name}_stderr"), row.get(f"{name}_interval")
            spread = "" if error is None else f" +- {error:.4f}"
            spread = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else spread
            parts.append(f"{name} {value:.4f}{spread}")
    return ", ".join(parts)


def held_out_of(source: str) -> list[tuple[str, str]]:
    """The paths of a run's data.validation, each with the shares of it. Raises `NeojaxError` where there are
    none."""
    path, _ = with_adapter(source)
    if hf.is_hf_dir(path):
        raise NeojaxError(f"{source} has no held-out data of its own; name token stores or text files")
    run_dir = find_run(path)[0]
    found = config.of_run(run_dir).data.validation
    if not found:
        raise NeojaxError(f"{run_dir} has no data.validation; name token stores or text files")
    return [(each.path, each.split) for each in found]


def rows(
    model: Transformer, path: str, split: str, reading: Reading, stride: int | None, by_document: bool
) -> Iterator[dict[str, Any]]:
    """What there is to say of the documents at `path`, where asked one by one, and then of all."""
    tally = Tally()
    for found in measure(model, documents(model, path, reading, split), stride):
        tally.add(found)
        if by_document:
            yield of_document(found)
    yield tally.row(path)


def of_document(found: Measured) -> dict[str, Any]:
    """What there is to say of one document; of one without a token to score, its name alone."""
    if not found.tokens:
        return {"document": found.document.name, "tokens": 0}
    alone = Tally()
    alone.add(found)
    row = alone.row(found.document.name)
    kept = {name: value for name, value in row.items() if name not in ("data", "documents")}
    return {"document": found.document.name, **kept}


def table(row: dict[str, Any]) -> str:
    """A row of `--json` for people: one line of a document, some of all."""
    sizes = [f"{row[name]:,} {name}" for name in ("documents", "tokens", "bytes", "words") if row.get(name)]
    if "document" in row:
        parts = [f"{label} {row[name]:.4f}" for name, label in MEASURES if row.get(name) is not None]
        return f"{row['document']}: {', '.join([*sizes, *parts])}"
    lines = [f"{row['data']}: {', '.join(sizes)}"]
    for name, label in MEASURES:
        if row[name] is not None:
            error = row[f"{name}_stderr"]
            spread = "" if error is None else f" +- {error:.4f}"
            lines.append(f"  {label:<16} {row[name]:>10.4f}{spread}")
    lines.append(f"  {'likeliest token':<16} {100 * row['greedy']:>10.2f} %")
    return "\n".join(lines)


MEASURES = (
    ("nats_per_token", "nats per token"),
    ("perplexity", "perplexity"),
    ("bits_per_byte", "bits per byte"),
    ("word_perplexity", "word perplexity"),
)
