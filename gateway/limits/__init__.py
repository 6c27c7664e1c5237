"""Rate limits and concurrency limits, counted in this process or in Redis. The pipeline and the
fronts import it; it imports neither.
"""
