"""The HTTP layers before the fronts: instrumentation, authentication, admission, connections; the
table of routes, and the reading of bodies.

Fronts may import from it; it imports nothing from them.
"""
