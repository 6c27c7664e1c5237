"""The operator's identity provider: its tokens become callers. Imported by the bootstrap alone."""
