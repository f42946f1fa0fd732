"""OpenVINO models in INT8: the network is quantised, what chooses boxes stays in float32."""

import logging
from collections.abc import Iterable
from typing import Any

from ...errors import UserError

__all__ = ['quantize']

_WEIGHTED = ('Convolution', 'ConvolutionBackpropData', 'GroupConvolution', 'MatMul')
_CHOOSING = ('NonMaxSuppression', 'TopK', 'Result')


def quantize(model: Any, samples: Iterable[dict[str, Any]]) -> Any:
    """Return an OpenVINO model with the weights and features of its network in INT8.

    Args:
        model: The model in float32.
        samples: Its inputs for images like those that it will see.

    Raises:
        UserError: If nncf is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise UserError('--precision int8 needs nncf, which is not installed: pip install '
                        '"evit-mm[export]"') from error
    from openvino.passes import ConstantFolding, Manager

    nncf.set_log_level(logging.ERROR)
    data = list(samples)
    # nncf takes a part of a constant, such as the bias of one head, for an embedding, and fails.
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    return nncf.quantize(
        model, nncf.Dataset(data), subset_size=len(data), preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=names_after_network(model), validate=False))


def names_after_network(model: Any) -> list[str]:
    """Return the names of the operations between the network and each choice of boxes.

    They are those from which a choice, or an output, is reached without a convolution or matrix
    product in between: coordinates need more than 256 values.
    """
    waiting = [node for node in model.get_ordered_ops() if node.get_type_name() in _CHOOSING]
    waiting += [node.input_value(1).get_node() for node in model.get_ordered_ops()
                if node.get_type_name().startswith('ROIAlign')]
    found: dict[str, str] = {}
    while waiting:
        node = waiting.pop()
        if node.get_name() in found or node.get_type_name() in (*_WEIGHTED, 'Constant',
                                                                'Parameter'):
            continue
        found[node.get_name()] = node.get_friendly_name()
        if not node.get_type_name().startswith('ROIAlign'):
            waiting += [node.input_value(index).get_node()
                        for index in range(node.get_input_size())]
    return sorted(set(found.values()))
