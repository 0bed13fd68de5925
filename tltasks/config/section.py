"""Types of a recipe's values, and the mapping that all of its parts are."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]


Share = Annotated[float, Field(ge=0, lt=1)]


PositiveFloat = Annotated[float, Field(gt=0)]


HeldOut = Annotated[float, Field(gt=0, lt=1)]


Name = Annotated[str, Field(min_length=1)]


FileName = Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")]
"""Text that can name a file on any system."""


RepoName = Annotated[str, Field(pattern=r"^([\w.-]+/)?[\w.-]+$")]


Prompt = Annotated[str, Field(pattern=r"\{\}")]


FORMS = {
    r"^[\w-][\w.-]*$": "text of letters, digits, `_`, `-` and, but for the first, `.`",
    r"^([\w.-]+/)?[\w.-]+$": "text like `user/name`",
    r"\{document\}": "text with `{document}` in it",
    r"\{\}": "text with `{}` in it",
}
"""The patterns above in words."""


class Section(BaseModel):
    """A mapping of a recipe: unknown keys are errors, values are not coerced, nothing changes after reading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


class Named(Section):
    """A section that is called by the name of a Hub repository, or by a local folder."""

    name: Name | None = None
