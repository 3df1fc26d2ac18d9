"""Chat templates: the Jinja text in a file's metadata, run in a sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lowlevel.extras import pip_install

if TYPE_CHECKING:
    from typing import Any

__all__ = ["render_chat"]


def render_chat(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The text of a conversation.

    Parameters
    ----------
    template : str
        As Hugging Face's tokenizers have it: Jinja with `raise_exception`, `strftime_now`, ``tojson`` that
        leaves letters as they are, ``break`` and ``continue`` in loops, blocks trimmed, ``generation`` blocks.
    messages : sequence of mappings
        Each with "role" and "content", and what else the template reads.
    variables : mapping
        What else it is given: add_generation_prompt, bos_token, tools, ...

    Raises
    ------
    ValueError
        The template does not compile, or refuses the messages; the message has its reason.
    ImportError
        Jinja is not installed; the message says what to install.
    """
    try:
        import jinja2
        import jinja2.ext
        import jinja2.nodes
        import jinja2.sandbox
    except ImportError as error:
        raise ImportError(f"chat templates need jinja2 ({pip_install('text')})") from error

    class Generation(jinja2.ext.Extension):
        """A block that only marks what the model writes, for training."""

        tags = {"generation"}  # noqa: RUF012  # as Jinja asks for it

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(reason: str) -> str:
        raise jinja2.TemplateError(reason)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(messages=messages, **variables)
    except jinja2.TemplateError as error:
        raise ValueError(f"the file's chat template refuses these messages: {error}") from None
    except (TypeError, ArithmeticError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"the file's chat template fails on these messages: {error}") from error


def _to_json(value, indent=None, separators=None, sort_keys=False, ensure_ascii=False):
    """Jinja's own writes <, > and & as a web page needs them; no model was trained on that."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
