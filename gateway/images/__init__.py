"""Making images: the one pipeline, the catalogue of models, storage and links."""
