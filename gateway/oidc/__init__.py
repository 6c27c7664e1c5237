"""Authentication by tokens of the operator's identity provider (OpenID Connect).

Only the bootstrap may import it.
"""
