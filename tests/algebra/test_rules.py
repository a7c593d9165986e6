"""The rules of the nodes, over random formulas: what a node says of itself is true of its matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from subspace_tuning.algebra import Expression, Sizes, dense, parse
from subspace_tuning.algebra.latex import latex
from subspace_tuning.algebra.nodes import Diag, Diagonal, Leaf, Matrix, Scalar, Structure, Vector, symbol
from subspace_tuning.algebra.shapes import NodeShapes

from .expressions import formulas

quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
SIZES = Sizes(7, 6, 2, 5, 2)


def environment_for(expression: Expression) -> dict[str, Any]:
    shapes = parse(str(expression)).shapes
    env: dict[str, Any] = {name: torch.randn(SIZES.of(shape), dtype=torch.float64) for name, shape in shapes.items()}
    return env | {"s": torch.tensor(0.7, dtype=torch.float64)}


def matrices_in(expression: Expression) -> list[Expression]:
    """Return the nodes that have a matrix with a size of its own."""
    vectors = {part for node in expression.walk() if isinstance(node, Diag) for part in node.node.walk()}
    return [node for node in expression.walk() if node.has_matrix and not node.is_shapeless and node not in vectors]


@quick
@given(formulas())
def test_shapes_are_those_of_the_matrices(expression: Expression) -> None:
    env = environment_for(expression)
    shapes = NodeShapes(parse(str(expression)).shapes, SIZES)
    for node in matrices_in(expression):
        assert shapes(node) == tuple(dense(node, env).shape), str(node)


@quick
@given(formulas())
def test_the_structure_is_that_of_the_matrix(expression: Expression) -> None:
    env = environment_for(expression) | {"U_r": torch.randn(7, 2).double(), "V_r": torch.randn(6, 2).double()}
    for node in matrices_in(expression):
        matrix = dense(node, env)
        if Structure.DIAGONAL in node.structure:
            assert torch.equal(matrix, torch.diag(matrix.diagonal())), str(node)
        if Structure.LOW_RANK in node.structure:
            assert torch.linalg.matrix_rank(matrix) <= SIZES.r, str(node)
        for rows, structure in enumerate((Structure.NORMALISED_COLUMNS, Structure.NORMALISED_ROWS)):
            if structure in node.structure:
                norms = torch.linalg.vector_norm(matrix, dim=rows)
                torch.testing.assert_close(norms, (norms > 0).double())


@quick
@given(formulas())
def test_linear_in_and_zero_when_hold(expression: Expression) -> None:
    env = environment_for(expression)
    for node in expression.walk():
        if not node.children or not node.has_matrix:
            continue
        values = [child.compact(env) for child in node.children]
        for way in node.zero_when:
            zeros = [torch.zeros_like(value) if index in way else value for index, value in enumerate(values)]
            assert not at(node, zeros, env).any(), (str(node), way)
        for index in node.linear_in:
            first, second = values[index], torch.randn_like(values[index])
            moved = [at(node, [*values[:index], value, *values[index + 1 :]], env) for value in (first, second)]
            both, none = (
                at(node, [*values[:index], value, *values[index + 1 :]], env)
                for value in (first + second, torch.zeros_like(first))
            )
            torch.testing.assert_close(moved[0] + moved[1], both + none)


def at(node: Expression, values: list[Tensor], env: dict[str, Any]) -> Tensor:
    """Return the node's matrix where its children have these values."""
    leaves: list[Expression] = []
    for index, child in enumerate(node.children):
        kinds = {0: Scalar, 1: Diagonal if child.diagonal else Vector, 2: Matrix}
        leaves.append(kinds[0 if child.is_number else values[index].dim() or 1](f"Z{index}"))
    rebuilt = node.rebuilt(tuple(leaves))
    return rebuilt.compact({**env, **{f"Z{index}": value for index, value in enumerate(values)}})


@quick
@given(formulas())
def test_every_node_has_latex(expression: Expression) -> None:
    text = latex(expression)
    assert text.count("{") == text.count("}")
    assert text.count("(") == text.count(")")


def test_structure_of_composites() -> None:
    D, W, V_r = symbol("D"), symbol("W"), symbol("V_r")
    assert Structure.IDENTITY in symbol("I").structure
    assert Structure.IDENTITY not in (2 * symbol("I")).structure
    assert Structure.DIAGONAL in (D @ D * D.T + D).structure
    assert Structure.DIAGONAL not in (D @ W).structure
    assert Structure.DIAGONAL in (D * W).structure
    assert Structure.LOW_RANK in (W @ V_r @ V_r.T).structure
    assert Structure.LOW_RANK not in (W + W @ V_r @ V_r.T).structure
    assert Structure.SPARSE in (D @ (symbol("M") * symbol("Delta"))).structure


def test_a_node_without_its_rules_cannot_be_made() -> None:
    class Half(Leaf):
        """A leaf that does not say whether its map is linear, nor how rows meet it."""

    with pytest.raises(TypeError, match=r"abstract methods.*apply.*linear_map"):
        Half("A")  # type: ignore[abstract]
