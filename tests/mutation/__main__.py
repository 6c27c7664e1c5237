"""`make mutants`: change the code of money and security, one change at a time, and run its tests.

Exit status 0 where enough of the changes were found (95 % unless said otherwise); known survivors,
each with its reason in survivors.toml, do not count.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.copies import Answer, Worker, running_worker, sql_definitions
from tests.mutation.mutants import Mutant
from tests.mutation.python_source import python_mutants
from tests.mutation.sql_source import sql_mutants
from tests.mutation.targets import Target, known_survivors, read_targets

ROOT = Path(__file__).resolve().parents[2]
GOAL_PERCENT = 95
UNFINISHED = "unfinished"
MISSED = frozenset({"survived", UNFINISHED, "unsound"})


@dataclass(frozen=True, slots=True)
class Job:
    """One mutant and what it takes to try it."""

    mutant: Mutant
    target: Target
    definition: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one mutant, and what it took."""

    job: Job
    answer: Answer


class Finders:
    """The tests that found the latest mutants of each source: they often find its next one.

    Each must pass without a mutant.
    """

    KEPT = 4

    def __init__(self) -> None:
        self._latest: dict[str, list[str]] = {}
        self._sound: set[str] = set()

    def of(self, source: str) -> list[str]:
        """Ids of tests, the latest first."""
        return list(self._latest.get(source, ()))

    def add(self, source: str, test: str) -> None:
        """Remember a test that found a mutant."""
        others = [other for other in self.of(source) if other != test]
        self._latest[source] = [test, *others][: self.KEPT]

    def is_sound(self, test: str, worker: Worker) -> bool:
        """The test passes where nothing is changed."""
        if test not in self._sound and worker.run(None, "", [test]).outcome == "survived":
            self._sound.add(test)
        return test in self._sound


def main() -> None:
    """Run as the command line says."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # closes what is open
    survivors = known_survivors()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
        workers = [
            stack.enter_context(
                running_worker(ROOT, folder / f"copy-{number}", seconds=options.seconds)
            )
            for number in range(options.workers)
        ]
        definitions = asyncio.run(sql_definitions(workers[0].owner_url))
        jobs = [job for job in _jobs(definitions) if _is_wanted(job, options.only)]
        chosen = _sample(jobs, options.sample, options.seed)
        known = [job for job in chosen if job.mutant.identity in survivors]
        print(f"{len(chosen)} of {len(jobs)} mutants, {len(known)} of them known survivors.")
        if options.list:
            print("\n".join(job.mutant.identity for job in chosen))
            return
        left = [job for job in chosen if job.mutant.identity not in survivors]
        results = list(_try_all(workers, left))
    ignored = frozenset({UNFINISHED} if options.ignore_unfinished else ())
    _report(results, options.goal, ignored=ignored)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="how many (0: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--only", action="append", help="mutants whose name contains this")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=int, default=120, help="time limit of one run")
    parser.add_argument("--goal", type=int, default=GOAL_PERCENT, help="percent to be found")
    parser.add_argument(
        "--ignore-unfinished", action="store_true", help="judge only runs that ended in time"
    )
    parser.add_argument("--list", action="store_true", help="name the mutants, run nothing")
    return parser.parse_args()


def _jobs(definitions: dict[str, str]) -> Iterator[Job]:
    for target in read_targets():
        for pattern in target.sources:
            for path in sorted(ROOT.glob(pattern)):
                for mutant in python_mutants(path, ROOT):
                    yield Job(mutant, target)
        for name in target.functions:
            for mutant in sql_mutants(name, definitions[name]):
                yield Job(mutant, target, definitions[name])


def _is_wanted(job: Job, only: Sequence[str] | None) -> bool:
    return not only or any(text in job.mutant.identity for text in only)


def _sample(jobs: Sequence[Job], count: int, seed: int) -> list[Job]:
    """`count` jobs, from each source in turn, so that a small one is not passed over.

    The order is by hash: an edit of one source changes nothing in the sample of the others.
    """
    if not 0 < count < len(jobs):
        return list(jobs)

    def rank(job: Job) -> bytes:
        return sha256(f"{seed} {job.mutant.identity}".encode()).digest()

    by_source: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=rank):
        by_source.setdefault(job.mutant.source, []).append(job)
    in_turn = [job for turn in zip_longest(*by_source.values()) for job in turn if job is not None]
    return in_turn[:count]


def _try_all(workers: Sequence[Worker], jobs: Sequence[Job]) -> Iterator[Result]:
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)
    finders = Finders()

    def attempt(job: Job) -> Result:
        worker = idle.get()
        try:
            return Result(job, _try(worker, job, finders))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        for result in pool.map(attempt, jobs):
            answer, mutant = result.answer, result.job.mutant
            print(
                f"{answer.outcome:9} {answer.seconds:6.1f} s  "
                f"{mutant.source}:{mutant.line}  {mutant.change}  {answer.finder}",
                flush=True,
            )
            yield result


def _try(worker: Worker, job: Job, finders: Finders) -> Answer:
    """Run the likeliest tests, and all of the target's where they pass."""
    mutant, source = job.mutant, job.mutant.source
    likely = finders.of(source)
    answer = worker.run(mutant, job.definition, likely) if likely else None
    if answer is None or answer.outcome == "survived":
        answer = worker.run(mutant, job.definition, job.target.tests)
    if answer.finder and not finders.is_sound(answer.finder, worker):
        return replace(answer, outcome="unsound")
    if answer.finder:
        finders.add(source, answer.finder)
    return answer


def _report(results: Sequence[Result], goal_percent: int, *, ignored: frozenset[str]) -> None:
    for result in results:
        if result.answer.outcome in MISSED:
            print(f"\n{result.answer.outcome.capitalize()}: {result.job.mutant.identity}")
    by_target: dict[str, Counter[str]] = {}
    for result in results:
        by_target.setdefault(result.job.target.name, Counter())[result.answer.outcome] += 1
    print()
    for name, outcomes in by_target.items():
        print(f"{name:14}", ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()))
    total = sum(by_target.values(), Counter[str]())
    found, tried = (
        total["found"],
        total["found"] + sum(total[outcome] for outcome in MISSED - ignored),
    )
    share = found / tried if tried else 1.0
    print(f"\n{found} of {tried} mutants found ({share:.1%}; goal {goal_percent} %).")
    sys.exit(share * 100 < goal_percent)


if __name__ == "__main__":
    main()
