"""Chat templates of checkpoints, whatever goes into them."""

from __future__ import annotations

import json
import re
from datetime import date
from typing import Protocol

from tltasks.errors import CheckpointError

PROMPT_DATE = date(2024, 7, 26)
"""Today, for chat templates that say what day it is: Llama's have this date where nothing tells them another."""
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?:format\s*=\s*)?(?P<quote>["'])(?P<format>.*?)(?P=quote)\s*\)""")


class Chatting(Protocol):
    """A tokenizer or a processor."""

    chat_template: str | dict[str, str] | None


def fix_date(chatting: Chatting, *, display_name: str) -> bool:
    """Put `PROMPT_DATE` into a chat template that says what day it is, and tell whether it does.

    The template is saved so, and says the same wherever the model is used.
    """
    own = chatting.chat_template
    templates = own if isinstance(own, dict) else {"": own}
    fixed = {
        name: _TODAY.sub(lambda call: json.dumps(PROMPT_DATE.strftime(call["format"])), template or "")
        for name, template in templates.items()
    }
    if any("strftime_now(" in template for template in fixed.values()):
        raise CheckpointError(
            f"model {display_name}: its chat template says what day it is (strftime_now), in no format that is plain "
            "text, so that answers would change overnight. Write a date into it."
        )
    if fixed in (templates, {"": ""}):
        return False
    chatting.chat_template = fixed if isinstance(own, dict) else fixed[""]
    return True
