"""Small edits of Python source: operators, signs, bounds, constants, axes, dropped terms, calls and branches."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SWAPPED: dict[type[ast.AST], type[Any]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
RENAMED = {"sum": "mean", "mean": "sum", "any": "all", "all": "any", "max": "min", "min": "max"}
RENAMED |= {"zeros_like": "ones_like", "ones_like": "zeros_like", "new_zeros": "new_ones"}
DROPPED = {"exp", "square", "sqrt", "cumsum", "tril", "clamp_min", "repeat_interleave", "expand", "clone", "detach"}
COMMUTES = {"min", "max", "transpose"}
UNSEEN = {"strict", "device", "dtype"}
"""Keywords without a meaning for numbers on one machine: lengths that agree anyway, places, widths."""


@dataclass
class Mutant:
    """One edit: what ``slot`` (an attribute of a node, or an item of it) holds becomes ``new``."""

    file: str
    line: int
    function: str
    original: str
    mutated: str
    lines: tuple[int, int] | None  # of the statement; None where importing the module runs it
    slot: tuple[ast.AST, str, int | None] = field(repr=False)
    new: ast.AST = field(repr=False)
    killed_by: str | None = None
    seconds: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Its name while other lines move."""
        return f"{Path(self.file).stem}.{self.function}: {self.original} -> {self.mutated}"

    @property
    def module(self) -> str:
        """Dotted name of the edited module."""
        return self.file.removesuffix(".py").replace("/", ".")


Slot = tuple[ast.AST, str, int | None]


def get(slot: Slot) -> Any:
    """What a slot holds."""
    node, name, index = slot
    return getattr(node, name) if index is None else getattr(node, name)[index]


def put(slot: Slot, new: ast.AST) -> None:
    """Edits a tree in place."""
    node, name, index = slot
    if index is None:
        setattr(node, name, new)
    else:
        getattr(node, name)[index] = new


def mutants(file: str, tree: ast.AST) -> Iterator[Mutant]:
    """All mutants of a module, in the order of its text."""
    yield from _visit(file, tree, [], [], None)


def _visit(
    file: str, node: ast.AST, path: list[Slot], scope: list[str], statement: ast.stmt | None
) -> Iterator[Mutant]:
    if path and _silent(node, path[-1][1]):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        scope = [*scope, node.name]
    if isinstance(node, ast.stmt):
        statement = node
    for new in variants(node):
        assert statement is not None
        original, mutated = _shown(path, new)
        line = getattr(node, "lineno", statement.lineno)
        yield Mutant(file, line, ".".join(scope), original, mutated, _lines(statement, path), path[-1], new)
    for name, value in ast.iter_fields(node):
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield from _visit(file, child, [*path, (node, name, index)], scope, statement)


def _silent(node: ast.AST, name: str) -> bool:
    """What changes no number: annotations, decorators, messages, assertions, names of types."""
    match node:
        case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return True
        case ast.keyword(arg) if arg in UNSEEN:
            return True
        case ast.FunctionDef("__repr__") | ast.Subscript(ast.Name("dict" | "list" | "tuple" | "Literal" | "Mapping")):
            return True
        case _:
            return name in ("annotation", "returns", "decorator_list")


def _lines(statement: ast.stmt, path: list[Slot]) -> tuple[int, int] | None:
    """The lines of a statement, or of the head of a compound one; None where importing runs them."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)) or not any(
        isinstance(p[0], ast.FunctionDef) for p in path
    ):
        return None
    body = getattr(statement, "body", None)
    end = body[0].lineno - 1 if body else statement.end_lineno
    return statement.lineno, max(end or 0, statement.lineno)


def _shown(path: list[Slot], new: ast.AST) -> tuple[str, str]:
    """The edited expression and enough around it to recognise it, before and after."""
    at = len(path) - 1
    while at and isinstance(path[at][0], (ast.expr, ast.comprehension, ast.keyword)) and len(_text(get(path[at]))) < 40:
        at -= 1
    old, original = get(path[-1]), _text(get(path[at]))
    put(path[-1], new)
    mutated = _text(get(path[at]))
    put(path[-1], old)
    return original, mutated


def _text(node: ast.AST) -> str:
    """A node as code on one line; of a compound statement its head."""
    if isinstance(node, (ast.If, ast.For, ast.While)):
        node = copy.copy(node)
        node.body, node.orelse = [ast.Expr(ast.Constant(...))], []
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """Small edits of a node; a statement is deleted by ``pass``."""
    match node:
        case ast.BinOp(left, op, right):
            if type(op) in SWAPPED:
                yield ast.BinOp(left, SWAPPED[type(op)](), right)
            if not isinstance(op, ast.MatMult):
                yield left
            if isinstance(op, (ast.Add, ast.Mult, ast.BitOr, ast.BitAnd)):
                yield right
        case ast.Compare(left, [op], right):
            yield ast.Compare(left, [SWAPPED[type(op)]()], right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(SWAPPED[type(op)](), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value)):
            yield ast.Constant(value + 1)
            if value:  # -1 for 0 is the same place of what has one
                yield ast.Constant(value - 1)
        case ast.Constant(float(value)):
            yield ast.Constant(value + 1.0)
        case ast.Slice(lower, upper, step):
            if lower is not None:
                yield ast.Slice(None, upper, step)
            if upper is not None:
                yield ast.Slice(lower, None, step)
            if step is not None:
                yield ast.Slice(lower, upper, None)
        case ast.Subscript(value, ast.Tuple([*first, a, b]), context) if ast.dump(a) != ast.dump(b):
            yield ast.Subscript(value, ast.Tuple([*first, b, a], ast.Load()), context)
        case ast.Attribute(value, "mT"):
            yield value
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.Call(function, args, keywords):
            yield from _calls(function, args, keywords)
        case ast.comprehension(target, source, [_, *_]):
            yield ast.comprehension(target, source, [], node.is_async)
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.AugAssign(target, op, value):
            if type(op) in SWAPPED:
                yield ast.AugAssign(target, SWAPPED[type(op)](), value)
            yield ast.Pass()
        case ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.Expr(value) if not isinstance(value, ast.Constant):
            yield ast.Pass()
        case _:
            pass


def _calls(function: ast.expr, args: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[ast.AST]:
    match function:
        case ast.Attribute(value, name) if name in DROPPED:
            yield value
        case ast.Attribute(value, name) if name in RENAMED:
            yield ast.Call(ast.Attribute(value, RENAMED[name], ast.Load()), args, keywords)
        case ast.Name(name) if name in RENAMED:
            yield ast.Call(ast.Name(RENAMED[name], ast.Load()), args, keywords)
        case _:
            pass
    name = getattr(function, "id", getattr(function, "attr", ""))
    if len(args) > 1 and ast.dump(args[0]) != ast.dump(args[1]) and name not in COMMUTES:
        yield ast.Call(function, [args[1], args[0], *args[2:]], keywords)
    for i, keyword in enumerate(keywords):
        if keyword.arg not in (None, *UNSEEN):
            yield ast.Call(function, args, keywords[:i] + keywords[i + 1 :])
