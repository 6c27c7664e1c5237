"""Secrets at rest: sealing, the gateway's own secrets, rotation, and the format of keys.

Everything above `gateway.db` may import it.
"""
