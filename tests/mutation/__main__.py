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
from contextlib import ExitStack
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

from tests.mutation.attempts import (
    MISSED,
    UNFINISHED,
    Finders,
    Job,
    Result,
    first_look,
    missed_in,
    second_look,
)
from tests.mutation.copies import (
    Worker,
    refused_definitions,
    running_worker,
    sql_definitions,
)
from tests.mutation.python_source import python_mutants
from tests.mutation.sql_source import sql_mutants
from tests.mutation.targets import ROOT, known_survivors, read_targets

GOAL_PERCENT = 95


def main() -> None:
    """Run as the command line says."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # closes what is open
    survivors = known_survivors()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
        workers = [
            stack.enter_context(running_worker(ROOT, folder / f"copy-{number}"))
            for number in range(options.workers)
        ]
        definitions = asyncio.run(sql_definitions(workers[0].owner_url))
        every = list(_jobs(definitions))
        for name in survivors.keys() - {job.mutant.identity for job in every}:
            print(f"In survivors.toml, but no mutant any more: {name}")
        missed = missed_in(options.again.read_text()) if options.again else None
        wanted = [job for job in every if _is_wanted(job, options.only, missed)]
        jobs = asyncio.run(_accepted(workers[0].owner_url, wanted))
        chosen = _sample(jobs, options.sample, options.seed)
        known = [job for job in chosen if job.mutant.identity in survivors]
        print(f"{len(chosen)} of {len(jobs)} mutants, {len(known)} of them known survivors.")
        if options.list:
            print("\n".join(job.mutant.identity for job in chosen))
            return
        left = [job for job in chosen if job.mutant.identity not in survivors]
        results = list(_try_all(workers, left, options))
    ignored = frozenset({UNFINISHED} if options.ignore_unfinished else ())
    _report(results, options.goal, ignored=ignored)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=0, help="how many (0: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--only", action="append", help="mutants whose name contains this")
    parser.add_argument("--again", type=Path, help="mutants missed in this output of a run")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--seconds", type=int, default=120, help="time limit of one run")
    parser.add_argument(
        "--second-seconds", type=int, default=1_200, help="the same in the second look; 0: none"
    )
    parser.add_argument("--goal", type=int, default=GOAL_PERCENT, help="percent to be found")
    parser.add_argument(
        "--ignore-unfinished", action="store_true", help="judge only runs that ended in time"
    )
    parser.add_argument("--list", action="store_true", help="name the mutants, run nothing")
    return parser.parse_args()


def _jobs(definitions: dict[str, str]) -> Iterator[Job]:
    for target in read_targets():
        for path in target.modules:
            for mutant in python_mutants(path, ROOT):
                yield Job(mutant, target)
        for name in target.functions:
            for mutant in sql_mutants(name, definitions[name]):
                yield Job(mutant, target, definitions[name])


async def _accepted(owner_url: str, jobs: Sequence[Job]) -> list[Job]:
    """Leave out what Postgres refuses as a definition: no test is needed to find that."""
    changed = {
        job.mutant: job.mutant.apply(job.definition.encode()).decode()
        for job in jobs
        if job.mutant.language == "sql"
    }
    refused = await refused_definitions(owner_url, set(changed.values()))
    return [job for job in jobs if changed.get(job.mutant) not in refused]


def _is_wanted(job: Job, only: Sequence[str] | None, missed: set[str] | None) -> bool:
    name = job.mutant.identity
    if missed is not None and name not in missed:
        return False
    return not only or any(text in name for text in only)


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


def _try_all(
    workers: Sequence[Worker], jobs: Sequence[Job], options: argparse.Namespace
) -> Iterator[Result]:
    finders, missed = Finders(), []
    for result in first_look(workers, jobs, finders, options.seconds):
        print(result, flush=True)
        if result.answer.outcome in MISSED and options.second_seconds:
            missed.append(result)
        else:
            yield result
    if missed:
        print(f"\n{len(missed)} missed: a second look, with more tests.", flush=True)
    for result in second_look(workers[0], missed, finders, options.second_seconds):
        print(result, flush=True)
        yield result


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
