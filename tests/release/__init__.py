"""Releases: archives, bill of materials, licences, and trials with other versions of packages.

`python -m tests.release` lists the commands; the Makefile has a target for each.
"""
