"""The vendors behind the gateway, each behind one small interface."""
