"""The code in docs/ is code that runs."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


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
