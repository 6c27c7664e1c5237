"""Events delivered to endpoints: signed, tried again, and kept where nobody took them."""
