"""The file of a picture: SVG text as it is, or drawn as a PNG by resvg (the extra `pictures`)."""

from pathlib import Path
from typing import Any

from neojax.errors import NeojaxError
from neojax.plan.svg import FONT, Drawing

ZOOM = 2  # pixels of a PNG for one of SVG: small words stay readable
INSTALL = "pip install 'neojax[pictures]', or end the name in .svg"


def check_picture(path: str | None) -> None:
    """Raises `NeojaxError` for the name of a picture, if there is one, that cannot be drawn or has no folder:
    before there is any work, not behind it."""
    if path and Path(path).suffix not in (".svg", ".png"):
        raise NeojaxError(f"--picture {path}: pictures are SVG or PNG; end the name in .svg or .png")
    check_folder("--picture", path)
    if path and Path(path).suffix == ".png":
        _check_words(path)


def check_folder(option: str, path: str | None) -> None:
    """Raises `NeojaxError` where the file that `option` names, if there is one, cannot be written for want of
    a folder."""
    if path and not Path(path).parent.is_dir():
        raise NeojaxError(f"{option} {path}: there is no folder {Path(path).parent}; make it first")
    if path and Path(path).is_dir():
        raise NeojaxError(f"{option} {path} is a folder; name a file")


def save_picture(path: str, svg: str) -> None:
    """Writes a picture, SVG text, as what its name ends in."""
    if Path(path).suffix == ".png":
        Path(path).write_bytes(_drawn(path, svg))
    else:
        Path(path).write_text(svg, encoding="utf-8")


def _drawn(path: str, svg: str) -> bytes:
    return bytes(_resvg(path).svg_to_bytes(svg_string=svg, zoom=ZOOM))


def _resvg(path: str) -> Any:
    try:
        import resvg_py
    except ImportError:
        raise NeojaxError(f"--picture {path}: a PNG is drawn by resvg-py: {INSTALL}") from None
    return resvg_py


def _check_words(path: str) -> None:
    """Where none of the fonts is installed every word would be drawn as nothing."""
    page = Drawing(40)
    page.text(0, 15, "", ink="white")
    empty = str(page)
    page.text(0, 15, "word")
    if _drawn(path, empty) == _drawn(path, str(page)):
        raise NeojaxError(
            f"--picture {path}: none of the fonts {FONT} is installed, so that a PNG would have no words; "
            "install one (such as the package fonts-dejavu-core), or end the name in .svg"
        )
