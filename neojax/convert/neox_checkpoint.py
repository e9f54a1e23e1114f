"""GPT-NeoX's checkpoints, which are not read: pickled torch files, that may run code when they are opened."""

from collections.abc import Iterator
from pathlib import Path

from neojax.errors import NeojaxError
from neojax.storage.remote import is_remote

FILES = ("layer_*-model_*-model_states.pt", "mp_rank_*_model_states.pt")
STEPS = "global_step*"
TOOL = "tools/ckpts/convert_neox_to_hf.py"


def refuse_checkpoint(path: Path) -> None:
    """Raises `NeojaxError`, saying how to export it, where `path` is a GPT-NeoX checkpoint: a folder of its
    steps, that of a step, or a file of one."""
    if is_remote(path):
        return
    try:
        step = next(_found(path), None)
    except OSError:
        return
    if step is not None:
        raise NeojaxError(
            f"{path} is a GPT-NeoX checkpoint: pickled torch files, which may run code and are not opened; "
            f"export it where GPT-NeoX is installed: python {TOOL} --input_dir {step} "
            "--config_file CONFIG.yml --output_dir HF_DIR; and name HF_DIR here"
        )


def _found(path: Path) -> Iterator[Path]:
    """The folders of steps at `path`, the newest first."""
    if path.is_file():
        yield from (path.parent for pattern in FILES if path.match(pattern))
        return
    if any(next(path.glob(pattern), None) for pattern in FILES):
        yield path
    steps = sorted(path.glob(STEPS), key=lambda step: (len(step.name), step.name), reverse=True)
    yield from (step for step in steps if any(next(step.glob(pattern), None) for pattern in FILES))
    latest = path / "latest"
    name = latest.read_text(errors="replace")[:100].strip() if latest.is_file() else ""
    if name.startswith("global_step"):
        yield path / name
