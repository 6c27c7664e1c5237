"""The REST front: OpenAI's Images API and the tenant's routes, translated to the core and back.

It may import every package below the fronts; only `gateway.main` imports it.
"""
