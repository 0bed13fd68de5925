"""Types of a recipe's values, and the mapping that all of its parts are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

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
    r"\{text\}": "text with `{text}` in it",
    r"\{\}": "text with `{}` in it",
}
"""The patterns above in words."""
KeyPath = tuple[str | int, ...]
"""Keys of mappings and numbers of list items, from the outside in."""


class Conflict(NamedTuple):
    """Keys that are each in order, but not together; `grounds` are those that it follows from, beside such as `text`
    has in backticks."""

    text: str
    keys: KeyPath = ()
    """Where it is to be told, within its section."""
    grounds: tuple[KeyPath, ...] = ()


Mend = Callable[[object, ValidationError], object]


class Section(BaseModel):
    """A mapping of a recipe: unknown keys are errors, values are not coerced, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Keys that are each in order, but not together."""
        return iter(())

    @model_validator(mode="wrap")
    @classmethod
    def _consistent(cls, value: object, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        """Raise for conflicts. With a Mend as context, read what it leaves of a mistaken value, and raise none."""
        mend: Mend | None = info.context
        if mend is not None:
            try:
                return handler(value)
            except ValidationError as error:
                return handler(mend(value, error))
        section = handler(value)
        found = [
            InitErrorDetails(type=PydanticCustomError("conflict", "{text}", one._asdict()), loc=one.keys, input=value)
            for one in section.conflicts()
        ]
        if found:
            raise ValidationError.from_exception_data(cls.__name__, found)
        return section


class Named(Section):
    """A section that is called by the name of a Hub repository, or by a local folder."""

    name: Name | None = None
