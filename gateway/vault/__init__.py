"""Secrets at rest: sealing, the gateway's own secrets, rotation, and the format of keys.

Tenancy, billing and the layers above may import it.
"""
