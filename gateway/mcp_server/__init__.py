"""The MCP front: tools, resources and prompts over the same pipeline, keys, budgets and ledger as
REST.

It may import every package below the fronts; only `gateway.main` and `gateway.cli` import it.
"""
