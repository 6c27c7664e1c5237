// The official MCP client for TypeScript, version 2.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const { GATEWAY_MCP_URL, GATEWAY_API_KEY, TOOL_ARGUMENTS } = process.env;
const client = new Client({ name: "sdk-v2", version: "1.0.0" }, { versionNegotiation: { mode: "auto" } });
await client.connect(
  new StreamableHTTPClientTransport(new URL(GATEWAY_MCP_URL), {
    requestInit: { headers: { Authorization: `Bearer ${GATEWAY_API_KEY}` } },
  }),
);
await client.listTools();
const result = await client.callTool({ name: "generate_image", arguments: JSON.parse(TOOL_ARGUMENTS) });
console.log(JSON.stringify(result));
await client.close();
