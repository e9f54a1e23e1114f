"""GPT-NeoX's YAML configs, one or several that are merged: what each key says in ours.

`read` gives the sections of our config, `convert_text` the same as commented YAML. What is given on the
command line in place of a key is not read from them. Which keys there are is in `neox_table`, what cannot be
had in `neox_refusals`; the translation is in `neox_model`, `neox_data`, `neox_mesh` and `neox_train`.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from neojax import config as configuration
from neojax.convert.config_text import as_yaml
from neojax.convert.keys import Conversion, Sections
from neojax.convert.neox_data import convert_data
from neojax.convert.neox_files import NeoxKeys, is_neox, is_neox_json, located, read_files
from neojax.convert.neox_mesh import convert_mesh
from neojax.convert.neox_model import convert_model
from neojax.convert.neox_refusals import refuse
from neojax.convert.neox_table import TRANSLATED, reason_of
from neojax.convert.neox_train import convert_train

__all__ = ["convert_text", "is_neox", "is_neox_json", "load", "located", "read"]

Paths = Sequence[str | Path]


def load(paths: Paths, given: Sections = {}, asks: bool = True) -> dict:  # noqa: B006 - only read
    """The sections of our config that the GPT-NeoX configs at `paths` mean, for `config.from_dict`, less
    those `given`.

    Notes, and keys that mean nothing here, are listed once on stderr. `asks`: whether a batch of an unknown
    size is an error. Raises `NeojaxError`.
    """
    conversion = read(paths, given, asks)
    source = " + ".join(map(str, paths))
    for note in conversion.notes:
        print(f"{source}: note: {note}", file=sys.stderr)
    if conversion.ignored:
        print(f"{source}: ignored: {'; '.join(conversion.ignored)}", file=sys.stderr)
    return conversion.sections


def read(paths: Paths, given: Sections = {}, asks: bool = True) -> Conversion:  # noqa: B006 - only read
    """As `load`, with the origin of each value."""
    keys, out = read_files(paths), Conversion(given)
    refuse(keys)
    convert_model(keys, out)
    convert_mesh(keys, out)
    convert_data(keys, out)
    convert_train(keys, out, asks)
    out.ignored += _ignored(keys)
    return out


def _ignored(keys: NeoxKeys) -> list[str]:
    """The keys that nothing is set by, together by the reason; those within one group are told as one."""
    found: dict[str, dict[str, None]] = {}
    for key in sorted(keys.unread - set(TRANSLATED)):
        group, dot, _ = key.rpartition(".")
        found.setdefault(reason_of(key) or "it stands for nothing here", {})[f"{group}.*" if dot else key] = (
            None
        )
    return [f"{', '.join(names)} ({reason})" for reason, names in found.items()]


def convert_text(paths: Paths, overrides: Iterable[str] = ()) -> str:
    """The GPT-NeoX configs at `paths` as one YAML for `neojax train`, each key with the original's name
    beside it.

    `section.key=value` in `overrides` stand in it in place of what the files say. Raises `NeojaxError` for
    what training would refuse on any machine: nothing is written that would not be read.
    """
    overrides, source = list(overrides), " + ".join(map(str, paths))
    conversion = read(paths, configuration.override({}, overrides, source))
    names = " and ".join(Path(path).name for path in paths)
    return as_yaml(conversion, overrides, source, f"{names}, GPT-NeoX's", "; ")
