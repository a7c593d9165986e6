"""Random formulas as texts, by the grammar of docs/formula-language.md; nothing here knows how they are read.

They are built from the outside in, so that most fit together. Every text comes with how tightly it binds.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

SUM, PRODUCT, SIGN, ATOM = range(4)

# By rows and columns what may stand there: a name has the same shape wherever it stands.
NAMES = {
    "nm": ("W", "P", "P3", "Q10", "rest"),
    "nr": ("A", "A1", "A10", "U_r"),
    "rm": ("B", "B1", "B123"),
    "nn": ("D1", "K", "K2", "I"),
    "mm": ("D2", "R", "R20", "I"),
    "rr": ("D", "G", "G7", "S_r", "I"),
    "mr": ("V_r", "H"),
    "nk": ("U",),
    "kk": ("S", "D3", "I"),
    "mk": ("V",),
}
VECTORS = {"n": ("dn", "en"), "m": ("delta", "em"), "r": ("dr", "er"), "k": ("sigma", "ek")}
NUMBERS = ("2", "0.5", "1", "3", "0.1", "1e-1", "10", "1.5")
FUNCTIONS = ("relu", "gelu", "silu", "tanh")


class Text(NamedTuple):
    text: str
    binds: int = ATOM

    def within(self, binds: int) -> str:
        return self.text if self.binds >= binds else f"({self.text})"


class Grammar:
    """Draws formulas."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.one_of = random.choice

    def formula(self, depth: int = 3) -> str:
        """Return a formula of W's shape that holds W."""
        first = self.one_of((self.carrier, self.carrier, self.carrier, self.augmented))(depth)
        rules = (self.matrix_added, self.matrix_added, self.adapter, self.started, self.masked, self.kron, self.nothing)
        added = self.one_of(rules)(depth)
        text = f"{first.within(SUM)} {self.one_of('++-')} {added.within(PRODUCT)}" if added.text else first.text
        return f"-({text}) + 2 * W" if self.random.random() < 0.05 else text

    # Parts of a formula

    def nothing(self, depth: int) -> Text:
        return Text("")

    def matrix_added(self, depth: int) -> Text:
        return self.matrix("nm", depth)

    def carrier(self, depth: int) -> Text:
        left, right = self.matrix("nn", depth - 1), self.matrix("mm", depth - 1)
        beside = self.matrix("nm", depth - 1)
        return self.one_of(
            (
                Text("W"),
                Text("W"),
                Text(f"{left.within(PRODUCT)} @ W", PRODUCT),
                Text(f"W @ {right.within(SIGN)}", PRODUCT),
                Text(f"(W + {beside.within(PRODUCT)}) @ {right.within(SIGN)}", PRODUCT),
                Text(f"W * {beside.within(SIGN)}", PRODUCT),
                Text(f"unit(W - {beside.within(PRODUCT)}) @ D2", PRODUCT),
                Text(f"reflect({self.matrix('nr', 1).text}) @ W", PRODUCT),
                Text(f"U @ {self.matrix('kk', depth - 1).within(SIGN)} @ V.T", PRODUCT),
                Text("-(-W)", SIGN),
            )
        )

    def augmented(self, depth: int) -> Text:
        """Return W with a bias, alone or before another affine map."""
        bias = self.one_of(("b", "b + delta", "delta", "b - 2 * em", f"b + ({self.vector('m', 2).text})"))
        first = f"affine({self.carrier(depth - 1).text}, {bias})"
        inner = f"affine({self.matrix('mr', 1).text}, {self.vector('r', 1).text})"
        outer = f"affine({self.matrix('rm', 1).text}, {self.vector('m', 1).text})"
        between = self.one_of(("", f" @ {self.one_of(FUNCTIONS)}"))
        behind = f"{first} @ (I {self.one_of('+-')} {self.number(1).within(SIGN)} * {inner}{between} @ {outer})"
        nested = f"affine({first}, {self.vector('m', 1).text})"
        return self.one_of((Text(first), Text(first), Text(nested), Text(behind, PRODUCT)))

    def adapter(self, depth: int) -> Text:
        """Return a bottleneck with a nonlinearity, or with two."""
        between = self.one_of(FUNCTIONS)
        middle = self.one_of(("", f" @ {self.matrix('rr', depth - 1).within(SIGN)} @ {self.one_of(FUNCTIONS)}"))
        left, right = self.matrix("nr", depth - 1), self.matrix("rm", depth - 1)
        return Text(f"{left.within(PRODUCT)} @ {between}{middle} @ {right.within(SIGN)}", PRODUCT)

    def started(self, depth: int) -> Text:
        """Return a product whose start is taken away."""
        A, B = self.one_of((("A", "B"), ("A1", "B1"), ("A10", "B123")))
        starts = [f"{name}_0" if name[-1].isdigit() else f"{name}0" for name in (A, B)]
        pair = f"{A} @ {B} - {starts[0]} @ {starts[1]}"
        return self.one_of((Text(pair, SUM), Text(f"{self.number(1).within(SIGN)} * ({pair})", PRODUCT)))

    def masked(self, depth: int) -> Text:
        behind = self.one_of(("", f" * {self.matrix('nm', 1).within(SIGN)}", f" @ {self.matrix('mm', 1).within(SIGN)}"))
        return Text(f"M * Delta{behind}", PRODUCT)

    def kron(self, depth: int) -> Text:
        factors = [
            self.one_of((name, f"-{name}", f"tanh({name})", f"2 * {name} - {name}", f"s * ({name} + {name})"))
            for name in ("KA", "KB")
        ]
        return Text(f"kron({', '.join(factors)})")

    # Matrices, numbers and vectors

    def matrix(self, shape: str, depth: int) -> Text:
        """Return an expression of a shape such as "nm"."""
        if depth <= 0:
            return self.leaf(shape, 0)
        rules = [self.leaf, self.leaf, self.total, self.product, self.product, self.scaled, self.negative, self.called]
        rules += [self.entrywise, self.transposed, *[self.diagonal] * (shape[0] == shape[1])]
        return self.one_of(rules)(shape, depth - 1)

    def leaf(self, shape: str, depth: int) -> Text:
        if shape in NAMES:
            return Text(self.one_of(NAMES[shape]))
        return Text(f"{self.one_of(NAMES[shape[::-1]])}.T") if shape[::-1] in NAMES else self.product(shape, 0)

    def total(self, shape: str, depth: int) -> Text:
        terms = [self.matrix(shape, depth) for _ in range(self.random.randint(2, 3))]
        text = terms[0].within(SUM)
        for term in terms[1:]:
            text += f" {self.one_of('+-')} {term.within(PRODUCT)}"
        return Text(text, SUM)

    def product(self, shape: str, depth: int) -> Text:
        rows, columns = shape
        middle = self.one_of([one for one in "nmrk" if self.known(rows + one) and self.known(one + columns)])
        left, right = self.matrix(rows + middle, depth), self.matrix(middle + columns, depth)
        return Text(f"{left.within(PRODUCT)} @ {right.within(SIGN)}", PRODUCT)

    def known(self, shape: str) -> bool:
        return shape in NAMES or shape[::-1] in NAMES

    def scaled(self, shape: str, depth: int) -> Text:
        number, node = self.number(2), self.matrix(shape, depth)
        pair = (number, node) if self.random.random() < 0.7 else (node, number)
        return Text(f"{pair[0].within(PRODUCT)} * {pair[1].within(SIGN)}", PRODUCT)

    def negative(self, shape: str, depth: int) -> Text:
        return Text(f"-{self.matrix(shape, depth).within(SIGN)}", SIGN)

    def called(self, shape: str, depth: int) -> Text:
        return Text(f"{self.one_of((*FUNCTIONS, 'unit', 'gate'))}({self.matrix(shape, depth).text})")

    def entrywise(self, shape: str, depth: int) -> Text:
        left, right = self.matrix(shape, depth), self.matrix(shape, depth)
        return Text(f"{left.within(PRODUCT)} * {right.within(SIGN)}", PRODUCT)

    def transposed(self, shape: str, depth: int) -> Text:
        if not self.known(shape[::-1]):
            return self.leaf(shape, 0)
        return Text(f"{self.matrix(shape[::-1], depth).within(ATOM)}.T")

    def diagonal(self, shape: str, depth: int) -> Text:
        return Text(f"diag({self.vector(shape[0], 2).text})")

    def number(self, depth: int) -> Text:
        """Return a number, named or written, or an expression of such."""
        leaf = Text(self.one_of(("s", "t", "u", *NUMBERS)))
        return leaf if depth <= 0 else self.arithmetic(leaf, self.number(depth - 1))

    def vector(self, length: str, depth: int) -> Text:
        leaf = Text(self.one_of((*VECTORS[length], *VECTORS[length], *NUMBERS[:2])))
        named = Text(self.one_of(VECTORS[length]))
        return named if depth <= 0 else self.arithmetic(leaf, self.vector(length, depth - 1))

    def arithmetic(self, one: Text, other: Text) -> Text:
        return self.one_of(
            (
                other,
                Text(f"-{other.within(SIGN)}", SIGN),
                Text(f"{one.within(PRODUCT)} * {other.within(SIGN)}", PRODUCT),
                Text(f"{one.within(SUM)} + {other.within(PRODUCT)}", SUM),
                Text(f"{other.within(SUM)} - {one.within(PRODUCT)}", SUM),
            )
        )
