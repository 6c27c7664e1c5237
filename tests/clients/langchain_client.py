"""LangChain for Python: a tool error is a message of status `error`, whose text a model reads."""

import asyncio
import json
import os

from langchain_mcp_adapters.client import MultiServerMCPClient


async def main() -> None:
    """Call the tool once and print the message it became."""
    client = MultiServerMCPClient(
        {
            "images": {
                "transport": "streamable_http",
                "url": os.environ["GATEWAY_MCP_URL"],
                "headers": {"Authorization": f"Bearer {os.environ['GATEWAY_API_KEY']}"},
            }
        }
    )
    [tool] = [tool for tool in await client.get_tools() if tool.name == "generate_image"]
    arguments = json.loads(os.environ["TOOL_ARGUMENTS"])
    message = await tool.ainvoke(
        {"type": "tool_call", "id": "1", "name": tool.name, "args": arguments}
    )
    said = {"status": message.status, "content": message.content, "artifact": message.artifact}
    print(json.dumps(said))  # noqa: T201 - what the test reads


asyncio.run(main())
