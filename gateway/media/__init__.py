"""Untrusted images: the sandboxed decoder, metadata removal and previews. The pipeline, the library
and the fronts import it; it knows no tenant, no database and no money.
"""
