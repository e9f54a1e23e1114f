"""Chat templates: conversations as text, by Jinja in its sandbox, as transformers has them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from neojax.errors import NeojaxError

FILE = "chat_template.jinja"
DEFAULT = """\
{% for message in messages %}
{{ '' if loop.first else '\\n' }}{{ message['role'] | capitalize }}: {{ message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '\\n' }}Assistant:{% endif %}
"""
"""For models that were not trained for conversations."""

Messages = Sequence[Mapping[str, Any]]
Pieces = list[tuple[str, bool]]
"""Parts of a text in their order, and whether each is what the model is to say."""


class ChatTemplate:
    """A template as text; `eos` is the text of the token that ends what a model says."""

    def __init__(self, source: str, eos: str, bos: str = ""):
        self.source, self._special = source, {"eos_token": eos, "bos_token": bos}

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}`, which marks what assistants say: its body as it is."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, **keys: json.dumps(value, ensure_ascii=False, **keys)
        try:
            return environment.from_string(self.source)
        except TemplateError as e:
            raise NeojaxError(f"the chat template is not valid Jinja: {_line(e)}") from None

    def text(self, messages: Messages, asks: bool = False) -> str:
        """The text of a conversation; `asks`: followed by what stands before an answer. Raises `NeojaxError`
        where the template does."""
        try:
            return self._compiled.render(messages=list(messages), add_generation_prompt=asks, **self._special)
        except NeojaxError:
            raise
        except Exception as e:  # whatever the template computes
            raise NeojaxError(f"the chat template raises {type(e).__name__}: {_line(e)}") from None

    def pieces(self, messages: Messages) -> Pieces:
        """The text of a conversation in pieces: what assistants say, and all else. Raises `NeojaxError` where
        the text of its first messages is not how the whole begins."""
        found: Pieces = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.text(messages[:number], asks=True)
            after = self.text(messages[: number + 1])
            if not before.startswith(done) or not after.startswith(before):
                raise NeojaxError(
                    "the chat template does not write a conversation message by message: what it writes of "
                    "the "
                    f"first {number} is not how it begins what it writes of {number + 1}; use another"
                )
            found += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return found


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def find(folder: Path) -> str | None:
    """The template that lies in a run or a Hugging Face directory; None where none does."""
    if (folder / FILE).is_file():
        return (folder / FILE).read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if config.is_file():
        try:
            found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
        except (ValueError, AttributeError, RecursionError):
            return None
        return found if isinstance(found, str) else None
    return None
