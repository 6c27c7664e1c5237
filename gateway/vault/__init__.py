"""Secrets at rest: sealing, the gateway's own secrets, rotation, and the format of keys.
Tenancy and webhooks import from it.
"""
