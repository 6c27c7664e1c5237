"""Mutants of a Python module, made from its syntax tree."""

import ast
import itertools
from pathlib import Path

from tests.mutation.mutants import Mutant, make_mutant

COMPARISONS: dict[type[ast.cmpop], tuple[bytes, bytes]] = {
    ast.Lt: (b"<", b"<="),
    ast.LtE: (b"<=", b"<"),
    ast.Gt: (b">", b">="),
    ast.GtE: (b">=", b">"),
    ast.Eq: (b"==", b"!="),
    ast.NotEq: (b"!=", b"=="),
    ast.Is: (b"is", b"is not"),
    ast.IsNot: (b"is not", b"is"),
    ast.In: (b"in", b"not in"),
    ast.NotIn: (b"not in", b"in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[bytes, bytes]] = {
    ast.Add: (b"+", b"-"),
    ast.Sub: (b"-", b"+"),
    ast.Mult: (b"*", b"//"),
    ast.FloorDiv: (b"//", b"*"),
    ast.Mod: (b"%", b"//"),
    ast.BitOr: (b"|", b"&"),
    ast.LShift: (b"<<", b">>"),
}
SWAPPED_NAMES = {"min": b"max", "max": b"min", "any": b"all", "all": b"any"}
LOG = "log."
UNTESTED_CALLS = (LOG, "telemetry.", "structlog.", "super(")
"""Log lines and counters do not change what the code decides; nor does when they are written."""
NO_EFFECT = b"None"

Edit = tuple[int, int, bytes]


def python_mutants(path: Path, root: Path) -> list[Mutant]:
    """Every mutant of one module, in the order of the source."""
    content = path.read_bytes()
    finder = _Finder(content)
    finder.visit(ast.parse(content))
    source = path.relative_to(root).as_posix()
    made = [make_mutant("python", source, within, content, edit) for within, edit in finder.edits]
    return sorted(made, key=lambda mutant: (mutant.start, mutant.end, mutant.after))


class _Finder(ast.NodeVisitor):
    """Collects edits inside functions; what is outside of them is declarations."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        starts = itertools.accumulate(len(line) for line in content.splitlines(keepends=True))
        self._line_starts = [0, *starts]
        self._scope: list[str] = []
        self._depth = 0
        self.edits: list[tuple[str, Edit]] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scope.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self._scope.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._scope.append(node.name)
        self._depth += 1
        for statement in node.body:
            self.visit(statement)
        self._depth -= 1
        self._scope.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts for people: their words are not tested one by one."""

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, b"pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        called = node.value.value if isinstance(node.value, ast.Await) else node.value
        if not isinstance(called, ast.Call) or self._starts_with(UNTESTED_CALLS, node):
            return
        self._replace(node, NO_EFFECT)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not node.orelse and all(self._starts_with(LOG, statement) for statement in node.body):
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        """Only what is inside: a negated loop mostly ends the test by its time limit."""
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        """All but `zip(…, strict=True)`, which finds mistakes that the code does not contain."""
        if node.arg != "strict":
            self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = (b"and", b"or") if isinstance(node.op, ast.And) else (b"or", b"and")
        for left, right in itertools.pairwise(node.values):
            self._swap_between(left, right, old, new)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for (left, right), operator in zip(itertools.pairwise(operands), node.ops, strict=True):
            old, new = COMPARISONS[type(operator)]
            self._swap_between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        is_text = isinstance(node.left, ast.JoinedStr | ast.Constant) and not isinstance(
            getattr(node.left, "value", None), int
        )
        if type(node.op) in ARITHMETIC and not is_text:
            self._swap_between(node.left, node.right, *ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub) and not isinstance(node.operand, ast.Constant):
            start, _ = self._span(node)
            length = len("not ") if isinstance(node.op, ast.Not) else len("-")
            self._add(start, start + length, b"")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, b"False" if node.value else b"True")
        elif isinstance(node.value, int):
            self._replace(node, str(node.value + 1).encode())

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in SWAPPED_NAMES:
            self._replace(node.func, SWAPPED_NAMES[node.func.id])
        self.generic_visit(node)

    def _starts_with(self, calls: str | tuple[str, ...], statement: ast.stmt) -> bool:
        return isinstance(statement, ast.Expr) and self._text(statement).startswith(calls)

    def _negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.Compare | ast.UnaryOp):
            return  # the operator itself is changed
        start, end = self._span(test)
        self._add(start, end, b"not (" + self._content[start:end] + b")")

    def _swap_between(self, left: ast.expr, right: ast.expr, old: bytes, new: bytes) -> None:
        after_left, before_right = self._span(left)[1], self._span(right)[0]
        start = self._content.find(old, after_left, before_right)
        if start >= 0:
            self._add(start, start + len(old), new)

    def _replace(self, node: ast.AST, after: bytes) -> None:
        self._add(*self._span(node), after)

    def _add(self, start: int, end: int, after: bytes) -> None:
        if self._depth:
            self.edits.append((".".join(self._scope), (start, end, after)))

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._content[start:end].decode()

    def _span(self, node: ast.AST) -> tuple[int, int]:
        """First and last byte of a node; a node that has an operator has a place."""
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._line_starts[node.lineno - 1] + node.col_offset,
            self._line_starts[node.end_lineno - 1] + node.end_col_offset,
        )
