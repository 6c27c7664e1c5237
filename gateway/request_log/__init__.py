"""The request log: writing, retention, queries and rendering of one record per request.

Fronts, the sweeper and the command line may import it.
"""
