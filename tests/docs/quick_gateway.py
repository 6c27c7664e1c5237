"""A `gateway` for the shell of a test that need not import the command each time.

The program on the shell's path hands its arguments and its input to the tests over a socket; there
a fork of a process that has imported the command runs them.
"""

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.cli.test_cli_manners import CommandLine

PROGRAM = """\
#!{python} -SE
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as asked:
    asked.connect({place!r})
    stdin = "" if os.isatty(0) or not {reads}.intersection(sys.argv) else sys.stdin.read()
    call = {{"words": sys.argv[1:], "folder": os.getcwd(), "stdin": stdin}}
    asked.sendall(json.dumps(call).encode() + b"\\n")
    answer = json.load(asked.makefile())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["status"])
"""
READS = {"credentials"}
"""Commands that read standard input; for others it is the script of the shell itself."""


@contextmanager
def quick_gateway(command: CommandLine, folder: Path) -> Iterator[Path]:
    """A folder for the path of a shell, with a program `gateway`."""
    place = folder / "gateway.socket"

    class Calls(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            call = json.loads(self.rfile.readline())
            run = replace(command, folder=Path(call["folder"]))
            ended = run(*call["words"], stdin=call["stdin"])
            answer = {"status": ended.status, "out": ended.out, "err": ended.err}
            self.wfile.write(json.dumps(answer).encode())

    programs = folder / "programs"
    programs.mkdir()
    program = programs / "gateway"
    program.write_text(PROGRAM.format(python=sys.executable, place=str(place), reads=READS))
    program.chmod(0o755)
    with socketserver.UnixStreamServer(str(place), Calls) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield programs
        server.shutdown()
        serving.join()
