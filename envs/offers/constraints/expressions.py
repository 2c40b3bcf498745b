"""Conditions on the columns of a customer table, as in `points >= 500 and tier in ['gold', 'silver']`.

Expressions have Python's grammar, restricted to the operators listed here, so that no expression can run code.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping

import numpy as np

ORDER = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
EQUAL = {ast.Eq: operator.eq, ast.NotEq: operator.ne}
SUMS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
JOINS = {ast.And: np.logical_and, ast.Or: np.logical_or}


def holds(text: str, columns: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Return for which rows an expression holds, bool [H]; it doesn't hold where a column that it reads has no entry.

    Columns are floats (NaN: no entry) or strings ("": no entry). A name that is no Python name is put in `backticks`.
    Raises ValueError, with a message that begins with `where`, on text that is no expression, an unknown column, or
    types that don't fit.
    """
    return _Reader(str(text), columns, where).read()


class _Reader:
    """Evaluate one expression; every part is a kind (number, text, truth) and its values (an array or a constant)."""

    def __init__(self, text: str, columns: Mapping[str, np.ndarray], where: str):
        self.text, self.columns, self.where = text, columns, where
        self.quoted: dict[str, str] = {}
        self.missing = np.zeros(len(columns[next(iter(columns))]), dtype=bool)

    def read(self) -> np.ndarray:
        plain = re.sub(r"`([^`]+)`", lambda match: self._quote(match[1]), self.text)
        try:
            tree = ast.parse(plain.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._error("is no expression") from error
        try:
            truth = self._truth(tree.body)
        except RecursionError as error:
            raise self._error("is nested too deeply") from error
        return np.broadcast_to(truth, self.missing.shape) & ~self.missing

    def _quote(self, name: str) -> str:
        key = f"_quoted_{len(self.quoted)}"
        self.quoted[key] = name
        return key

    def _error(self, problem: str) -> ValueError:
        return ValueError(f"{self.where}: '{self.text}' {problem}")

    def _truth(self, node: ast.AST):
        kind, value = self._part(node)
        if kind == "text":
            raise self._error(f"is text where yes or no is needed: compare it, as in {ast.unparse(node)} == 'yes'")
        if kind == "number":
            known = ~np.isnan(value)
            if not np.isin(np.asarray(value)[known], (0, 1)).all():
                raise self._error("is a number where yes or no (1 or 0) is needed: compare it, as in x > 0")
            value = np.asarray(value) == 1
        return value

    def _part(self, node: ast.AST):
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(part) for part in node.values]
            join = JOINS[type(node.op)]
            whole = parts[0]
            for part in parts[1:]:
                whole = join(whole, part)
            return "truth", whole
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return "truth", np.logical_not(self._truth(node.operand))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return "number", -self._number(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in SUMS:
            return "number", SUMS[type(node.op)](self._number(node.left), self._number(node.right))
        if isinstance(node, ast.Compare):
            return "truth", self._compare(node)
        if isinstance(node, ast.Name):
            return self._column(self.quoted.get(node.id, node.id))
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float, str)):
            if isinstance(node.value, str):
                return "text", node.value
            return ("truth" if isinstance(node.value, bool) else "number"), np.asarray(node.value)
        raise self._error(f"has a part that is not understood here: {ast.unparse(node)}")

    def _number(self, node: ast.AST) -> np.ndarray:
        kind, value = self._part(node)
        if kind != "number":
            raise self._error(f"counts with {ast.unparse(node)}, which is no number")
        return value

    def _column(self, name: str):
        if name not in self.columns:
            raise self._error(f"names a column '{name}' that is not in the table, which has {', '.join(self.columns)}")
        column = self.columns[name]
        if column.dtype.kind == "f":
            self.missing |= np.isnan(column)
            return "number", column
        self.missing |= column == ""
        return "text", column

    def _compare(self, node: ast.Compare):
        whole: np.ndarray = np.asarray(True)
        left = node.left
        for op, right in zip(node.ops, node.comparators):
            if isinstance(op, (ast.In, ast.NotIn)):
                whole = whole & self._among(left, right, isinstance(op, ast.NotIn))
            else:
                (kind, a), (other, b) = self._part(left), self._part(right)
                if kind != other:
                    raise self._error(f"compares {ast.unparse(left)} ({kind}) with {ast.unparse(right)} ({other})")
                apply = EQUAL.get(type(op)) or ORDER.get(type(op))
                if apply is None or (type(op) in ORDER and kind != "number"):
                    raise self._error(f"orders {ast.unparse(left)}, which is no number")
                whole = whole & apply(a, b)
            left = right
        return whole

    def _among(self, left: ast.AST, right: ast.AST, negated: bool) -> np.ndarray:
        if not isinstance(right, (ast.List, ast.Tuple, ast.Set)) or not right.elts:
            raise self._error(f"looks in {ast.unparse(right)}, which is no list as in ['a', 'b']")
        kind, value = self._part(left)
        found: np.ndarray = np.asarray(False)
        for element in right.elts:
            other, constant = self._part(element)
            if other != kind:
                raise self._error(f"compares {ast.unparse(left)} ({kind}) with {ast.unparse(element)} ({other})")
            found = found | (value == constant)
        return ~found if negated else found
