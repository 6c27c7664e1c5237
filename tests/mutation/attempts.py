"""Tries mutants: first on the nearest tests, then, one at a time, on many more.

A mutant counts as survived only after the second look. The first one uses few tests, so that most
mutants cost seconds.
"""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.copies import Answer, Worker
from tests.mutation.mutants import Mutant
from tests.mutation.targets import Target

SURVIVED, UNFINISHED, UNSOUND = "survived", "unfinished", "unsound"
MISSED = frozenset({SURVIVED, UNFINISHED, UNSOUND})
FAR_WITHIN = 4
"""A run out of time is due to the mutant if, without it, the tests take this fraction of it."""
LONG_SECONDS = 30
"""As long as a test can take before it counts as one that hangs."""
MOST_UNSOUND = 8
"""Tests that fail with nothing changed and are left out; with more, the machine is not well."""
_LINE = re.compile(r"^(\w+) +[\d.]+ s  (\S+):\d+ (.*)  .*$", re.MULTILINE)


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

    def __str__(self) -> str:
        """The line that `missed_in` reads."""
        answer, mutant = self.answer, self.job.mutant
        return (
            f"{answer.outcome:10} {answer.seconds:6.1f} s  "
            f"{mutant.source}:{mutant.line} {mutant.within}: {mutant.change}  {answer.finder}"
        )


def missed_in(output: str) -> set[str]:
    """Read the identities of the mutants that a run missed from its output, complete or not."""
    outcomes = {}
    for outcome, source, rest in _LINE.findall(output):
        outcomes[f"{source} {rest}"] = outcome  # a second look comes later
    return {identity for identity, outcome in outcomes.items() if outcome in MISSED}


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

    def judge(self, job: Job, answer: Answer, worker: Worker, seconds: int) -> Answer:
        """Return the answer, `unsound` where its test fails for another reason than the mutant.

        It must pass with nothing changed; and fail twice if it took long, which a busy machine can
        be the reason of.
        """
        test = answer.finder
        if not test:
            return answer
        if test not in self._sound:
            if worker.run(None, "", [test], seconds=seconds).outcome != SURVIVED:
                return replace(answer, outcome=UNSOUND)
            self._sound.add(test)
        if answer.seconds > LONG_SECONDS:
            again = worker.run(job.mutant, job.definition, [test], seconds=seconds)
            if again.outcome == SURVIVED:
                return replace(answer, outcome=UNSOUND)
        source = job.mutant.source
        others = [other for other in self.of(source) if other != test]
        self._latest[source] = [test, *others][: self.KEPT]
        return answer


def first_look(
    workers: Sequence[Worker], jobs: Sequence[Job], finders: Finders, seconds: int
) -> Iterator[Result]:
    """Run each target's nearest tests, on all workers at once."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def attempt(job: Job) -> Result:
        worker = idle.get()
        try:
            return Result(job, _try_nearest(worker, job, finders, seconds))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        yield from pool.map(attempt, jobs)


def second_look(
    worker: Worker, missed: Sequence[Result], finders: Finders, seconds: int
) -> Iterator[Result]:
    """Run more tests with each missed mutant: all in the folders of its target."""
    unsound = {result.answer.finder for result in missed if result.answer.outcome == UNSOUND}
    for result in missed:
        job, before = result.job, result.answer
        tests = _more_tests(job.target, worker.copy, is_nearest_done=before.outcome == SURVIVED)
        while True:
            left = [*tests, *(f"--deselect={test}" for test in sorted(unsound))]
            answer = worker.run(job.mutant, job.definition, left, seconds=seconds)
            answer = finders.judge(job, answer, worker, seconds)
            if answer.outcome != UNSOUND or len(unsound) == MOST_UNSOUND:
                break
            unsound.add(answer.finder)
        if answer.outcome == UNFINISHED:
            clean = worker.run(None, "", left, seconds=seconds)
            if clean.outcome == SURVIVED and clean.seconds * FAR_WITHIN < answer.seconds:
                answer = replace(answer, outcome="found", finder="out of time")
        yield Result(job, answer)


def _try_nearest(worker: Worker, job: Job, finders: Finders, seconds: int) -> Answer:
    """Run the likeliest tests, and all of the target's where they pass."""
    likely = finders.of(job.mutant.source)
    answer = worker.run(job.mutant, job.definition, likely, seconds=seconds) if likely else None
    if answer is None or answer.outcome == SURVIVED:
        answer = worker.run(job.mutant, job.definition, job.target.tests, seconds=seconds)
    return finders.judge(job, answer, worker, seconds)


def _more_tests(target: Target, root: Path, *, is_nearest_done: bool) -> list[str]:
    nearest = list(target.tests)
    found = (path for folder in target.wider for path in sorted((root / folder).rglob("test_*.py")))
    names = (path.relative_to(root).as_posix() for path in found)
    others = [name for name in dict.fromkeys(names) if name not in nearest]
    return others if is_nearest_done else [*nearest, *others]
