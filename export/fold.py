"""Constants folded and shape arithmetic shortened, with the names of the weights kept."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

# onnxscript's own rules without the one that looks through the whole graph again at every node: its time grows with the
# square of the graph. Two slices stay two slices.
RULES = [rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule.name != "SlicesSplit"]


def simplify(model: ir.Model) -> None:
    """Fold and shorten in place; initializers without a value are left as they are.

    The passes of onnxscript's optimiser in another order: dead constants, which are two nodes in three of a fresh
    export, go before the rewrite rules are matched against every node, which costs a third of the time.
    """
    optimizer.inline(model)
    _fold(model)
    common.CommonSubexpressionEliminationPass()(model)
    rewriter.rewrite(model, RULES)
    _fold(model)
    common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.OutputFixPass()(model)
    common.NameFixPass()(model)


def _fold(model: ir.Model) -> None:
    """Fold, then drop what nothing reads."""
    optimizer.fold_constants(model, onnx_shape_inference=True)
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
