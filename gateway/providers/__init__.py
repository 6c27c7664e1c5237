"""Providers of images, each a package behind the interface in `base`. Only the composition root
imports a provider's package; the pipeline knows the interface alone.
"""
