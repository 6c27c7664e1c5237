"""The catalogue of image models, as data. The pipeline, billing and the fronts import it; it
imports only the types of the base modules.
"""
