"""Outbound HTTP to untrusted addresses: protection against SSRF, and bounded downloads. Every
package that sends such a request may import it.
"""
