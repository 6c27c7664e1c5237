"""The rules that tests/tooling/test_style.py holds the code to, each a function of one source file.

A rule yields offences: `path:line: what is wrong`.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
SQL_FUNCTION_LINES_MAX = 120

CATCH_ALL_MODULES = (
    "gateway/web/instrumentation.py",
    "gateway/mcp_server/server.py",
    "gateway/maintenance.py",
    "gateway/background.py",
    "gateway/generation/paid_calls.py",
    "gateway/billing/",
    "gateway/db/group_commit.py",
)
"""The modules that may catch everything: the tops of requests, tasks and commands."""

BROAD = {"Exception", "BaseException"}
SKIP = re.compile(r"(pytest\.)?mark\.(skip|skipif|xfail)|pytest\.(skip|importorskip)")
QUERY_CALLS = {"select", "update", "delete", "insert", "pg_insert"}
QUERY_METHODS = {"select_from", "join", "outerjoin", "get", "get_one"}

MACHINE_PATTERN = re.compile(
    r"(?<![\w.])/(?:home|Users)/\w[\w.-]*/|(?<![\w.])/(?:root)/"
    r"|\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|index\.crates\.io)\b"
)
LOCK_LINE = re.compile(
    r"[a-z0-9-]+==[\w.!+]+(?: ; [^\\]+)? \\|    --hash=sha256:[0-9a-f]{64}(?: \\)?"
)

HEADLESS = re.compile(
    r"(What|Whether|How|Who|Whose|Whoever|Nobody|Somebody|Where|When|From|So many|As many)\b"
)
"""First words of a docstring that is neither an order nor the name of a thing."""
ODD_WORDS = re.compile(r"\b(whoever|nobody|somebody|strangers?|pictures?|vouched)\b", re.IGNORECASE)
WORD_LISTS = ("tests/style_rules.py", "tests/tooling/test_style.py")
"""The files that must spell the refused words in order to refuse them."""
SQL_FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION (\w+)\(.*?\bAS \$\$.*?\$\$;$", re.MULTILINE | re.DOTALL
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def at(self, node: ast.AST, message: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {message}"

    def is_in(self, *places: str) -> bool:
        """Tell if this is one of `places`, or below one that ends in a slash."""
        return any(self.path == p or (p.endswith("/") and self.path.startswith(p)) for p in places)

    def functions(self) -> Iterator[Function]:
        return (node for node in ast.walk(self.tree) if isinstance(node, Function))

    def calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


Rule = Callable[[Source], Iterable[str]]


def name_of(node: ast.AST | None) -> str:
    """The dotted name an expression spells, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return ""


def last_name(node: ast.AST | None) -> str:
    return name_of(node).rpartition(".")[2]


def imported(tree: ast.AST) -> dict[str, str]:
    """The full name behind each imported name: `{"nap": "time.sleep"}` for an import with `as`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def meaning(node: ast.AST, names: dict[str, str]) -> str:
    """The dotted name of `node` with its first part looked up among the imports."""
    first, dot, rest = name_of(node).partition(".")
    return names.get(first, first) + dot + rest


def parameters(function: Function) -> list[ast.arg]:
    arguments = function.args
    optional = [a for a in (arguments.vararg, arguments.kwarg) if a]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *optional]


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            found = [*(a.annotation for a in parameters(node)), node.returns]
            yield from (annotation for annotation in found if annotation)
        elif isinstance(node, ast.AnnAssign):
            yield node.annotation


# Rules


def long_modules(source: Source) -> Iterator[str]:
    if len(source.lines) > MODULE_LINES_MAX:
        yield f"{source.path}:1: {len(source.lines)} lines; at most {MODULE_LINES_MAX}"


def long_functions(source: Source) -> Iterator[str]:
    for function in source.functions():
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > FUNCTION_LINES_MAX:
            yield source.at(
                function, f"{function.name} has {length} lines; at most {FUNCTION_LINES_MAX}"
            )


def long_sql_functions(source: Source) -> Iterator[str]:
    for found in SQL_FUNCTION.finditer(source.text):
        length = found[0].count("\n") + 1
        if length > SQL_FUNCTION_LINES_MAX:
            line = source.text.count("\n", 0, found.start()) + 1
            yield (
                f"{source.path}:{line}: {found[1]} has {length} lines; at most "
                f"{SQL_FUNCTION_LINES_MAX}"
            )


def missing_docstrings(source: Source) -> Iterator[str]:
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield f"{source.path}:1: a module says in a docstring what it is for"


def headless_docstrings(source: Source) -> Iterator[str]:
    """Docstrings begin with an imperative or a noun phrase."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            found = HEADLESS.match(ast.get_docstring(node) or "")
            if found is not None:
                yield source.at(node, f"a docstring begins with `{found[0]}`: name the thing")


def odd_words(source: Source) -> Iterator[str]:
    """Prose uses the words of the glossary and names the person or thing that it means."""
    is_prose = source.path.endswith((".py", ".md", ".sql", ".example"))
    if not is_prose or source.is_in(*WORD_LISTS):
        return
    for number, line in enumerate(source.lines, 1):
        for found in ODD_WORDS.finditer(line):
            yield f"{source.path}:{number}: `{found[0]}`"


def local_imports(source: Source) -> Iterator[str]:
    # The demo's clients are of no use to any other command, and slow to import.
    if source.is_in("tests/", "gateway/cli/demo.py"):
        return
    for function in source.functions():
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield source.at(node, f"import inside {function.name}: imports go at the top")


def environment_reads(source: Source) -> Iterator[str]:
    if source.is_in("gateway/config/", "tests/", "benchmarks/"):
        return
    names = imported(source.tree)
    forbidden = {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute) and meaning(node, names) in forbidden:
            yield source.at(node, "only gateway/config reads the environment")


def floats_in_money(source: Source) -> Iterator[str]:
    if not source.is_in("gateway/money.py", "gateway/billing/"):
        return
    for call in source.calls():
        if name_of(call.func) == "float":
            yield source.at(call, "float() on the money path")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, float):
            yield source.at(node, f"the float {node.value} on the money path")
    for annotation in annotations(source.tree):
        if re.search(r"\bfloat\b", ast.unparse(annotation)):
            yield source.at(annotation, "a float annotation on the money path")


def caught_everything(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            is_broad = node.type is None or not BROAD.isdisjoint(map(last_name, kinds))
        elif isinstance(node, ast.Call) and last_name(node.func) == "suppress":
            is_broad = not BROAD.isdisjoint(map(last_name, node.args))
        else:
            continue
        if is_broad and not source.is_in(*CATCH_ALL_MODULES):
            yield source.at(node, "catches everything: catch the narrowest class")
        elif is_broad and not re.search(r"# top: \S+ \S+", source.lines[node.lineno - 1]):
            yield source.at(node, "catches everything without `# top: why` on the line")


def loose_signatures(source: Source) -> Iterator[str]:
    if not source.is_in("gateway/"):
        return
    pending: list[ast.AST] = [source.tree]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                pending.append(node)
            elif isinstance(node, Function) and not re.match(r"_(?!_)", node.name):
                signature = f"{ast.unparse(node.args)} -> {ast.unparse(node.returns or node.args)}"
                if re.search(r"\b[dD]ict\[str, (?:typing\.)?Any\]", signature):
                    yield source.at(node, f"dict[str, Any] in {node.name}: give it a type")


def repeated_class_names(sources: Iterable[Source]) -> Iterator[str]:
    """Public classes of the product whose name another one has: a reader could mistake them."""
    first: dict[str, str] = {}
    for source in sources:
        if not source.is_in("gateway/"):
            continue
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if node.name in first:
                    yield source.at(node, f"{first[node.name]} has a class {node.name} too")
                first.setdefault(node.name, source.path)


def stray_prints(source: Source) -> Iterator[str]:
    is_command = source.is_in("gateway/cli/")
    if is_command or not source.is_in("gateway/", "migrations/"):
        return
    for call in source.calls():
        if name_of(call.func) == "print":
            yield source.at(call, "print() outside the commands")


def unexplained_skips(source: Source) -> Iterator[str]:
    calls = {id(call.func): call for call in source.calls()}
    for node in ast.walk(source.tree):
        spelled = name_of(node)
        if not SKIP.fullmatch(spelled):
            continue
        call = calls.get(id(node))
        given = [k.value for k in call.keywords if k.arg == "reason"] if call else []
        if call and last_name(node) == "skip":  # the others' first argument is something else
            given += call.args
        if all(isinstance(reason, ast.Constant) and not reason.value for reason in given):
            yield source.at(node, f"{spelled} without a reason")


def sleeps(source: Source) -> Iterator[str]:
    # The stub provider takes as long as a test tells it to: its sleep is what it simulates.
    if not source.is_in("tests/") or source.is_in("tests/stub_openai/"):
        return
    names = imported(source.tree)
    for call in source.calls():
        spelled = meaning(call.func, names)
        is_pause = spelled in {"time.sleep", "asyncio.sleep", "anyio.sleep"}
        if is_pause and ast.unparse(call) not in {"asyncio.sleep(0)", "anyio.sleep(0)"}:
            yield source.at(call, f"{spelled}: wait for the event, not for the clock")


def patches(source: Source) -> Iterator[str]:
    if not source.is_in("tests/"):
        return
    for node in ast.walk(source.tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        if any(re.match(r"(unittest\.)?mock\b|pytest_mock\b", module) for module in modules):
            yield source.at(node, "mocks: give the code a fake through its constructor")
        if isinstance(node, ast.Attribute) and re.fullmatch(
            r"(\w*monkeypatch|mp)\.(setattr|delattr)|mocker\.\w+", name_of(node)
        ):
            yield source.at(node, "patching: give the code a fake through its constructor")


def machine_traces(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines, start=1):
        for match in MACHINE_PATTERN.finditer(line):
            yield f"{source.path}:{number}: {match[0]} belongs to one machine or registry"


def loose_locks(source: Source) -> Iterator[str]:
    for number, line in enumerate(source.lines, start=1):
        if not LOCK_LINE.fullmatch(line):
            yield f"{source.path}:{number}: not a name, version or hash: {line}"


# Tenant isolation


def tenant_tables(tables: ast.Module) -> frozenset[str]:
    """The names of the table classes with a `tenant_id`, their own or inherited."""
    classes = [node for node in tables.body if isinstance(node, ast.ClassDef)]
    owned: set[str] = set()
    for node in classes:
        targets: list[ast.expr] = [s.target for s in node.body if isinstance(s, ast.AnnAssign)]
        targets += [t for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
        inherited = owned & {last_name(base) for base in node.bases}
        if inherited or "tenant_id" in {name_of(target) for target in targets}:
            owned.add(node.name)
    return frozenset(owned)


def queried_tables(node: ast.AST, names: dict[str, str], tables: frozenset[str]) -> set[str]:
    """The tenant tables that the call `node` reads or writes, if it is a query."""
    if not isinstance(node, ast.Call):
        return set()
    is_method = isinstance(node.func, ast.Attribute) and node.func.attr in QUERY_METHODS
    if not is_method and last_name(node.func) not in QUERY_CALLS:
        return set()
    modules = ("tables", "money_tables", "request_tables", "spool_table")
    wanted = {f"gateway.db.{module}.{table}": table for module in modules for table in tables}
    arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
    spelled = {meaning(part, names) for a in arguments for part in ast.walk(a)}
    return {wanted[name] for name in spelled & wanted.keys()}


def is_scoped(function: Function) -> bool:
    """Tell if the signature names the owner of the rows: a tenant, or the operator for all."""
    return any(
        parameter.arg == "tenant_id"
        or re.search(
            r"\b(Caller|OperatorSession)\b", ast.unparse(parameter.annotation or parameter)
        )
        for parameter in parameters(function)
    )


def unscoped_queries(source: Source, *, tables: frozenset[str]) -> Iterator[str]:
    """Queries on tenant tables in functions that take no tenant; rule 8.

    A statement built outside functions must name `tenant_id` itself.
    """
    if not source.is_in("gateway/"):
        return
    names = imported(source.tree)
    pending: list[tuple[ast.AST, bool]] = [(source.tree, False)]
    while pending:
        parent, in_function = pending.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, Function):
                if not is_scoped(node):
                    pending.append((node, True))
                continue
            is_statement = isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef)
            if is_statement and not in_function and "tenant_id" in ast.unparse(node):
                continue
            for table in sorted(queried_tables(node, names, tables)):
                yield source.at(node, f"query on {table} without a tenant_id in the parameters")
            pending.append((node, in_function))
