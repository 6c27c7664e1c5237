"""A stub of the Gemini API on loopback, with its own bill; it shares no code with the gateway."""

from tests.stub_gemini.api import BillLine, GeminiCall, answer_of
from tests.stub_gemini.server import StubGemini, running_gemini

__all__ = ["BillLine", "GeminiCall", "StubGemini", "answer_of", "running_gemini"]
