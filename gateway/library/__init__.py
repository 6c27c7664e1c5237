"""Stored images: the store and its spool, links, history, retention and thumbnails. The pipeline,
the fronts and the background sweeps import it; it imports neither the pipeline nor a front.
"""
