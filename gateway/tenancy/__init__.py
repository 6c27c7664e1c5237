"""Tenants with their users, API keys, credentials and limits, and the operator's admin keys.

The webhooks, the library, the generation pipeline and the layers above may import it.
"""
