"""Detection of OpenAI SDKs older than the GPT image models, by their User-Agent.

Programs of that time name no model and read `["data"][0]["url"]` of DALL·E 2's response.
"""

import re

# github.com/openai/openai-python, 1.76.0, and github.com/openai/openai-node, 4.96.0, of 2025-04-23
# were the first whose `ImageModel` has gpt-image-1.
FIRST_WITH_GPT_IMAGES = {"Python": (1, 76), "JS": (4, 96)}
# `OpenAI/Python 1.75.0`, of subclasses `AsyncOpenAI/Python …`; `OpenAI/JS 4.95.1`.
_CURRENT_FORM = re.compile(r"\w*OpenAI/(Python|JS) (\d{1,4})\.(\d{1,4})\.")
# `OpenAI/v1 PythonBindings/0.28.1` and `OpenAI/NodeJS/3.3.0`, until November 2023.
_FIRST_FORM = re.compile(r"OpenAI/(?:v1 PythonBindings/0|NodeJS/[1-3])\.")


def is_older_than_gpt_images(user_agent: str) -> bool:
    """Tell whether the SDK supports DALL·E only."""
    found = _CURRENT_FORM.match(user_agent)
    if found is None:
        return _FIRST_FORM.match(user_agent) is not None
    language, major, minor = found.groups()
    return (int(major), int(minor)) < FIRST_WITH_GPT_IMAGES[language]
