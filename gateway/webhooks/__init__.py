"""Webhooks: endpoints, and signed event deliveries with retries and dead letters.

Fronts, the sweeper and the command line may import it.
"""
