"""GPT-NeoX's YAML files, merged as its launcher does, and their keys, each with the file that it stands in.

Keys may be spelt with dashes or underscores. A key that two files give is an error, which GPT-NeoX intends
too; groups of keys (`optimizer`, `fp16`, ...) are read as dotted names, such as `optimizer.params.lr`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neojax import config as configuration
from neojax.convert.keys import Keys
from neojax.convert.neox_table import GROUPS, KNOWN, is_known
from neojax.errors import NeojaxError, suggest

SECTIONS = {"model", "mesh", "data", "train", "format"}  # of our own configurations
SUFFIX = ".yml"  # may be left out, as with GPT-NeoX


class Origin(NamedTuple):
    """Where a key stands, and how it is spelt there."""

    path: Path
    spelling: str


class NeoxKeys(Keys):
    """The keys of merged files, under their names with underscores; errors name a key's own file."""

    def __init__(self, raw: Mapping[str, Any], origins: Mapping[str, Origin], paths: Sequence[Path]):
        super().__init__(Path(" + ".join(map(str, paths))), raw)
        self.origins = origins

    def at(self, key: str) -> str:
        """The file of a key and its spelling there, with which a message about it begins."""
        origin = self.origins.get(key)
        return f"{self.path}: {key}" if origin is None else f"{origin.path}: {origin.spelling}"

    def wrong(self, key: str, expected: str, value: Any) -> NeojaxError:
        return self.error(key, f"expected {expected}, got {_shown(value)}")

    def error(self, key: str, cause: str) -> NeojaxError:
        """An error about `key`."""
        return NeojaxError(f"{self.at(key)}: {cause}")

    def number(self, key: str, default: Any = None, least: float = 0.0) -> Any:
        number = super().number(key, default)
        if number is not None and number < least:
            raise self.wrong(key, f"a number, at least {least:g}", number)
        return number

    def count(self, key: str, default: int | None = None, least: int = 0) -> Any:
        if isinstance(value := self.get(key), str):
            raise self.wrong(key, f"a whole number, at least {least}", value)
        return super().count(key, default, least)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return default if value is None else value

    def choice(self, key: str, default: str, choices: Mapping[str, Any] | Sequence[str]) -> str:
        """A word of `choices`, of which GPT-NeoX takes any case."""
        value = self.text(key, default)
        found = {choice.lower(): choice for choice in choices}.get(value.lower())
        if found is None:
            named = [choice for choice in choices if choice]
            raise self.error(key, f"neojax has no {value!r} here{suggest(value.lower(), named)}")
        return found

    def texts(self, key: str) -> list[str]:
        """A list of texts; a single one counts as a list."""
        value = self.get(key)
        value = [value] if isinstance(value, str) else value or []
        if not isinstance(value, list) or not all(
            isinstance(v, str) and v and v.isprintable() for v in value
        ):
            raise self.wrong(key, "a list of paths", value)
        return value


def is_neox(raw: Any) -> bool:
    """Whether nested dictionaries, as YAML gives them, are a GPT-NeoX config or a part of one."""
    return isinstance(raw, Mapping) and not SECTIONS & set(raw) and any(is_known(_plain(key)) for key in raw)


def is_neox_json(raw: Mapping[str, Any]) -> bool:
    """The same of a JSON object, of which gpt-neo's and Hugging Face's have some keys in common."""
    keys = {_plain(key) for key in raw}
    return keys >= {"num_layers", "hidden_size"} and not keys & {"model_type", "architectures", "n_layer"}


def located(path: str | Path) -> Path:
    """`path`, or that with `.yml` behind it where only this exists."""
    path = Path(path)
    longer = path.with_name(path.name + SUFFIX) if path.name else path
    return longer if not path.exists() and longer.is_file() else path


def read_files(paths: Sequence[str | Path]) -> NeoxKeys:
    """The keys of the files at `paths`. Raises `NeojaxError` for what is no GPT-NeoX config, for a key that
    GPT-NeoX has not, and for one that is given twice."""
    found = [located(path) for path in paths]
    merged: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    for path in found:
        raw = configuration.read_yaml(path)
        if not isinstance(raw, Mapping) or SECTIONS & set(raw):
            raise NeojaxError(
                f"{path} is no GPT-NeoX config: only such are given several at a time, and merged"
            )
        for spelling, key, value in _flat(raw, path):
            if not is_known(key):
                raise NeojaxError(f"{path}: unknown key {spelling}{suggest(key, KNOWN)}")
            if key in origins:
                other = origins[key]
                places = f"{other.path} and in {path}" if other.path != path else f"{path} twice"
                raise NeojaxError(
                    f"key {other.spelling} is given in {places}"
                    + (f", as {spelling}" if spelling != other.spelling else "")
                    + "; keep one of them"
                )
            merged[key], origins[key] = value, Origin(path, spelling)
    return NeoxKeys(merged, origins, found)


def _flat(raw: Mapping[str, Any], path: Path, prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """(spelling, plain name, value) of every key, those of groups by their dotted names."""
    for name, value in raw.items():
        spelling = f"{prefix}{name}"
        key = _plain(spelling)
        if key not in GROUPS:
            yield spelling, key, value
        elif value is not None:
            if not isinstance(value, Mapping):
                raise NeojaxError(f"{path}: {spelling}: expected keys and values, got {_shown(value)}")
            yield from _flat(value, path, f"{spelling}.")


def _plain(name: Any) -> str:
    return str(name).replace("-", "_")


def _shown(value: Any) -> str:
    words = " ".join(repr(value).split())
    return words if len(words) <= 60 else f"{words[:57]}..."
