"""A faithful stub of OpenAI's Images API that keeps its own, independent bill.

In a test: `async with running_stub() as stub`. As a process: `python -m tests.stub_openai`, driven
through `StubControl`. It imports nothing of the program under test.
"""

from tests.stub_openai.bill import BillLine, read_bill_file
from tests.stub_openai.client import StubControl, StubControlError, stub_process
from tests.stub_openai.config import StubConfig
from tests.stub_openai.faults import BILLED_BY_DEFAULT, Fault, FaultQueue
from tests.stub_openai.running import Stub, running_stub
from tests.stub_openai.state import Call, Totals

__all__ = [
    "BILLED_BY_DEFAULT",
    "BillLine",
    "Call",
    "Fault",
    "FaultQueue",
    "Stub",
    "StubConfig",
    "StubControl",
    "StubControlError",
    "Totals",
    "read_bill_file",
    "running_stub",
    "stub_process",
]
