"""Stored images: the store and its spool, links, history, retention, thumbnails. The pipeline
and the fronts import from it.
"""
