"""Every HTTP request passes here first: request ids and the log, authentication, admission,
connection bounds. Fronts import from it; it imports nothing of them.
"""
