"""Tenants, their users, API keys and provider credentials, and the vault that seals secrets."""
