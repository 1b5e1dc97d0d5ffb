"""Chats as text, by the Jinja template that the GGUF brings, rendered as llama-cpp-python does."""

import importlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from ..errors import BadInput, RuntimeProblem
from .engine import Model

KEY = "tokenizer.chat_template"


def require_template(model: Model) -> str:
    """Return the model's chat template. Raises BadInput if it has none."""
    if (template := model.chat_template) is None:
        raise BadInput("has no chat template", path=model.path, field=KEY, next_step="use plain prompts")
    return template


def render(model: Model, messages: Sequence[Mapping[str, Any]], continue_last: bool = False) -> str:
    """Return the text of a chat: messages with "role" and "content".

    It ends where the assistant's answer begins; with `continue_last`, where the content of the last message ends.
    Raises BadInput if the model has no chat template or the template refuses the messages, RuntimeProblem without
    jinja2.
    """
    template = require_template(model)
    if find_spec("jinja2") is None:
        raise RuntimeProblem("jinja2 is needed for chat templates", next_step="pip install jinja2")
    formatter = importlib.import_module("llama_cpp.llama_chat_format").Jinja2ChatFormatter
    bos, eos = (_name(model, model.special_token("bos")), _name(model, model.special_token("eos")))
    try:
        rendered = formatter(template, eos_token=eos, bos_token=bos, add_generation_prompt=not continue_last)
        text = str(rendered(messages=[dict(message) for message in messages]).prompt)
    except Exception as error:  # a template may fail in any way
        raise BadInput(f"refuses these messages: {error}", path=model.path, field=KEY) from error
    if not continue_last:
        return text
    last = str(messages[-1]["content"]).strip()
    if last not in text:
        raise BadInput("changes the last message, which cannot be continued", path=model.path, field=KEY)
    return text[: text.rindex(last) + len(last)]


def _name(model: Model, token: int | None) -> str:
    return "" if token is None else model.token_name(token)
