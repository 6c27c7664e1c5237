"""The statements of SQL functions, as Postgres parses them, and the rows that each one names."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pglast
from pglast import ast
from pglast.enums import BoolExprType
from pglast.visitors import Visitor

FUNCTION = re.compile(
    r"^CREATE OR REPLACE FUNCTION (\w+)\(.*?\bLANGUAGE (sql|plpgsql)\b.*?\bAS \$\$(.*?)\$\$;$",
    re.MULTILINE | re.DOTALL,
)
COMPOSITE = re.compile(r"\b(locked_period|house_change)\b")
"""Types of the database, which the parser does not know; it takes them for records."""
ASSIGNMENT = 3
"""From this parse mode on, the text of an expression begins with `name :=`."""
EXPRESSION = 2


@dataclass(frozen=True)
class Named:
    """One table in one statement, and the columns that the statement sets equal to something."""

    function: str
    table: str
    columns: frozenset[str]
    statement: str


def named_rows(script: str) -> Iterator[Named]:
    """Yield each table that a function of the script reads or writes."""
    for found in FUNCTION.finditer(script):
        name, language, body = found.groups()
        for text in [body] if language == "sql" else _queries(found.group(0)):
            for statement in pglast.parse_sql(text):
                for table, columns in _tables(statement):
                    yield Named(name, table, columns, text.strip())


def _queries(function: str) -> Iterator[str]:
    """Yield the queries and expressions of a PL/pgSQL function, each as a statement."""
    known = COMPOSITE.sub("text", function)
    pending: list[Any] = [json.loads(pglast.parser.parse_plpgsql_json(known))]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            expression = node.get("PLpgSQL_expr")
            if expression is not None:
                mode, text = expression.get("parseMode", 0), expression["query"]
                if mode >= ASSIGNMENT:
                    text = re.split(r":=|=", text, maxsplit=1)[1]
                yield text if mode < EXPRESSION else f"SELECT {text}"
            pending.extend(node.values())
        elif isinstance(node, list):
            pending.extend(node)


def _tables(statement: ast.RawStmt) -> list[tuple[str, frozenset[str]]]:
    collector = _Collector()
    collector(statement)
    return collector.found


class _Collector(Visitor):
    """Collects, from each query level, its tables and the columns that it compares."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, frozenset[str]]] = []

    def visit_SelectStmt(self, _ancestors: object, node: ast.SelectStmt) -> None:  # noqa: N802
        self._add(list(node.fromClause or ()), node.whereClause)

    def visit_UpdateStmt(self, _ancestors: object, node: ast.UpdateStmt) -> None:  # noqa: N802
        self._add([node.relation, *(node.fromClause or ())], node.whereClause)

    def visit_DeleteStmt(self, _ancestors: object, node: ast.DeleteStmt) -> None:  # noqa: N802
        self._add([node.relation, *(node.usingClause or ())], node.whereClause)

    def visit_InsertStmt(self, _ancestors: object, node: ast.InsertStmt) -> None:  # noqa: N802
        columns = frozenset(str(column.name) for column in node.cols or ())
        self.found.append((_name(node.relation), columns))

    def _add(self, sources: list[Any], where: object) -> None:
        tables: dict[str, str] = {}
        conditions = [where]
        while sources:
            source = sources.pop()
            if isinstance(source, ast.JoinExpr):
                sources += [source.larg, source.rarg]
                conditions.append(source.quals)
            elif isinstance(source, ast.RangeVar):
                alias = str(source.alias.aliasname) if source.alias else _name(source)
                tables[alias] = _name(source)
        compared = {column for condition in conditions for column in _compared(condition)}
        for alias, table in tables.items():
            own = {
                name for of, name in compared if of == alias or (of is None and len(tables) == 1)
            }
            self.found.append((table, frozenset(own)))


def _name(table: ast.RangeVar | None) -> str:
    if table is None:
        raise AssertionError
    return str(table.relname)


def _compared(condition: object) -> Iterator[tuple[str | None, str]]:
    """Yield the columns that must equal something for the condition to hold."""
    if isinstance(condition, ast.BoolExpr) and condition.boolop == BoolExprType.AND_EXPR:
        for part in condition.args or ():
            yield from _compared(part)
    elif isinstance(condition, ast.A_Expr) and [o.sval for o in condition.name or ()] == ["="]:
        for side in (condition.lexpr, condition.rexpr):
            if isinstance(side, ast.ColumnRef):
                fields = side.fields or ()
                *of, name = [str(part.sval) for part in fields if isinstance(part, ast.String)]
                yield (of[0] if of else None, name)
