"""Load: bounded concurrency with a fair queue per tenant, and circuit breakers. Knows no
provider and no database.
"""
