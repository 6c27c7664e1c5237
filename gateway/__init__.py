"""Image Gateway, a multi-tenant gateway for image generation.

The top modules hold the values and errors that every package may import, and the start-up code
(`main`, `bootstrap`, `opening`, `reading`), which only the command line and the fronts import.
"""

__version__ = "0.2.0"
