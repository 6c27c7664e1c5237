"""No process of the gateway leaves its memory, which holds keys, in a core dump."""

import os
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # ships without types
import pytest

from tests.cli.test_cli_manners import fresh_folder
from tests.cli.test_quickstart import started

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and prctl are Linux'")
SHOW_WHETHER_DUMPABLE = "print('dumpable:', ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
"""PR_GET_DUMPABLE of linux/prctl.h."""


def core_limit_of(pid: int) -> list[str]:
    """The soft and the hard limit of a process."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core file size")).split()[4:6]


def test_gateway_workers_and_postgres_may_write_no_core_dump() -> None:
    with fresh_folder() as folder, started(folder, "--workers", "2", from_nothing=True) as running:
        postmaster = int((folder / "data/postgres/postmaster.pid").read_text().split()[0])
        family = [
            member
            for head in (psutil.Process(running.process.pid), psutil.Process(postmaster))
            for member in (head, *head.children(recursive=True))
        ]
        assert len(family) >= 8
        for member in family:
            assert core_limit_of(member.pid) == ["0", "0"], member.cmdline()


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.argv = ['gateway', '--version']\nfrom gateway.cli import main\nmain()",
        "from gateway.cli import worker_app\nworker_app()",
        "from gateway.media.decoder_process import *\nlimit_self(JobLimits(65_536, 2**28))",
    ],
    ids=["gateway", "worker", "decoder"],
)
def test_a_process_that_holds_secrets_is_not_dumpable(code: str) -> None:
    told = f"import atexit, ctypes\natexit.register(lambda: {SHOW_WHETHER_DUMPABLE})\n{code}"
    ended = subprocess.run(
        [sys.executable, "-c", told],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "dumpable: 0" in ended.stdout, ended.stderr
