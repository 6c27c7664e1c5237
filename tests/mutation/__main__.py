"""`make mutants`: change the code of money and security, one change at a time, and run its tests.

Exit status 0 where at least 95 % of the changes were found; known survivors, each with its reason
in survivors.toml, do not count.
"""

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutation.copies import Worker, running_worker, sql_definitions
from tests.mutation.mutants import Mutant
from tests.mutation.python_source import python_mutants
from tests.mutation.sql_source import sql_mutants
from tests.mutation.targets import Target, known_survivors, read_targets

ROOT = Path(__file__).resolve().parents[2]
GOAL = 0.95


@dataclass(frozen=True, slots=True)
class Job:
    """One mutant and what it takes to try it."""

    mutant: Mutant
    target: Target
    definition: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """How one mutant fared: `found`, `survived` or `hung`."""

    job: Job
    outcome: str
    seconds: float


def main() -> None:
    """Run as the command line says."""
    options = _options()
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
        jobs = [job for job in _jobs(definitions) if options.only in job.mutant.source]
        chosen = _sample(jobs, options.sample, options.seed)
        known = [job for job in chosen if job.mutant.identity in survivors]
        print(f"{len(chosen)} of {len(jobs)} mutants, {len(known)} of them known survivors.")
        if options.list:
            print("\n".join(job.mutant.identity for job in chosen))
            return
        left = [job for job in chosen if job.mutant.identity not in survivors]
        _check_unchanged(workers, left)
        results = list(_try_all(workers, left))
    _report(results)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="how many (0: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--only", default="", help="sources whose name contains this")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=int, default=300, help="time limit of one run")
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


def _sample(jobs: Sequence[Job], count: int, seed: int) -> list[Job]:
    """`count` jobs, from each target in turn, so that a small one is not passed over."""
    if not 0 < count < len(jobs):
        return list(jobs)
    by_target: dict[str, list[Job]] = {}
    for job in jobs:
        by_target.setdefault(job.target.name, []).append(job)
    chance = random.Random(seed)
    for same in by_target.values():
        chance.shuffle(same)
    chosen: list[Job] = []
    while len(chosen) < count:
        for same in by_target.values():
            if same and len(chosen) < count:
                chosen.append(same.pop())
    return chosen


def _check_unchanged(workers: Sequence[Worker], jobs: Sequence[Job]) -> None:
    """Exit where tests fail without any change: every mutant would count as found."""
    for target in {job.target.name: job.target for job in jobs}.values():
        outcome, seconds = workers[0].run(None, "", target.tests[:1])
        print(f"unchanged  {seconds:6.1f} s  {target.tests[0]}", flush=True)
        if outcome != "survived":
            sys.exit(f"{target.tests[0]} fails without a change:\n{workers[0].last_output()}")


def _try_all(workers: Sequence[Worker], jobs: Sequence[Job]) -> Iterator[Result]:
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def attempt(job: Job) -> Result:
        worker = idle.get()
        try:
            return Result(job, *worker.run(asdict(job.mutant), job.definition, job.target.tests))
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        for result in pool.map(attempt, jobs):
            print(
                f"{result.outcome:9} {result.seconds:6.1f} s  "
                f"{result.job.mutant.source}:{result.job.mutant.line}  "
                f"{result.job.mutant.before} -> {result.job.mutant.after}",
                flush=True,
            )
            yield result


def _report(results: Sequence[Result]) -> None:
    survived = [result for result in results if result.outcome == "survived"]
    for result in survived:
        print(f"\nSurvived: {result.job.mutant.identity}")
    found = len(results) - len(survived)
    share = found / len(results) if results else 1.0
    print(f"\n{found} of {len(results)} mutants found ({share:.1%}; goal {GOAL:.0%}).")
    sys.exit(share < GOAL)


if __name__ == "__main__":
    main()
