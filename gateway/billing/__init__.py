"""Prices, quotes, budgets, reservations, the ledger and its usage reports.

Fronts, the generation pipeline, the sweeper and the command line may import it.
"""
