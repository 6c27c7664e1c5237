"""Placeholder until the measured paths exist."""
