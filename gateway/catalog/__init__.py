"""The catalogue of image models, as data. Imported by the pipeline, billing and the fronts."""
