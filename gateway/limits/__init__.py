"""What may happen at once, and how often."""
