"""Entry point of `make bench` and `make drill`: tables and JSON (docs/performance.md)."""

import argparse
import asyncio
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import noisy, overload, parts, senders, table, tenants
from benchmarks.rows import print_rows, save

MEASUREMENTS = ("table", "parts", "tenants", "overload", "noisy", "senders")


def main() -> None:
    """Run the requested measurements, print them, and save the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "what", nargs="*", default=["table", "parts", "tenants"], help=", ".join(MEASUREMENTS)
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of floor and gateway")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of requests")
    parser.add_argument(
        "--folder",
        type=Path,
        help="place of the database and the images (default: the temporary folder); one in memory, "
        "such as /dev/shm, leaves out the time of the disk, which the floor does not use",
    )
    options = parser.parse_args()
    if unknown := set(options.what) - set(MEASUREMENTS):
        parser.error(
            f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MEASUREMENTS)}"
        )
    print(f"{platform.python_implementation()} {platform.python_version()}")
    for what in options.what:
        measure(what, options.rounds, options.scale, options.folder)


def measure(what: str, rounds: int, scale: float, place: Path | None = None) -> None:
    """Run one measurement on fresh servers, whose files are below `place`."""
    folder = Path(tempfile.mkdtemp(prefix="gateway-bench-", dir=place))
    started = time.perf_counter()
    print(f"  {what} …", file=sys.stderr, flush=True)
    try:
        match what:
            case "table":
                rows = asyncio.run(table.measure(folder, rounds, scale))
                print_rows(rows)
                save("latest", rows=rows)
            case "parts":
                found = asyncio.run(parts.measure(folder, rounds, scale))
                parts.print_parts(found)
                save("parts", parts=found)
            case "tenants":
                rows = asyncio.run(tenants.measure(folder, rounds, scale))
                print_rows(rows)
                save("tenants", rows=rows)
            case "overload":
                save("overload", figures=asyncio.run(overload.measure(folder, scale)))
            case "senders":
                save("senders", figures=senders.measure(folder))
            case _:
                save("noisy", figures=asyncio.run(noisy.measure(folder, scale)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"  {what}: {time.perf_counter() - started:.0f} s\n", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
