"""Protection against overload: bounded concurrency with a fair queue per tenant, and circuit
breakers. Every package above may import it; it knows no provider and no database.
"""
