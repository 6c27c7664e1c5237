"""`python -m tests.stub_openai`: the stub as a process of its own."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.stub_openai.config import StubConfig
from tests.stub_openai.running import running_stub

try:
    import uvloop
except ImportError:  # no uvloop on Windows: slower, otherwise the same
    _new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
else:
    _new_loop = uvloop.new_event_loop


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.stub_openai", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--port-file", type=Path, help="where to write the port once listening")
    parser.add_argument("--bill-file", type=Path, help="append every bill line here, as JSON")
    parser.add_argument("--latency-seconds", type=float, default=0.0)
    parser.add_argument("--min-b64-bytes", type=int, default=0)
    parser.add_argument("--no-record-calls", action="store_true", help="for long benchmarks")
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    config = StubConfig(
        latency_seconds=options.latency_seconds,
        min_b64_bytes=options.min_b64_bytes,
        record_calls=not options.no_record_calls,
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_stub(
        config=config, host=options.host, port=options.port, bill_file=options.bill_file
    ) as stub:
        if options.port_file is not None:
            _write_whole(options.port_file, f"{stub.port}\n")
        sys.stdout.write(f"{stub.port}\n")
        sys.stdout.flush()
        await stop.wait()


def _write_whole(path: Path, text: str) -> None:
    # Renamed into place, so that a waiting reader never sees a half-written number.
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text)
    draft.replace(path)


if __name__ == "__main__":
    main()
