"""People in the console: who they are, what they may do, their sessions. No HTTP.

`gateway.console` imports it; roles are checked here and by row-level security.
"""
