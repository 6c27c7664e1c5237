"""The HTTP layers before the fronts: instrumentation, authentication, admission, connections.

Fronts may import from it; it imports nothing from them.
"""
