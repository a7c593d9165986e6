"""Random formulas that fit together, for hypothesis: built from the outside in, so every shape is known."""

from __future__ import annotations

from hypothesis import strategies as st

from subspace_tuning.algebra import Expression, diag, gate, relu, symbol, unit
from subspace_tuning.algebra.nodes import Elementwise, Number, Reflect
from subspace_tuning.algebra.nodes.kron import Kronecker

# The leaves of each shape; a name always has the same shape, so any of them can be joined.
LEAVES = {
    "nm": ["W", "P", "Q10"],
    "nr": ["A", "U_r", "A123"],
    "rm": ["B", "B10"],
    "nn": ["D1", "K", "I"],
    "mm": ["D2", "R", "I"],
    "rr": ["D20", "G", "S_r", "I"],
    "mr": ["V_r", "C"],
}


SCALARS = ("s", "t")
NUMBERS = (2.0, 0.5, -1.0, -0.25, 3e-7, 0.1)


def scalars(depth: int = 1) -> st.SearchStrategy[Expression]:
    """Return numbers, named or written, with their sums, products and signs."""
    leaf = st.one_of(st.sampled_from(SCALARS).map(symbol), st.sampled_from(NUMBERS).map(Number))
    if depth == 0:
        return leaf
    pair = st.tuples(leaf, scalars(depth - 1))
    return st.one_of(
        leaf, pair.map(lambda p: p[0] + p[1]), pair.map(lambda p: p[0] - p[1]), pair.map(lambda p: p[0] * p[1])
    )


def matrices(shape: str, depth: int) -> st.SearchStrategy[Expression]:
    """Return expressions of a shape such as "nm"."""
    leaf = st.sampled_from(LEAVES[shape]).map(symbol) if shape in LEAVES else st.nothing()
    if depth == 0:
        if shape in LEAVES:
            return leaf
        return matrices(shape[::-1], 0).map(lambda node: node.T)
    options = [_sums(shape, depth), _scaled(shape, depth)]
    options += [_products(shape, middle, depth) for middle in "nmr" if _possible(shape[0] + middle, middle + shape[1])]
    if shape in LEAVES:
        options.append(leaf)
    if shape[::-1] in LEAVES:
        options.append(matrices(shape[::-1], depth - 1).map(lambda node: node.T))
    sized = matrices(shape, depth - 1).filter(lambda node: bool(set(node.names) - set(SCALARS)))  # I has no entries
    options.append(sized.map(unit))
    options.append(sized.map(gate))
    options.append(sized.map(lambda node: Elementwise("tanh", node)))
    options.append(st.tuples(sized, matrices(shape, 0)).map(lambda pair: pair[0] * pair[1]))
    options.append(matrices(shape, depth - 1).map(lambda node: -node))
    options.append(matrices(shape, depth - 1).map(lambda node: symbol("s") * node - (symbol("t") - 1) * -node))
    if shape == "nm":
        factors = [symbol("KA"), symbol("KB"), -symbol("KB"), 2 * symbol("KA") + symbol("KA")]
        options.append(st.sampled_from([Kronecker((factors[0], one)) for one in (factors[1], factors[2])]))
        options.append(st.just(Kronecker((factors[3], factors[1]))))
    if shape == "nn":
        options.append(matrices("nr", depth - 1).map(Reflect))
    if shape[0] == shape[1]:
        options.append(st.sampled_from(["a", "c"]).map(lambda name: diag(symbol(f"{name}{shape[0]}"))))
        options.append(st.sampled_from(["a", "c"]).map(lambda name: diag(1 - 2 * symbol(f"{name}{shape[0]}"))))
    return st.one_of(options)


def formulas() -> st.SearchStrategy[Expression]:
    """Return formulas of W's shape that hold W, some with a nonlinearity between factors."""
    adapter = symbol("A") @ relu @ symbol("B")
    drawn_pair = symbol("A") @ symbol("B") - symbol("A0") @ symbol("B0")
    added = st.one_of(matrices("nm", 2), *map(st.just, (adapter, symbol("s") * adapter, symbol("t") * drawn_pair)))
    return st.tuples(added, st.booleans()).map(
        lambda drawn: symbol("W") - drawn[0] if drawn[1] else symbol("W") + drawn[0]
    )


def _possible(*shapes: str) -> bool:
    return all(shape in LEAVES or shape[::-1] in LEAVES for shape in shapes)


def _sums(shape: str, depth: int) -> st.SearchStrategy[Expression]:
    pair = st.tuples(matrices(shape, depth - 1), matrices(shape, depth - 1), st.booleans())
    return pair.map(lambda drawn: drawn[0] - drawn[1] if drawn[2] else drawn[0] + drawn[1])


def _scaled(shape: str, depth: int) -> st.SearchStrategy[Expression]:
    pair = st.tuples(scalars(), matrices(shape, depth - 1), st.booleans())
    return pair.map(lambda drawn: drawn[0] * drawn[1] if drawn[2] else drawn[1] * drawn[0])


def _products(shape: str, middle: str, depth: int) -> st.SearchStrategy[Expression]:
    pair = st.tuples(matrices(shape[0] + middle, depth - 1), matrices(middle + shape[1], depth - 1))
    return pair.map(lambda drawn: drawn[0] @ drawn[1])
