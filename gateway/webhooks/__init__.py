"""Webhooks: endpoints, and signed event deliveries with retries and dead letters.

The generation pipeline and the layers above may import it.
"""
