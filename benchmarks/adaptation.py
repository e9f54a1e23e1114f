"""SST-2's sentences told by an encoder and by a GPT-Neo, small and pre-trained for minutes on this machine:
fine-tuned whole, by LoRA, and from random weights, beside a bag of words.

    python benchmarks/adaptation.py [DATA] [--seeds 2]

DATA (default: ../shared/data) has eval/sst2.{train,dev,test}.txt, "label text" a line, and
megatron/openwebtext-1000.decoded.jsonl; where they are absent, nothing is measured. Pre-training reads the
sentences of sst2.train three times, without labels, and those 1,000 pages, in lower case as SST-2 is. Every
training is a process of its own on one CPU device: its seconds are those of a processor for the whole
command, start and compilation included, which other work on the machine changes less than those of a clock;
its memory is the most that it had at a time, as Linux counts it, and the optimizer's bytes are AdamW's two
moments of what is trained. Models are asked after their last step. Needs scikit-learn
(`pip install -e '.[eval]'`).
"""

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import save

import neojax

ROOT = Path(__file__).parent.parent
SST2 = "eval/sst2.{}.txt"
PAGES = "megatron/openwebtext-1000.decoded.jsonl"

COMMON: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_ctx": 64, "n_vocab": 8000}
MODELS: dict[str, dict[str, Any]] = {
    "encoder": {**COMMON, "family": "bert", "attention": {"heads": 4}, "init": {"std": 0.1}},
    "gpt_neo": {
        **COMMON,
        "family": "gpt_neo",
        "attention": {"heads": 4, "window": 32},
        "init": {"std": 0.02},
    },
}
DROPOUT = ["model.dropout={0}", "model.embedding.dropout={0}"]
PREPARED = {
    "encoder": ["--sentences", "marks", "--tokenizer-kind", "wordpiece"],
    "gpt_neo": [],
}
PRETRAINED = {
    "encoder": ["data.pairs=nsp", "model.head.kinds=[mlm]", "train.steps=1200"],
    "gpt_neo": ["train.steps=600"],
}
TRAINED = ["train.schedule=linear", "train.min_lr_ratio=0", "train.weight_decay=0.01", "train.beta2=0.999"]
TRAINED += ["train.epsilon=1e-6", "train.unroll=0", "train.tensorboard=false", "train.log_every=50"]
TRAINED += ["train.batch_size=32", "mesh.cpu_devices=1", "mesh.shape=data:1"]
RATES = {"whole": 2e-3, "lora": 3e-3, "lora, 1e-2": 1e-2, "random weights": 2e-3}
"""By what is trained, the learning rate."""
EPOCHS = 3
LORA = ["train.lora.rank=8", "train.lora.targets=[attn.query, attn.value, mlp.up, mlp.down]"]


def run(*command: str) -> tuple[float, int, str]:
    """(seconds of a processor, most bytes of memory, output) of a command of neojax. Ends where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "neojax", *command], stdout=said, stderr=subprocess.STDOUT, env=environment
        )
        memory = 0  # rusage's would be this program's own where that is more: a process begins as its parent
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            told = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            memory = max(
                memory, *(1024 * int(kilobytes) for kilobytes in re.findall(r"VmHWM:\s+(\d+)", told)), 0
            )
            time.sleep(0.2)
        _, status, used = ended
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if process.returncode or "stopping after saving" in text:
        raise SystemExit(f"{' '.join(command)}\n{text[-2000:]}")
    return used.ru_utime + used.ru_stime, memory, text


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `path` has from a run that was broken off, or what `measure` finds now."""
    if not path.is_file():
        path.write_text(json.dumps(measure()), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def lines_of(path: Path) -> tuple[list[str], list[int]]:
    """The sentences of a file, and their labels."""
    rows = [line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [text for _, text in rows], [int(label) for label, _ in rows]


def bag_of_words(data: Path) -> dict[str, float]:
    """Logistic regression on which words there are, its penalty chosen on sst2.dev."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = zip(*(lines_of(data / SST2.format(split)) for split in ("train", "dev", "test")))
    words = CountVectorizer(binary=True, token_pattern=r"\S+")
    train, dev, test = words.fit_transform(texts[0]), *map(words.transform, texts[1:])
    found = []
    for c in (0.1, 0.3, 1.0):
        model = LogisticRegression(C=c, max_iter=2000).fit(train, labels[0])
        own = (model.score(rows, truth) for rows, truth in zip((dev, test, train), (*labels[1:], labels[0])))
        found.append((*own, c))
    return dict(zip(("dev", "test", "train", "C"), max(found)))


def prepared(name: str, data: Path, work: Path) -> None:
    """Text without labels as work/NAME-data, with a tokenizer made of it, and the model's work/NAME.yml."""
    records = [{"text": text} for text in lines_of(data / SST2.format("train"))[0] * 3]
    pages = (json.loads(line)["text"].lower() for line in (data / PAGES).open(encoding="utf-8"))
    records += [{"text": page} for page in pages]
    text, out = work / f"{name}.jsonl", work / f"{name}-data"
    text.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    size = str(MODELS[name]["n_vocab"])
    run("prepare", str(text), "--out", str(out), "--train-tokenizer", size, *PREPARED[name])
    (work / f"{name}.yml").write_text(json.dumps({"model": MODELS[name]}))


def pretrained(name: str, work: Path) -> dict[str, Any]:
    """Trains a model on what `prepared` wrote, as the run work/NAME."""
    words = [*TRAINED, *PRETRAINED[name], *(word.format(0) for word in DROPOUT), "model.attention.dropout=0"]
    words += [f"data.train={work / name}-data", "train.learning_rate=2e-3", "train.warmup_steps=100"]
    seconds, memory, _ = run("train", str(work / f"{name}.yml"), *words, f"train.run_dir={work / name}")
    rows = [json.loads(line) for line in (work / name / "metrics.jsonl").open()]
    losses = {"first_loss": rows[0]["loss"], "loss": statistics.mean(row["loss"] for row in rows[-5:])}
    return {**losses, "tokens": rows[-1]["tokens"], "seconds": seconds, "memory": memory}


def tuned(name: str, how: str, seed: int, data: Path, work: Path) -> dict[str, Any]:
    """Fine-tunes a model to sst2.train; what that took, and where the run is."""
    out = work / f"{name}-{how.replace(', ', '-').replace(' ', '-')}-{seed}"
    words = [*TRAINED, *(word.format(0.1) for word in DROPOUT), "data.task=sst2"]
    words += [f"train.run_dir={out}"]
    words += [
        f"data.train={data / SST2.format('train')}",
        f"train.epochs={EPOCHS}",
        "train.batch_size=32",
    ]
    words += [f"train.learning_rate={RATES[how]}", "train.warmup_share=0.1", f"train.seed={seed}"]
    tokenizer = f"data.tokenizer={work / name}-data/tokenizer.json"
    words += (
        [tokenizer, "model.init.std=0.02"] if how == "random weights" else [f"train.init_from={work / name}"]
    )
    config = str(work / f"{name}.yml")
    seconds, memory, said = run("train", config, *words, *(LORA if how.startswith("lora") else []))
    counts = re.search(r"([\d,]+) parameters(?:, ([\d,]+) of them trained)?", said)
    assert counts is not None
    whole, trained = (int((part or counts[1]).replace(",", "")) for part in counts.groups())
    return {
        "seconds": seconds, "memory": memory, "parameters": whole, "trained": trained,
        "optimizer_bytes": 8 * trained, "run": str(out),
    }  # fmt: skip


def accuracies(run: str, data: Path) -> dict[str, float]:
    """The share of the rows of each file that a run tells rightly: of sst2.train, which says whether it has
    learnt, the first thousand."""
    model, found = neojax.load(run), {}
    for split in ("dev", "test", "train"):
        texts, labels = (
            rows[:1000] if split == "train" else rows for rows in lines_of(data / SST2.format(split))
        )
        said = neojax.predict(model, texts)
        found[split] = statistics.mean(int(own.label) == label for own, label in zip(said, labels))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=ROOT.parent / "shared" / "data")
    parser.add_argument("--seeds", type=int, default=2, help="of fine-tuning (%(default)s)")
    parser.add_argument("--work", type=Path, help="a folder that keeps what is done, to go on from there")
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time (%(default)s)")
    args = parser.parse_args()
    data = args.data.resolve()
    wanted = [data / SST2.format(split) for split in ("train", "dev", "test")] + [data / PAGES]
    if absent := [path for path in wanted if not path.is_file()]:
        print(f"nothing is measured: {absent[0]} is not there; give the folder that has it")
        return
    ones = statistics.mean(lines_of(wanted[2])[1])
    results: dict[str, Any] = {
        "seeds": args.seeds,
        "rates": RATES,
        "epochs": EPOCHS,
        "majority": max(ones, 1 - ones),
    }
    results["bag of words"] = bag_of_words(data)
    results |= {name: {} for name in MODELS}
    print("bag of words", json.dumps(results["bag of words"]), flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(args.at_once) as pool,
    ):
        work = args.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        for name in MODELS:
            if not (work / f"{name}.yml").is_file():
                prepared(name, data, work)

        def begin(name: str) -> dict[str, Any]:
            return kept(work / f"{name}.json", lambda: pretrained(name, work))

        begun = {name: pool.submit(begin, name) for name in MODELS}
        asking = threading.Lock()

        def measured(name: str, how: str, seed: int) -> dict[str, Any]:
            if how != "random weights":
                begun[name].result()

            def measure() -> dict[str, Any]:
                own = tuned(name, how, seed, data, work)
                with asking:
                    return own | accuracies(own.pop("run"), data)

            own = kept(work / f"{name}, {how}, {seed}.json", measure)
            print(name, how, json.dumps(own), flush=True)
            return own

        # of a seed random weights first, which need not wait for those that are pre-trained
        jobs = [(name, how, seed) for seed in range(args.seeds) for how in RATES for name in MODELS]
        jobs.sort(key=lambda job: (job[2], job[1] != "random weights"))
        found = {job: pool.submit(measured, *job) for job in jobs}
        for name, future in begun.items():
            results[name]["pre-training"] = future.result()
            print(name, "pre-training", json.dumps(results[name]["pre-training"]), flush=True)
        for seed in range(args.seeds):
            for name in MODELS:
                for how in RATES:
                    results[name].setdefault(how, []).append(found[name, how, seed].result())
            results["seeds"] = seed + 1
            save("adaptation", results)
    for name in MODELS:
        for how in RATES:
            own = {split: [row[split] for row in results[name][how]] for split in ("dev", "test", "train")}
            means = "  ".join(f"{split} {statistics.mean(scores):.3f}" for split, scores in own.items())
            print(f"{name}, {how}: {means}")


if __name__ == "__main__":
    main()
