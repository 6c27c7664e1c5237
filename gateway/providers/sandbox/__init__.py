"""The provider of test keys: synthetic images, realistic usage, failures on demand, no cost. Only
the composition root imports it.
"""
