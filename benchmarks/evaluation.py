"""Evaluation beside lm-evaluation-harness with its own Hugging Face model: numbers, and time.

    python benchmarks/evaluation.py numbers HF_DIR DATA   # tasks on the same files and weights, in one table
    python benchmarks/evaluation.py speed                 # log-likelihoods at the shapes of GPT-Neo 125M

DATA holds files under the names of `FILES`; those that are not there are left out. Needs the
extras eval and hf.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}

import lm_eval
from lm_eval.tasks import TaskManager

import neojax
from neojax.data import tokenizer as tokenizers
from neojax.evaluate import local_tasks, wikitext
from neojax.evaluate.harness import BOOTSTRAP
from neojax.evaluate.held_out import Reading, documents
from neojax.evaluate.likelihood import Tally, measure
from neojax.evaluate.tasks import TASKS

try:  # as a program, the folder of this file comes first on the path
    import side_by_side
except ImportError:
    from benchmarks import side_by_side

FILES = {"sst2": "sst2.dev.txt", "rte": "RTE.val.jsonl", "boolq": "BoolQ.val.jsonl", "mrpc": "mrpc-small.tsv"}
THEIRS = {
    "sst2": "glue/sst2/default.yaml",
    "rte": "super_glue/rte/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "mrpc": "glue/mrpc/default.yaml",
    "blimp": "blimp/_template_yaml",
    "wikitext": "wikitext/wikitext.yaml",
}
SETS = 5  # of BLiMP
WIKITEXT = "wikitext-2-raw.test.txt"


def rows_of(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file as Hugging Face's data sets have them."""
    task = TASKS[name]
    for record in local_tasks.read(name, file):
        row = {}
        for column, names in task.columns.items():
            row[column] = next(record.values[own] for own in names if own in record.values)
        if "label" in row:
            row["label"] = local_tasks.question(task, record.values).gold
        yield row


def write_task(folder: Path, name: str, kind: str, rows: list[dict[str, Any]]) -> None:
    """A task of the harness, as it is installed, on other rows."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    split = "test" if kind == "wikitext" else "validation"
    keys = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / THEIRS[kind]),
        "task": f"their_{name}",
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(file)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None if kind == "wikitext" else "validation",
    }
    (folder / f"{name}.yaml").write_text(json.dumps(keys))


def their_numbers(folder: Path, name: str, lm: Any, num_fewshot: int, limit: int) -> dict[str, float]:
    """Metric -> value of the harness."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        lm,
        tasks=[f"their_{name}"],
        num_fewshot=num_fewshot,
        limit=limit or None,
        task_manager=manager,
        bootstrap_iters=BOOTSTRAP,
        log_samples=False,
    )["results"][f"their_{name}"]
    return {key.partition(",")[0]: value for key, value in results.items() if key.endswith(",none")}


def numbers(args: argparse.Namespace) -> None:
    """Prints a row of Markdown for each metric."""
    from lm_eval.models.huggingface import HFLM

    model = neojax.load(args.model, dtype="float32")
    lm = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=args.batch)
    print("| task | questions | metric | neojax | harness, Hugging Face | seconds |\n|-|-|-|-|-|-|")

    def row(name: str, count: int, ours: Mapping[str, Any], theirs: Mapping[str, Any], spent: str) -> None:
        for metric in theirs:
            if not metric.endswith("_stderr") and metric in ours:
                error = ours.get(f"{metric}_stderr")
                told = f"{ours[metric]:.6f}" + ("" if error is None else f" +- {error:.4f}")
                cells = name, count, metric, told, f"{theirs[metric]:.6f}", spent
                print(f"| {' | '.join(map(str, cells))} |", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder, data = Path(temporary), Path(args.data)
        tasks = {name: data / file for name, file in FILES.items() if (data / file).is_file()}
        local = {name: local_tasks.Local(name, str(file)) for name, file in tasks.items()}
        if (data / "blimp.zip").is_file():
            stack = local_tasks.sets(local_tasks.Local("blimp", str(data / "blimp.zip")))
            with stack as found:
                for name in list(found)[:SETS]:
                    write_task(folder, name, "blimp", list(rows_of("blimp", found[name])))
                    local[name] = local_tasks.Local("blimp", str(folder / f"{name}.jsonl"))
        for name, task in local.items():
            if name in tasks:
                write_task(folder, name, name, list(rows_of(name, tasks[name])))
            for shots in (0,) if task.name == "blimp" else (0, args.num_fewshot):
                start = time.perf_counter()
                ours = local_tasks.evaluate(model, task, num_fewshot=shots, limit=args.limit or None)[-1]
                middle = time.perf_counter()
                theirs = their_numbers(folder, name, lm, shots, args.limit)
                spent = f"{middle - start:.1f}; {time.perf_counter() - middle:.1f}"
                row(f"{name}, {shots} examples", ours["questions"], ours, theirs, spent)
        if (data / WIKITEXT).is_file():
            text = (data / WIKITEXT).read_text(encoding="utf-8")
            write_task(folder, "wikitext", "wikitext", [{"page": page} for page in wikitext.pages(text)])
            start, tally = time.perf_counter(), Tally()
            for found in measure(model, documents(model, str(data / WIKITEXT), Reading(wikitext=True))):
                tally.add(found)
            ours, middle = tally.row("wikitext"), time.perf_counter()
            theirs = their_numbers(folder, "wikitext", lm, 0, 0)
            spent = f"{middle - start:.1f}; {time.perf_counter() - middle:.1f}"
            row("WikiText-2", ours["documents"], ours, theirs, spent)


def requests_of(count: int) -> list[tuple[str, str]]:
    """Contexts of 8 to 400 words with two to four answers of one to twelve words each."""
    draw = random.Random(0)
    words = [
        f"{a}{b}" for a in ("pre", "con", "un", "re", "over") for b in ("tain", "form", "ly", "do", "view")
    ]
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        context = " ".join(draw.choices(words, k=int(2 ** draw.uniform(3, 8.6))))
        for _ in range(draw.choice((2, 2, 4))):
            pairs.append((context, " " + " ".join(draw.choices(words, k=draw.choice((1, 1, 4, 12))))))
    return pairs[:count]


def _timed(lm: Any, options: Mapping[str, Any]) -> Callable[[], int]:
    from lm_eval.api.instance import Instance

    pairs = requests_of(options["requests"])
    asked = [Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)]
    tokenizer = tokenizers.load(options["folder"])
    tokens = sum(len(tokenizer.encode(context + answer).ids) for context, answer in pairs)

    def once() -> int:
        lm.loglikelihood(asked, disable_tqdm=True)
        return tokens

    return once


def ours(options: Mapping[str, Any]) -> Callable[[], int]:
    from neojax.evaluate.lm_eval import NeojaxLM

    return _timed(NeojaxLM(pretrained=options["folder"], dtype="float32"), options)


def theirs(options: Mapping[str, Any]) -> Callable[[], int]:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=options["folder"], device="cpu", dtype="float32", batch_size=options["batch"])
    return _timed(lm, options)


def speed(args: argparse.Namespace) -> None:
    """Tokens per second of both, taking turns."""
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        config = transformers.GPTNeoConfig(
            hidden_size=768,
            num_layers=args.layers,
            num_heads=12,
            attention_types=[[["global", "local"], args.layers // 2]],
            bos_token_id=50256,
            eos_token_id=50256,
        )
        transformers.GPTNeoForCausalLM(config).save_pretrained(folder)
        tokenizer = tokenizers.load(args.tokenizer)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        ).save_pretrained(folder)
        options = {"folder": folder, "requests": args.requests, "batch": args.batch}
        rates = side_by_side.measure({"neojax": ours, "harness": theirs}, options, args.rounds)
    for name, found in rates.items():
        print(
            f"{name}: {side_by_side.statistics.median(found):.1f} tokens/s of {[round(x, 1) for x in found]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True)
    of_numbers, of_speed = parts.add_parser("numbers"), parts.add_parser("speed")
    of_numbers.add_argument("model")
    of_numbers.add_argument("data")
    of_numbers.add_argument("--num-fewshot", type=int, default=2)
    of_numbers.add_argument("--limit", type=int, default=0)
    of_numbers.set_defaults(run=numbers)
    of_speed.add_argument("tokenizer", help="GPT-2's tokenizer.json")
    of_speed.add_argument("--layers", type=int, default=12)
    of_speed.add_argument("--requests", type=int, default=96)
    of_speed.add_argument("--rounds", type=int, default=3)
    of_speed.set_defaults(run=speed)
    for part in (of_numbers, of_speed):
        part.add_argument("--batch", type=int, default=16, help="rows of a batch of the harness's model")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
