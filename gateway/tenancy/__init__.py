"""Tenants with their users, API keys, credentials and limits, and the operator's admin keys.

Fronts, the generation pipeline, the sweeper and the command line may import it.
"""
