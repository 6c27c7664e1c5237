"""The workers of `gateway serve --workers N`: kept alive, replaced at SIGHUP, and stopped."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from prometheus_client import multiprocess
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from gateway.cli.models_copy import ModelsCopy
from gateway.config import Settings
from gateway.errors import ConfigurationError
from gateway.web.connections.tls import Certificate, read_or_keep

POLL_SECONDS = 0.5
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Waits before a worker that could not start is started again: Postgres may be away."""
log = structlog.get_logger(__name__)


class Supervisor(Multiprocess):
    """The parent of the workers. It stops listening before they do.

    Later connections are refused at once, since no worker would accept them.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        listeners: Sequence[socket.socket],
        settings: Settings,
        models_copy: ModelsCopy,
        metrics_folder: Path,
    ) -> None:
        super().__init__(config, sockets=list(listeners))
        self.has_failed = False
        self._models_copy = models_copy
        self._metrics_folder = metrics_folder
        self._tls_files = settings.tls_files
        self._retiring: Process | None = None
        self._has_served = False
        self._last_restarted: Process | None = None
        self._failures = 0
        self._starts_again_at = 0.0

    def terminate_all(self) -> None:
        """Stop listening, and tell every worker to stop."""
        for listener in self.sockets:
            listener.close()
        super().terminate_all()

    def join_all(self) -> None:
        """Wait for every worker, also for one that is being replaced."""
        super().join_all()
        if self._retiring is not None:
            self._retiring.join()

    def handle_hup(self) -> None:
        """Replace the workers, which read these files at their start, unless one is wrong."""
        files = self._tls_files
        if files is not None and not read_or_keep(partial(Certificate, *files)):
            return
        try:
            self._models_copy.take()
        except ConfigurationError as error:
            log.error("models_file_refused", error=str(error))  # noqa: TRY400 - the words say it
        else:
            self.restart_all()

    def restart_all(self) -> None:
        """Replace each worker when its replacement serves, until told to stop."""
        for index in range(len(self.processes)):
            replacement = self._start()
            if not self._is_ready_in_time(replacement):
                return
            worker, self.processes[index] = self.processes[index], replacement
            self._retire(worker)
            if self._is_told_to_stop():
                return

    def handle_ttou(self) -> None:
        """Stop one worker, but not the last."""
        if self.processes_num > 1:
            self.processes_num -= 1
            self._retire(self.processes.pop())

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died or hang.

        The first ones must start. Later ones are started again and again: the others serve.
        """
        for index, process in enumerate(self.processes):
            if self._is_told_to_stop():
                return
            # The parent's copy of the worker's end of the pipe: with it, the check would wait for
            # its timeout when a worker dies meanwhile.
            process.child_conn.close()
            if process.is_alive(self.config.timeout_worker_healthcheck):
                self._note_serving(process)
                continue
            process.kill()
            process.join()
            if self._is_told_to_stop():
                return
            if process.exitcode == STARTUP_FAILURE and not self._has_served:
                self.has_failed = True
                self.should_exit.set()
                return
            self._remove_metrics(process)
            could_not_start = process.exitcode == STARTUP_FAILURE or process is self._last_restarted
            if could_not_start and not self._is_restart_due():
                continue
            log.warning("worker_died", pid=process.pid, status=process.exitcode)
            self.processes[index] = self._last_restarted = self._start()

    def _is_told_to_stop(self) -> bool:
        """True once a signal to stop has arrived, even before it is handled."""
        stops = {signal.SIGINT, signal.SIGTERM}
        return self.should_exit.is_set() or not stops.isdisjoint(self.signal_queue)

    def _start(self) -> Process:
        process = Process(self.config, self.sockets)
        process.start()
        return process

    def _is_ready_in_time(self, replacement: Process) -> bool:
        """Wait until a replacement serves; one that does not is ended, and the worker stays."""
        ends_at = time.monotonic() + self.config.timeout_worker_healthcheck
        while not self._is_told_to_stop() and time.monotonic() < ends_at:
            if replacement.wait_until_ready(POLL_SECONDS):
                return True
            if not replacement.process.is_alive():
                break
        if self._is_told_to_stop():
            self.processes.append(replacement)  # to be stopped with the others
            return False
        log.error("worker_not_replaced", pid=replacement.pid, status=replacement.exitcode)
        replacement.kill()
        replacement.join()
        self._remove_metrics(replacement)
        return False

    def _retire(self, worker: Process) -> None:
        """Stop a worker that is not needed any more, and keep the others alive until it has ended.

        By SIGINT: the delay after SIGTERM is for balancers, and the other workers go on.
        """
        self._retiring = worker
        log.info("worker_retires", pid=worker.pid)
        if worker.pid is not None and worker.process.is_alive():
            os.kill(worker.pid, signal.SIGINT)
        while worker.process.is_alive():
            if self._is_told_to_stop():
                return  # `join_all` waits for it
            worker.process.join(POLL_SECONDS)
            self.keep_subprocess_alive()
        self._remove_metrics(worker)
        self._retiring = None

    def _note_serving(self, process: Process) -> None:
        if (not self._has_served or process is self._last_restarted) and process.is_ready():
            self._has_served, self._last_restarted, self._failures = True, None, 0

    def _is_restart_due(self) -> bool:
        """Return True when the wait after the last failed start is over."""
        now = time.monotonic()
        if not self._starts_again_at:
            wait_seconds = RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS) - 1)]
            self._failures += 1
            self._starts_again_at = now + wait_seconds
            log.warning("worker_not_started", retry_after_seconds=wait_seconds)
        if now < self._starts_again_at:
            return False
        self._starts_again_at = 0.0
        return True

    def _remove_metrics(self, process: Process) -> None:
        """Take the state of an ended worker out of the metrics; what it counted stays."""
        process.parent_conn.close()
        multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]
            process.pid, str(self._metrics_folder)
        )
