"""Checks of deploy/ that need tools of their own; tests/tooling/test_deploy.py runs them."""
