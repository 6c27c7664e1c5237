"""A stub of six diffusers servers behind KServe on loopback, with its own bill.

It shares no code with the gateway.
"""

from tests.stub_kserve.api import PRICE_NANO, BillLine, KServeCall, answer_of
from tests.stub_kserve.server import StubKServe, running_kserve

__all__ = [
    "PRICE_NANO",
    "BillLine",
    "KServeCall",
    "StubKServe",
    "answer_of",
    "running_kserve",
]
