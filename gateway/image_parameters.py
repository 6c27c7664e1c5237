"""The parameters of an image request, each declared once.

From `PARAMETERS` are drawn: the checks (`generation/parameters.py`), the bodies of the API
description (`rest/bodies.py`), the numbers and flags of a form (`rest/uploads.py`), the schemas of
the MCP tools (`mcp_server/tool_inputs.py`), the provider's request (`sent_fields`) and the table in
docs/api.md. `ImageRequest` has a field for each; catalog.toml says which model accepts which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.domain import ImageRequest, Operation
from gateway.image_models import Model

Value = str | int | float | bool
GENERATION = frozenset({Operation.GENERATION})
EDIT = frozenset({Operation.EDIT})
VARIATION = frozenset({Operation.VARIATION})
EXAMPLE_MODEL = "gpt-image-2.5-flare"
MAX_SEED = 4_294_967_295
MAX_STEPS = 1000
MAX_GUIDANCE = 50
QUALITIES = ("low", "medium", "high", "xhigh", "max", "auto", "standard", "hd")
BACKGROUNDS = ("transparent", "opaque", "auto")
OUTPUT_FORMATS = ("png", "jpeg", "webp")
VARIATION_SIZES = ("256x256", "512x512", "1024x1024")


class Kind(StrEnum):
    """The form of a value: it decides how a parameter is read and how its schema looks."""

    PROMPT = "prompt"
    TEXT = "text"
    SIZE = "size"
    CHOICE = "choice"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"

    @property
    def json_type(self) -> str:
        """The type in JSON Schema."""
        own = {Kind.INTEGER, Kind.NUMBER, Kind.BOOLEAN}
        return self.value if self in own else "string"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolArgument:
    """A parameter as the MCP tools show it to a model.

    `choices` are listed in the schema; without them the description has to name the values.
    """

    description: str
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of the operations that it belongs to.

    `of_every_model`: accepted by all models; any other is listed in catalog.toml. `minimum` and
    `maximum` bound a number, or the characters of a text. `choices` and `maximum` are the widest
    that some model accepts, `choices_of` and `maximum_of` one model's own. `sent` reads the value
    for the provider. `tool`: how the MCP tools show it, where its description alone does not do.
    """

    name: str
    kind: Kind
    operations: frozenset[Operation] = GENERATION | EDIT
    of_every_model: bool = False
    is_required: bool = False
    description: str
    examples: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    choices_of: Callable[[Model], tuple[str, ...]] | None = None
    minimum: int | None = None
    maximum: int | None = None
    maximum_of: Callable[[Model], int] | None = None
    sent: Callable[[ImageRequest], Value | None] | None = None
    tool: ToolArgument | None = None

    @property
    def is_of_image(self) -> bool:
        """True if it says how the image is made; false if it says how the answer is sent."""
        return self.sent is not None

    @property
    def argument(self) -> ToolArgument | None:
        """The argument of the MCP tools; None if the parameter says how an answer is sent."""
        if self.tool is not None or not self.is_of_image:
            return self.tool
        return ToolArgument(
            description=self.description.replace("`", ""),
            choices=self.choices,
            examples=self.examples,
        )


_PROMPT = Parameter(
    name="prompt",
    kind=Kind.PROMPT,
    operations=GENERATION,
    of_every_model=True,
    is_required=True,
    description="Description of the image. Older models accept 1000 or 4000 characters.",
    examples=("A lighthouse at dawn",),
    minimum=1,
    maximum=32_000,
    maximum_of=lambda model: model.max_prompt_characters,
    sent=lambda request: request.prompt,
    tool=ToolArgument(
        description="Description of the image, in any language. Be concrete: subject, setting, "
        "style, light, composition. Text to appear in the image goes in quotation marks.",
        examples=("A lighthouse at dawn, calm sea, watercolour, wide view",),
    ),
)
_MODEL = Parameter(
    name="model",
    kind=Kind.TEXT,
    of_every_model=True,
    description="`GET /v1/models` lists the models and the values that each accepts: not every "
    "value below works with every model. Default: the gateway's default.",
    examples=(EXAMPLE_MODEL,),
    sent=lambda request: request.model.id,
    tool=ToolArgument(
        description="Omit for the default. list_available_models lists all; "
        f"{EXAMPLE_MODEL} is fast and cheap. Retired ones such as dall-e-3 still work.",
        examples=(EXAMPLE_MODEL,),
    ),
)
_SIZE = Parameter(
    name="size",
    kind=Kind.SIZE,
    of_every_model=True,
    description="`WIDTHxHEIGHT` or `auto`.",
    examples=("1024x1024",),
    sent=lambda request: request.size,
    tool=ToolArgument(
        description="WIDTHxHEIGHT in pixels, or auto. Current models accept any size whose edges "
        "are divisible by 16, up to 3:1, of at least 655360 pixels.",
        examples=("1024x1024", "1536x1024", "1024x1536"),
    ),
)

# In the order in which they are checked and shown. A name that means something else in another
# operation is declared once for each.
PARAMETERS = (
    _PROMPT,
    replace(
        _PROMPT,
        operations=EDIT,
        description="Description of the change.",
        examples=("Add a red kite in the sky",),
    ),
    _MODEL,
    replace(
        _MODEL,
        operations=VARIATION,
        description="Only `dall-e-2` makes variations; its successor serves them.",
        examples=("dall-e-2",),
        tool=ToolArgument(
            description="Omit: only dall-e-2 makes variations, served by its successor.",
            examples=("dall-e-2",),
        ),
    ),
    _SIZE,
    replace(
        _SIZE,
        operations=VARIATION,
        description="Width and height. Default: `1024x1024`.",
        examples=(),
        choices=VARIATION_SIZES,
        tool=ToolArgument(
            description="Width and height in pixels.",
            choices=VARIATION_SIZES,
            default="1024x1024",
        ),
    ),
    Parameter(
        name="quality",
        kind=Kind.CHOICE,
        of_every_model=True,
        description="`xhigh` and `max` from gpt-image-2.5 on; `standard` and `hd` for DALL·E.",
        choices=QUALITIES,
        choices_of=lambda model: model.qualities,
        sent=lambda request: request.quality,
        tool=ToolArgument(
            description="low, medium, high or auto (some models also xhigh, max). low is cheapest "
            "and fastest; auto may be expensive.",
            examples=("low",),
        ),
    ),
    Parameter(
        name="n",
        kind=Kind.INTEGER,
        operations=GENERATION | EDIT | VARIATION,
        of_every_model=True,
        description="Number of images. Default: 1.",
        minimum=1,
        maximum=10,
        maximum_of=lambda model: model.max_images,
        sent=lambda request: request.n,
        tool=ToolArgument(description="Number of images; each one is charged.", default=1),
    ),
    Parameter(
        name="background",
        kind=Kind.CHOICE,
        description="`transparent` requires png or webp.",
        choices=BACKGROUNDS,
        choices_of=lambda model: model.backgrounds,
        sent=lambda request: request.background,
        tool=ToolArgument(
            description="transparent requires output_format png or webp.", choices=BACKGROUNDS
        ),
    ),
    Parameter(
        name="output_format",
        kind=Kind.CHOICE,
        description="File format. Default: `png`.",
        choices=OUTPUT_FORMATS,
        choices_of=lambda model: model.output_formats,
        sent=lambda request: request.output_format,
        tool=ToolArgument(description="File format; usually png.", choices=OUTPUT_FORMATS),
    ),
    Parameter(
        name="output_compression",
        kind=Kind.INTEGER,
        description="For jpeg and webp only.",
        minimum=0,
        maximum=100,
        sent=lambda request: request.output_compression,
    ),
    Parameter(
        name="moderation",
        kind=Kind.CHOICE,
        operations=GENERATION,
        description="`low` filters less strictly.",
        choices=("auto", "low"),
        sent=lambda request: request.moderation,
    ),
    Parameter(
        name="complexity",
        kind=Kind.CHOICE,
        description="For gpt-image-2.6 only.",
        choices=("low", "medium", "high"),
        choices_of=lambda model: model.complexities,
        sent=lambda request: request.complexity,
    ),
    Parameter(
        name="input_fidelity",
        kind=Kind.CHOICE,
        operations=EDIT,
        description="For gpt-image-1.x only.",
        choices=("low", "high"),
        choices_of=lambda model: model.inputs.fidelities,
        sent=lambda request: request.input_fidelity,
        tool=ToolArgument(
            description="Fidelity to the input, for gpt-image-1.5 and older; omit for others.",
            choices=("high", "low"),
        ),
    ),
    Parameter(
        name="style",
        kind=Kind.CHOICE,
        operations=GENERATION,
        description="dall-e-3's; other models get it as a sentence of the prompt.",
        choices=("vivid", "natural"),
        sent=lambda request: request.style,
    ),
    Parameter(
        name="negative_prompt",
        kind=Kind.TEXT,
        description="What the image should not show.",
        maximum=4000,
        sent=lambda request: request.negative_prompt,
        tool=ToolArgument(description="What to leave out."),
    ),
    Parameter(
        name="seed",
        kind=Kind.INTEGER,
        description="The start of the random numbers: the same seed and request make the same "
        "image. The answer names the seed of each image.",
        minimum=0,
        maximum=MAX_SEED,
        sent=lambda request: request.seed,
        tool=ToolArgument(description="For models that take it."),
    ),
    Parameter(
        name="steps",
        kind=Kind.INTEGER,
        description="Steps of diffusion. Default: the quality's, or the model's.",
        minimum=1,
        maximum=MAX_STEPS,
        maximum_of=lambda model: model.max_steps,
        sent=lambda request: request.steps,
        tool=ToolArgument(description="As seed."),
    ),
    Parameter(
        name="guidance_scale",
        kind=Kind.NUMBER,
        description="How strictly the image follows the prompt. Default: the model's.",
        minimum=0,
        maximum=MAX_GUIDANCE,
        sent=lambda request: request.guidance_scale,
        tool=ToolArgument(description="As seed."),
    ),
    Parameter(
        name="safety_identifier",
        kind=Kind.TEXT,
        description="Id of your end user, for the provider's abuse detection. Hash it.",
        maximum=512,
        sent=lambda request: request.safety_identifier,
    ),
    Parameter(
        name="user",
        kind=Kind.TEXT,
        operations=GENERATION | EDIT | VARIATION,
        of_every_model=True,
        description="The older name of `safety_identifier`.",
        maximum=512,
        sent=lambda request: request.user,
    ),
    Parameter(
        name="response_format",
        kind=Kind.CHOICE,
        operations=GENERATION | EDIT | VARIATION,
        of_every_model=True,
        description="For every model. Default: `b64_json`; for DALL·E `url`. Links expire.",
        choices=("url", "b64_json"),
    ),
    Parameter(
        name="stream",
        kind=Kind.BOOLEAN,
        description="Send server-sent events; for n=1 only.",
    ),
    Parameter(
        name="partial_images",
        kind=Kind.INTEGER,
        description="Only with `stream`.",
        minimum=0,
        maximum=3,
        tool=ToolArgument(
            description="Number of partial images to report as progress; each costs 100 more "
            "tokens. For n=1 and models that stream.",
            default=0,
        ),
    ),
)


def parameters_of(operation: Operation) -> tuple[Parameter, ...]:
    """Return the parameters that belong to an operation."""
    return tuple(one for one in PARAMETERS if operation in one.operations)


_SENT: Mapping[Operation, tuple[tuple[str, Callable[[ImageRequest], Value | None]], ...]] = {
    operation: tuple((one.name, one.sent) for one in parameters_of(operation) if one.sent)
    for operation in Operation
}


def sent_fields(request: ImageRequest) -> dict[str, Value]:
    """Return the values for the provider, by the names of this table, which are OpenAI's.

    An option that the client left open is left out, so that the provider's default applies.
    """
    return {
        name: value
        for name, value_of in _SENT[request.operation]
        if (value := value_of(request)) is not None
    }
