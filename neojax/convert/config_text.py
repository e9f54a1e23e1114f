"""A converted config as commented YAML, written only where training would read it."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from neojax import config as configuration
from neojax.convert.keys import Conversion
from neojax.layout.mesh import abstract_layout
from neojax.layout.names import parse_shape
from neojax.models import Transformer
from neojax.models.fit import check_fit
from neojax.runs.run_dir import yaml_word


def as_yaml(
    conversion: Conversion, overrides: Iterable[str], source: str, title: str, between: str = ", "
) -> str:
    """What `conversion` holds, with `overrides`, as YAML for `neojax train`: each key has beside it what it
    came from, unless that has the same name.

    `title` says what was converted, `source` names it in errors; `between` stands between what is left out.
    Raises `NeojaxError` for what training would refuse on any machine.
    """
    lines = [f"# From {title}; the original's keys stand on the right."]
    if conversion.ignored:
        lines.append(f"# Without: {between.join(conversion.ignored)}")
    lines += [f"# Note: {note}" for note in conversion.notes]
    sections = configuration.override(conversion.sections, overrides, source)
    for section in ("model", "mesh", "data", "train"):
        if section in sections:
            lines += ["", f"{section}:", *_yaml(sections[section], section, conversion)]
    text = "".join(f"{_one_line(line)}\n" for line in lines)
    _check(text, source)
    return text


def _yaml(values: dict[str, Any], prefix: str, conversion: Conversion) -> Iterator[str]:
    """The keys under `prefix` as lines of YAML, groups of keys last, with where each came from."""
    indent = "  " * (prefix.count(".") + 1)
    if prefix.startswith("model"):
        values = {key: values[key] for key in _declared(prefix) if key in values} | values
    groups = {key: value for key, value in values.items() if prefix == "model" and isinstance(value, dict)}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if key not in groups:
            is_read = configuration.value_at(conversion.sections, name, conversion) == value
            origin = conversion.origin[name] if is_read and not conversion.is_given(name) else "given"
            yield f"{indent}{key}: {yaml_word(value)}" + (f"  # {origin}" if origin != key else "")
    for key, group in groups.items():
        yield f"{indent}{key}:"
        yield from _yaml(group, f"{prefix}.{key}", conversion)


def _declared(prefix: str) -> list[str]:
    """The keys and groups under `prefix`, in the order in which `neojax inspect --keys` lists them."""
    names = (name for name, *_ in configuration.describe() if name.startswith(f"{prefix}."))
    return list(dict.fromkeys(name.removeprefix(f"{prefix}.").partition(".")[0] for name in names))


def _check(text: str, source: str) -> None:
    """Reads a YAML config back and fits its model to its mesh, as training begins with, without devices.

    An axis that takes the devices that are left takes one: how many there are is not for this machine to say.
    """
    config = configuration.from_dict(configuration.parse(text, source), source=source)
    sizes = parse_shape(config.mesh.shape)
    shape = ", ".join(f"{axis}:{abs(size)}" for axis, size in sizes.items())
    layout = abstract_layout(replace(config.mesh, shape=shape))
    check_fit(Transformer(config.model, layout), config.train)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
