"""Exported modules in files: ONNX, OpenVINO, and torch.export's format."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.export import Dim

from .suppression import onnx_translations

__all__ = ['OPSET', 'Signature', 'make_signature', 'to_onnx', 'to_program']

OPSET = 20
"""Version of ONNX's operators in exported files."""


class Signature(NamedTuple):
    """The inputs of an exported module."""

    names: tuple[str, ...]
    """Their names, in their order."""
    examples: tuple[torch.Tensor, ...]
    """One value of each, of the size of a fixed file."""
    dynamic_shapes: tuple[Any, ...] | None
    """Which of their dimensions may vary, as `torch.export.export` takes it; None for none."""


def make_signature(names: Sequence[str], size: tuple[int, int], *, batch: int, divisor: int,
                   is_dynamic: bool) -> Signature:
    """Return the inputs of a module.

    Args:
        names: ``images``, ``sizes`` or ``output_size``.
        size: Height and width of the images.
        batch: Number of images.
        divisor: Number that height and width are multiples of.
        is_dynamic: Whether height, width and batch may vary.
    """
    height, width = size
    examples = {
        'images': torch.zeros((batch, height, width, 3), dtype=torch.uint8),
        'sizes': torch.tensor([[height, width]] * batch),
        'output_size': torch.tensor([height + 3, width + 5]),
    }
    shapes = None
    if is_dynamic:
        count = Dim('batch', min=1, max=1024)
        rows, columns = (_multiple(name, divisor) for name in ('height', 'width'))
        known = {'images': {0: count, 1: rows, 2: columns}, 'sizes': {0: count},
                 'output_size': None}
        shapes = tuple(known[name] for name in names)
    return Signature(tuple(names), tuple(examples[name] for name in names), shapes)


def _multiple(name: str, divisor: int) -> Any:
    """Return a dimension that may vary.

    Tracing remembers that some maps have more than one row, and would refuse a range that allows
    less; what it writes holds for one row too.
    """
    return Dim.AUTO if divisor == 1 else divisor * Dim(f'{name}_{divisor}', min=1,
                                                       max=8192 // divisor)


def to_program(module: nn.Module, signature: Signature) -> torch.export.ExportedProgram:
    """Return a module as torch.export's program."""
    with torch.no_grad(), _quiet():
        return torch.export.export(module, signature.examples,
                                   dynamic_shapes=signature.dynamic_shapes, strict=False)


def to_onnx(module: nn.Module, signature: Signature, outputs: Sequence[str]) -> Any:
    """Return a module as an ONNX program, with NMS and everything else inside."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            to_program(module, signature), (), input_names=list(signature.names),
            output_names=list(outputs), opset_version=OPSET, dynamo=True, optimize=False,
            custom_translation_table=onnx_translations(), verbose=False)
        assert program is not None
        _simplify(program.model)
    # Where each node comes from, with the paths of this machine, is half of a small file.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    return program


def _simplify(model: Any) -> None:
    """Fold constants and remove what is not needed or is there twice, in place.

    The exporter's own optimisation also fuses operators, as runtimes do when they load a file, and
    takes as long as the rest of the export.
    """
    import onnx_ir
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants_ir

    fold_constants_ir(model)
    onnx_ir.passes.Sequential(
        common.RemoveUnusedNodesPass(), common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(), common.NameFixPass())(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters warn of, which is about their own code."""
    names = ('torch.onnx', 'onnxscript', 'onnx_ir', 'torch.export')
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
