"""Exported files that are written by hand, in no time."""

import onnx
from onnx import TensorProto, helper

from evit_runtime.metadata import KEY, Metadata
from evit_runtime.preprocess import Preprocessing

METADATA = Metadata(task='detection', inputs=('images', 'sizes'),
                    outputs=('boxes', 'scores', 'labels'),
                    preprocessing=Preprocessing(divisor=4), class_names=('cat', 'dog'),
                    palette=((1, 2, 3), (4, 5, 6)))
TEXT = METADATA.to_json()


def write(path, *, metadata=TEXT, opset=20, inputs=('images', 'sizes')):
    """Write a file that finds one dog, the box of which is the whole of each image."""
    batch = 'batch'
    nodes = [
        helper.make_node('Constant', [], ['two'], value_ints=[0, 0]),
        helper.make_node('Shape', [inputs[1]], ['shape']),
        helper.make_node('Sub', ['sizes_', 'sizes_'], ['zeros']),
        helper.make_node('Cast', [inputs[1]], ['sizes_'], to=TensorProto.FLOAT),
        helper.make_node('Constant', [], ['order'], value_ints=[1, 0]),
        helper.make_node('Gather', ['sizes_', 'order'], ['ends'], axis=1),
        helper.make_node('Concat', ['zeros', 'ends'], ['corners'], axis=1),
        helper.make_node('Constant', [], ['one'], value_ints=[1]),
        helper.make_node('Unsqueeze', ['corners', 'one'], ['boxes']),
        helper.make_node('Constant', [], ['first'], value_ints=[0]),
        helper.make_node('Gather', ['zeros', 'first'], ['zero'], axis=1),
        helper.make_node('Constant', [], ['half'], value_float=0.75),
        helper.make_node('Add', ['zero', 'half'], ['scores']),
        helper.make_node('Ceil', ['scores'], ['up']),
        helper.make_node('Cast', ['up'], ['labels'], to=TensorProto.INT64),
    ]
    nodes[2], nodes[3] = nodes[3], nodes[2]
    graph = helper.make_graph(nodes, 'g', [
        helper.make_tensor_value_info(inputs[0], TensorProto.UINT8, [batch, 'h', 'w', 3]),
        helper.make_tensor_value_info(inputs[1], TensorProto.INT64, [batch, 2])], [
        helper.make_tensor_value_info('boxes', TensorProto.FLOAT, [batch, 1, 4]),
        helper.make_tensor_value_info('scores', TensorProto.FLOAT, [batch, 1]),
        helper.make_tensor_value_info('labels', TensorProto.INT64, [batch, 1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=10)
    if metadata is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = KEY, metadata
    onnx.save(model, path)
    return path
