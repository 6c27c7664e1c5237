"""Prompt templates in MCP: the list, a rendered prompt, and argument completion."""

import re
from collections.abc import Mapping

from mcp.types import (
    GetPromptRequestParams,
    GetPromptResult,
    ListPromptsResult,
    PaginatedRequestParams,
    Prompt,
    PromptMessage,
    TextContent,
)
from mcp.types import PromptArgument as ListedArgument

from gateway.catalog.sizes import fitting_size
from gateway.errors import InvalidRequest, NotFound
from gateway.image_models import Model
from gateway.mcp_server.calls import Context, opened_gateway
from gateway.mcp_server.prompt_files import PromptArgument, PromptTemplate

MAX_ARGUMENT_CHARACTERS = 2000
RECOMMENDED_KEY = "image-gateway/recommended"
"""The key in a rendered prompt's `_meta` for `{"wished_size", "size", "model", "arguments"}`;
`arguments` are those of `generate_image`, ready to be sent."""

_BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_YES_AND_NO = {
    "true": "yes",
    "on": "yes",
    "1": "yes",
    "y": "yes",
    "false": "no",
    "off": "no",
    "0": "no",
    "n": "no",
}
"""Accepted booleans for arguments whose choices are yes and no."""


async def list_prompts(
    templates: Mapping[str, PromptTemplate],
    _context: Context,
    _params: PaginatedRequestParams | None,
) -> ListPromptsResult:
    """List all prompts."""
    return ListPromptsResult(prompts=prompt_list(templates))


async def get_prompt(
    templates: Mapping[str, PromptTemplate], context: Context, params: GetPromptRequestParams
) -> GetPromptResult:
    """Render one prompt, sized for the default model.

    Raises:
        NotFound: the prompt does not exist (code `prompt_not_found`).
        InvalidRequest: an argument is invalid.
    """
    template = templates.get(params.name)
    if template is None:
        raise NotFound(
            f"There is no prompt {params.name[:80]!r}. The prompts are: {', '.join(templates)}.",
            code="prompt_not_found",
            param="name",
        )
    gateway, caller = opened_gateway(context)
    catalog = gateway.core.catalog
    default = catalog.models[gateway.settings.default_model]
    model = catalog.serving(default, livemode=caller.livemode)
    return prompt_result(template, params.arguments, model)


def prompt_list(templates: Mapping[str, PromptTemplate]) -> list[Prompt]:
    """Describe every template, for a user to choose from."""
    return [
        Prompt(
            name=template.name,
            title=template.title,
            description=template.description,
            arguments=[
                ListedArgument(
                    name=argument.name,
                    title=argument.title,
                    description=_full_description(argument),
                    required=argument.required,
                )
                for argument in template.arguments
            ],
        )
        for template in templates.values()
    ]


def prompt_result(
    template: PromptTemplate, arguments: Mapping[str, str] | None, model: Model
) -> GetPromptResult:
    """Build the rendered prompt as one user message, with recommended parameters.

    `model` is the one that will make the image. Blank arguments count as omitted.

    Raises:
        InvalidRequest: an argument is missing, unknown, too long or not a valid choice.
    """
    chosen = _checked_arguments(template, arguments or {})
    prompt = template.render(chosen)
    width, height = template.wished_size(chosen)
    wished = f"{width}x{height}"
    size = fitting_size(model, (width, height))
    parameters = {"size": size, **_format_parameters(template, model)}
    return GetPromptResult(
        description=template.description,
        messages=[
            PromptMessage(
                role="user",
                content=TextContent(
                    type="text",
                    text=f"{prompt}\n\n{_recommendation(prompt, model, wished, parameters)}",
                ),
            )
        ],
        _meta={
            RECOMMENDED_KEY: {
                "wished_size": wished,
                "size": size,
                "model": model.id,
                "arguments": {"prompt": prompt, **parameters},
            }
        },
    )


def complete_argument(template: PromptTemplate, argument_name: str, typed: str) -> list[str]:
    """Complete a value: choices or suggestions that begin with the typed text, then those that
    contain it.

    Raises:
        InvalidRequest: the template has no such argument.
    """
    for argument in template.arguments:
        if argument.name == argument_name:
            sought = typed.strip().lower()
            offered = [*argument.choices, *argument.suggestions]
            matching = [word for word in offered if sought in word.lower()]
            return sorted(matching, key=lambda word: not word.lower().startswith(sought))
    raise _unknown(template, argument_name)


def _full_description(argument: PromptArgument) -> str:
    """The description with choices and default: MCP has no separate fields for them."""
    sentences = [argument.description]
    if argument.choices:
        sentences.append(f"One of: {', '.join(argument.choices)}.")
    if argument.suggestions:
        sentences.append(f"For example: {', '.join(argument.suggestions)}.")
    if argument.default is not None:
        sentences.append(f"Default: {argument.default}.")
    return " ".join(sentences)


def _recommendation(prompt: str, model: Model, wished: str, parameters: Mapping[str, str]) -> str:
    items = [f"{name} {value}" for name, value in parameters.items()]
    if parameters["size"] != wished:
        items[0] += f" (the nearest that {model.id} accepts to {wished})"
    listed = " and ".join([", ".join(items[:-1]), items[-1]] if items[1:] else items)
    text = f"Recommended: generate_image with the text above as its prompt, {listed}."
    if len(prompt) > model.max_prompt_characters:
        text += (
            f" The prompt has {len(prompt)} characters, and {model.id} takes at most "
            f"{model.max_prompt_characters}: name a model that takes more."
        )
    return text


def _format_parameters(template: PromptTemplate, model: Model) -> dict[str, str]:
    """The template's preferred parameters besides the size, as far as the model supports them."""
    wishes = [
        ("output_format", template.output_format, model.output_formats),
        ("background", template.background, model.backgrounds),
    ]
    return {name: wish for name, wish, known in wishes if wish is not None and wish in known}


def _checked_arguments(template: PromptTemplate, given: Mapping[str, str]) -> dict[str, str]:
    """A value for each argument that has one: the given value, or its default."""
    known = {argument.name for argument in template.arguments}
    for name in given:
        if name not in known:
            raise _unknown(template, name)
    chosen = {}
    for argument in template.arguments:
        value = _checked_value(argument, given.get(argument.name, ""))
        if value is None and argument.required:
            raise InvalidRequest(
                f"Missing required parameter: '{argument.name}'. {argument.description}",
                code="missing_required_parameter",
                param=argument.name,
            )
        if value is not None:
            chosen[argument.name] = value
    return chosen


def _checked_value(argument: PromptArgument, said: str) -> str | None:
    if len(said) > MAX_ARGUMENT_CHARACTERS:
        raise InvalidRequest(
            f"Invalid '{argument.name}': string too long. Expected a string with maximum length "
            f"{MAX_ARGUMENT_CHARACTERS}, but got a string with length {len(said)} instead.",
            code="string_above_max_length",
            param=argument.name,
        )
    if any("\ud800" <= character <= "\udfff" for character in said):
        raise InvalidRequest(
            f"'{argument.name}' contains a lone surrogate, which is not a valid character.",
            param=argument.name,
        )
    value = _BLANK.sub(" ", said).strip()
    if not value:
        return argument.default
    return _chosen(argument, value) if argument.choices else value


def _chosen(argument: PromptArgument, value: str) -> str:
    """Match a value to a choice: people write "Left Aligned", programs write "true"."""
    spelled = value.lower().replace(" ", "-").replace("_", "-")
    for choice in (spelled, _YES_AND_NO.get(spelled, "")):
        if choice in argument.choices:
            return choice
    raise InvalidRequest(
        f"Invalid value: '{value[:40]}'. Supported values are: "
        f"{', '.join(repr(choice) for choice in argument.choices)}.",
        param=argument.name,
    )


def _unknown(template: PromptTemplate, name: str) -> InvalidRequest:
    known = ", ".join(argument.name for argument in template.arguments) or "none"
    return InvalidRequest(
        f"Unknown parameter: '{name[:40]}'. '{template.name}' takes: {known}.",
        code="unknown_parameter",
        param=name,
    )
