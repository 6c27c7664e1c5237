"""MCP: tools over the same pipeline, keys, budgets and ledger as REST."""
