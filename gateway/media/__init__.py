"""Untrusted images: the sandboxed decoder, metadata removal, previews. Knows no tenant, no
database and no money.
"""
