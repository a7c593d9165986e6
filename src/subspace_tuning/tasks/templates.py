"""Chats as token ids, formatted by a chat template, with labels for the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..errors import SubspaceError, described, nearest, reading
from ..tuner.loss import IGNORED
from .data.chats import ANSWERING, Message
from .sft import marked_template

ALPACA = (
    "{{ bos_token }}{% if messages[0].role != 'system' %}Below is an instruction that describes a task. Write a "
    "response that appropriately completes the request.\n\n{% endif %}"
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}### Instruction:\n{{ message.content }}\n\n"
    "{% else %}### Response:\n{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{% if not loop.last %}\n\n{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""The template of Alpaca, which is that of LLM-Adapters (arXiv:2304.01933), as a chat template."""

NAMED = {"alpaca": ALPACA, "own": "own"}
"""Chat templates by the name that ``task.template`` has for them; "own" stands for the tokenizer's."""

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Written(NamedTuple):
    """A chat in tokens: ``labels`` are the tokens of its answers, and ``IGNORED`` elsewhere."""

    tokens: list[int]
    labels: list[int]


def read_template(given: str) -> str:
    """Return the Jinja text of a template: of a name, of a file, or the text itself.

    Raises:
        SubspaceError: it is none of these.
    """
    if given in NAMED or "{{" in given or "{%" in given:
        return NAMED.get(given, given)
    path = Path(given).expanduser()
    if not path.is_file():
        raise SubspaceError(
            f"task.template is {given!r}: {nearest(given, NAMED)}; or a file with a chat template in Jinja, or its text"
        )
    with reading(str(path)):
        return path.read_text(encoding="utf-8")


def chat_template(tokenizer: PreTrainedTokenizerBase, given: str | None) -> str:
    """Return the template for chats: the given one, or the tokenizer's own.

    If TRL knows the tokenizer's own, it is TRL's version of it, with marks around the answers.

    Raises:
        SubspaceError: there is none.
    """
    if given not in (None, "own"):
        return read_template(given)
    try:
        own = tokenizer.get_chat_template()
    except ValueError:
        raise SubspaceError(
            "the model's tokenizer has no chat template: set task.template to alpaca, or to a file with one in Jinja"
        ) from None
    return own if _MARKS.search(own) else marked_template(tokenizer) or own


def prompt(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], template: str, place: str) -> list[int]:
    """Return the tokens of a chat up to where the next answer begins. Raises SubspaceError as ``written``."""
    tokens: list[int] = _applied(tokenizer, chat, template, place, add_generation_prompt=True)["input_ids"]
    return tokens


def written(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], template: str, place: str) -> Written:
    """Return a chat in tokens, with labels for its answers and the tokens that end them.

    Answers are what the template marks by ``{% generation %}``. Without marks, an answer is what its turn adds to the
    prompt before it, which requires that the template formats a turn the same whatever follows.

    Args:
        tokenizer: the model's.
        chat: its messages, the last one an answer.
        template: in Jinja.
        place: where the chat stands, as messages call it.

    Raises:
        SubspaceError: the template fails, or the answers cannot be identified.
    """
    if _MARKS.search(template):
        found = _applied(tokenizer, chat, template, place, return_assistant_tokens_mask=True)
        tokens, learnt = found["input_ids"], [bool(one) for one in found["assistant_masks"]]
    else:
        tokens = _applied(tokenizer, chat, template, place)["input_ids"]
        learnt = _by_prefixes(tokenizer, chat, template, place, tokens)
    if not any(learnt):
        raise SubspaceError(f"{place}: the chat template marks no token of the answers")
    learnt[0] = False  # nothing comes before the first token, by which it could be told
    return Written(tokens, [token if one else IGNORED for token, one in zip(tokens, learnt, strict=True)])


def _by_prefixes(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], template: str, place: str, tokens: list[int]
) -> list[bool]:
    learnt = [False] * len(tokens)
    for number, message in enumerate(chat):
        if message["role"] != ANSWERING:
            continue
        before = prompt(tokenizer, chat[:number], template, place)
        after = _applied(tokenizer, chat[: number + 1], template, place)["input_ids"]
        if after != tokens[: len(after)] or before != after[: len(before)]:
            raise SubspaceError(
                f"{place}: the chat template does not write message {number + 1} the same with and without what "
                "follows, so its tokens cannot be identified; set task.template to one with {% generation %} marks"
            )
        learnt[len(before) : len(after)] = [True] * (len(after) - len(before))
    return learnt


def _applied(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], template: str, place: str, **options: Any
) -> Any:
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in chat], chat_template=template, tokenize=True, return_dict=True, **options
        )
    except Exception as error:  # a template fails in any way, and says so by raise_exception itself
        raise SubspaceError(f"{place}: the chat template fails: {described(error)}") from error
