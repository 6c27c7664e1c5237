"""The common parts of the operators' bodies, queries and answers."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.config import JsonDict

from gateway.money import parse_usd
from gateway.rest.schemas import IN_DIGITS, PageLimit
from gateway.tenancy.tenants import MAX_NAME_CHARACTERS

MAX_USD_CHARACTERS = 100
MAX_ROW_ID = 2**63 - 1
_DIGITS = re.compile(r"[0-9]{1,10}(\.[0-9]+)?")
TENANT_ID = "019aa5f2-7c00-7000-8000-000000000000"
USER_ID = "019aa5f3-1a00-7000-8000-000000000000"
KEY_ID = "019aa5f4-2b00-7000-8000-000000000000"
"""Ids used in the examples."""


def _amount(text: str) -> str:
    parse_usd(text)
    if not _DIGITS.fullmatch(text):
        raise ValueError(f"{text!r} must be written in digits, such as 12.50")
    return text


def _instant(value: object) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        instant = moment.astimezone(UTC) if moment is not None and moment.tzinfo else None
    except (ValueError, OverflowError):
        instant = None
    if instant is None:
        raise ValueError(
            "it must be an ISO 8601 date-time with its offset, such as 2026-12-01T00:00:00Z"
        )
    return instant


Usd = Annotated[
    str,
    StringConstraints(max_length=MAX_USD_CHARACTERS),
    AfterValidator(_amount),
    WithJsonSchema(
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "examples": ["12.50"]}
    ),
]
"""An amount of US dollars: a decimal string, exact to the nano-dollar."""
Instant = Annotated[
    datetime,
    BeforeValidator(_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A point in time: ISO 8601 with an offset."""
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
"""The name of a tenant, user or key."""
RowId = Annotated[int, Field(ge=1, le=MAX_ROW_ID), IN_DIGITS]
"""The id of a budget, limit or price version: a number as a string."""


class Body(BaseModel):
    """A request body; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Query(BaseModel):
    """The query of a request; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")


class PageQuery(Query):
    """The page of a list to show."""

    limit: PageLimit = 20
    after: UUID | None = Field(None, description="The previous page's `last_id`.")


class NumberedPageQuery(Query):
    """The page of a list of numbered objects to show."""

    limit: PageLimit = 20
    after: RowId | None = Field(None, description="The previous page's `last_id`.")


class Identified(BaseModel):
    """An object with an id, by which lists are paginated."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID | str


T = TypeVar("T", bound=Identified)


def _with_example(schema: dict[str, Any], model: type["Listed[Any]"]) -> None:
    """Build a list's example from its object's own."""
    item = model.model_fields["data"].annotation.__args__[0]  # type: ignore[union-attr]
    if isinstance(item, type) and issubclass(item, BaseModel):
        example = example_of(item)
        schema["examples"] = [
            {
                "object": "list",
                "data": [example],
                "has_more": False,
                "first_id": example["id"],
                "last_id": example["id"],
            }
        ]


class Listed(BaseModel, Generic[T]):
    """A page of a list."""

    model_config = ConfigDict(json_schema_extra=_with_example)

    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, data: list[T], *, has_more: bool) -> Self:
        """Build the page of these objects."""
        return cls(
            data=data,
            has_more=has_more,
            first_id=str(data[0].id) if data else None,
            last_id=str(data[-1].id) if data else None,
        )


def left_as_it_is(schema: JsonDict) -> None:
    """Drop the default from a change's field in the schema: an omitted field keeps its value."""
    schema.pop("default", None)


def with_example(**example: JsonValue) -> ConfigDict:
    """The configuration of a model whose documentation has this example."""
    return ConfigDict(json_schema_extra={"examples": [example]})


def example_of(model: type[BaseModel]) -> dict[str, JsonValue]:
    """The example in a model's documentation."""
    example: dict[str, JsonValue] = model.model_json_schema()["examples"][0]
    return example
