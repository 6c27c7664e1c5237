"""Prices, quotes, budgets, reservations, the ledger and its usage reports.

The webhooks, the library, the generation pipeline and the layers above may import it.
"""
