"""Money: prices, quotes, budgets, reservations and the ledger's reports."""
