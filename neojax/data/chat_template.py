"""Chat templates: conversations as text, by Jinja in its sandbox, as transformers has them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from neojax.data.tokenizer import first_tokens
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

_MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # where a message that is to be continued ends

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

    def begun(self, messages: Messages) -> str:
        """The text of a conversation as far as the end of its last message, which is to be continued, as
        transformers has it (`continue_final_message`). Raises `NeojaxError`."""
        *before, last = messages
        text = self.text([*before, {**last, "content": f"{last['content']}{_MARK}"}])
        end = text.rfind(_MARK.strip())
        if end < 0:
            raise NeojaxError(
                "the chat template does not write the last message, which is to be continued; use another"
            )
        # A template that strips messages leaves no blank at the end of one, either.
        return text[:end] if text[end:].startswith(_MARK) else text[:end].rstrip()

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


def template_of(source: str, tokenizer: Any, end: int | None) -> ChatTemplate:
    """A template with the special tokens of a model: `end`, its end-of-document token, and what stands before
    a text, where nothing does `end` too. Raises `NeojaxError` for a model without `end`."""
    eos = None if end is None else tokenizer.id_to_token(end)
    if eos is None:
        raise NeojaxError("the model has no token that ends an answer, and would never stop")
    first = first_tokens(tokenizer)
    return ChatTemplate(source, eos, tokenizer.id_to_token(first[0]) if first else eos)


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


def of_model(path: Path) -> str | None:
    """The template of a run, its RUN/checkpoints/STEP, or a Hugging Face directory; None where none has
    one."""
    return find(path.parent.parent if path.parent.name == "checkpoints" else path)
