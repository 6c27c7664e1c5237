"""Mutation testing: change the money and security code in one place, and expect a test to fail."""
