"""The code in docs/ is code that runs, and what pages and docstrings name is there."""

import importlib.util
import re
from pathlib import Path

import pytest

from neojax.config import describe

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "neojax"
TEXTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "meshconfigs/README.md")),
    *(REPOSITORY / "benchmarks").rglob("README.md"),
    *DOCS.glob("*.md"),
    *PACKAGE.rglob("*.py"),
    *(REPOSITORY / "benchmarks").rglob("*.py"),
]
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
KEYS = {name for name, *_ in describe()}
ROOTS = (REPOSITORY, PACKAGE, REPOSITORY / "benchmarks")  # where a path may begin
ORIGINALS = (  # files of gpt-neo and GPT-NeoX
    "data/create_tfrecords.py",
    "data/train_tokenizer.py",
    "models/gpt2/gpt2.py",
    "models/layers.py",
    "tools/ckpts/convert_neox_to_hf.py",
)


def test_the_page_on_ones_own_training_loop_runs_as_it_stands():
    """All blocks of the page in a row, as one program; each keeps its line numbers."""
    page = DOCS / "training-loop.md"
    text = page.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == text.count("```python") >= 5
    names: dict = {"__name__": "page"}
    for block in blocks:
        lines = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines + block[1], str(page), "exec"), names)


def missing(page: Path, text: str) -> list[str]:
    """What a text names and is not there: files of this repository, files that it links to, and, as
    `room.module.name` or `neojax.room.module.name`, parts of the package. NAME stands for a name that the
    reader chooses."""
    paths = set(re.findall(r"(?<![\w./-])[a-z][\w.-]*/(?:[\w.-]+/)*[\w.-]+\.(?:py|md)\b", text)).difference(
        ORIGINALS
    )
    lost = [path for path in paths if not any((root / path).exists() for root in ROOTS)]
    if page.suffix == ".md":
        links = re.findall(r"\]\(([^):#]+)[)#]", text)
        lost += [link for link in links if not (page.parent / link).exists()]
    names = set(re.findall(r"(?<![\w./-])neojax((?:\.\w+)+)(?![\w/])", text))
    names |= {
        f".{name}" for name in re.findall(r"`(\w+(?:\.\w+)+)`", text) if name.partition(".")[0] in ROOMS
    }
    files = ("yml", "json", "md", "py")
    lost += [name[1:] for name in names if name.rpartition(".")[2] not in files and not is_there(name)]
    return sorted(name for name in lost if "NAME" not in name)


def is_there(name: str) -> bool:
    """Whether `.room.module.name` is a part of the package, or a key of the configuration's section
    `data`."""
    first, *rest = name.split(".")[1:]
    if first == "data" and name[1:] in KEYS:
        return True
    parts = ["neojax", first, *rest]
    count = next(count for count in range(len(parts), 0, -1) if is_module(".".join(parts[:count])))
    if count == len(parts):
        return True
    try:
        found = importlib.import_module(".".join(parts[:count]))
    except ModuleNotFoundError as e:  # a package of an extra, which is not installed here
        assert not str(e.name).startswith("neojax"), e
        return True
    for part in parts[count:]:
        found = getattr(found, part, None)
    return found is not None


def is_module(name: str) -> bool:
    """Whether there is a module of that name."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what stands before its last dot is no package
        return False


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_text_names_is_there(page):
    assert not missing(page, page.read_text(encoding="utf-8"))


def test_what_is_not_there_is_found():
    text = (
        "`neojax/training/optimizer.py` neojax/training/optimiser.py `layout/mesh.py` `layout/meshes.py` "
        "docs/run.md "
    )
    text += "`neojax.layout.mesh.Layout` `neojax.layout.mesh.Lay`, neojax.loaded `layout.named.einsum` `layout.named.ein` "  # noqa: E501
    text += "`data.train` `data.trains` `data.batch.Batch` [page](runs.md) [page](run.md) `models/families/NAME.py`"  # noqa: E501
    lost = ["docs/run.md", "layout/meshes.py", "neojax/training/optimiser.py", "run.md"]
    lost += ["data.trains", "layout.mesh.Lay", "layout.named.ein", "loaded"]
    assert missing(DOCS / "page.md", text) == sorted(lost)
