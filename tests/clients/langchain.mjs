// LangChain for JavaScript: a tool error is an exception whose message a model reads.
import { MultiServerMCPClient } from "@langchain/mcp-adapters";

const { GATEWAY_MCP_URL, GATEWAY_API_KEY, TOOL_ARGUMENTS } = process.env;
const client = new MultiServerMCPClient({
  useStandardContentBlocks: true,
  mcpServers: {
    images: {
      url: GATEWAY_MCP_URL,
      transport: "http",
      automaticSSEFallback: false,
      headers: { Authorization: `Bearer ${GATEWAY_API_KEY}` },
    },
  },
});
const tool = (await client.getTools()).find(({ name }) => name === "generate_image");
const said = await tool
  .invoke({ type: "tool_call", id: "1", name: tool.name, args: JSON.parse(TOOL_ARGUMENTS) })
  .then(({ content, artifact }) => ({ content, artifact }))
  .catch((error) => ({ error: error.message }));
console.log(JSON.stringify(said));
await client.close();
