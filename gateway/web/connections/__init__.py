"""Client connections before any request is understood: bounds on bytes, time and number."""
