// The official MCP client for TypeScript, version 1: it checks structured content against the announced schema.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const { GATEWAY_MCP_URL, GATEWAY_API_KEY, TOOL_ARGUMENTS } = process.env;
const Transport = GATEWAY_MCP_URL.endsWith("/sse") ? SSEClientTransport : StreamableHTTPClientTransport;
const client = new Client({ name: "sdk-v1", version: "1.0.0" });
await client.connect(
  new Transport(new URL(GATEWAY_MCP_URL), {
    requestInit: { headers: { Authorization: `Bearer ${GATEWAY_API_KEY}` } },
  }),
);
await client.listTools();
const result = await client.callTool({ name: "generate_image", arguments: JSON.parse(TOOL_ARGUMENTS) });
console.log(JSON.stringify(result));
await client.close();
