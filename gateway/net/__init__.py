"""Requests to addresses that others choose: which are public, and bounded downloads from them.
Imported by every package that sends such a request.
"""
