"""OpenAI's SDK as the gateway uses it: a lean import, and no header that a call does not need."""

import subprocess
import sys
from pathlib import Path

from gateway.config import Settings
from tests.harness import Served, gateway_process, process_environment
from tests.money_helpers import client_of, post_image
from tests.stub_openai import Stub

IMPORTS = """
import sys
import gateway.main
types = [name for name in sys.modules if name.startswith("openai.types")]
assert "openai._client" in sys.modules
assert "openai.types.responses.response" not in sys.modules
assert len(types) < 100, len(types)

import openai
from openai.types.responses import Response
assert openai.types.Image.__module__ == "openai.types.image"
assert Response.__module__ == "openai.types.responses.response"
assert not hasattr(openai.types, "Missing")
"""


def test_the_gateway_imports_the_sdk_without_its_types_which_others_still_find() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_call_carries_nothing_of_the_environment_that_is_meant_for_other_keys(
    served: Served, settings: Settings, stub: Stub, tmp_path: Path
) -> None:
    environment = process_environment(settings) | {
        "OPENAI_ORG_ID": "org-of-the-operator",
        "OPENAI_PROJECT_ID": "proj_of_the_operator",
    }
    with gateway_process(environment, tmp_path / "log") as running:
        await running.until_ready()
        async with client_of(running.base_url, await served.key()) as http:
            await post_image(http)
            await post_image(http)
    assert [call.stainless for call in stub.calls if call.method == "POST"] == [{}, {}]
