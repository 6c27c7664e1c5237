"""The targets of `make mutants`: all of the code of money, with tests that exist."""

from tests.mutation.targets import ROOT, functions_of, known_survivors, left_out, read_targets


def test_every_module_of_money_is_changed_or_left_out_with_a_reason() -> None:
    changed = {path.relative_to(ROOT).as_posix() for one in read_targets() for path in one.modules}
    modules = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("gateway/billing/*.py")}
    assert modules - changed == left_out().keys()


def test_every_sql_function_of_money_is_changed_once() -> None:
    changed = [name for one in read_targets() for name in one.functions]
    folders = ("billing", "library")
    functions = [
        name
        for folder in folders
        for path in ROOT.glob(f"gateway/{folder}/sql/*.sql")
        for name in functions_of(path)
    ]
    assert sorted(changed) == sorted(functions)


def test_the_named_tests_and_reasons_are_there() -> None:
    named = {name for one in read_targets() for name in (*one.tests, *one.wider)}
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert all(known_survivors().values())
