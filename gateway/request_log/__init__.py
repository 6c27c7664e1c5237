"""The request log: writing, retention, queries and rendering of one record per request.

The library, the generation pipeline and the layers above may import it.
"""
