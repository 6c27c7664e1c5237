"""Image Gateway: one place through which a company's applications make images with AI."""

__version__ = "0.1.0"
