"""The playground: what its form offers for each model, and how a filled form becomes a call.

`gateway.console.pages.tenant_playground` has its routes; images are made by the one pipeline.
"""
