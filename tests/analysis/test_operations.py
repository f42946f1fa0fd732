"""Operations are classified whatever name the profiler gives them."""

import pytest

from evit_mm.analysis.operations import (
    _TABLE,
    ADD,
    COMPUTE,
    COPY,
    KINDS,
    MEMORY_BOUND,
    NORM,
    OTHER,
    SOFTMAX,
    _bare,
    classify,
)


def test_every_name_has_one_kind():
    names = [_bare(name) for _, _, names in _TABLE for name in names.split()]
    assert len(names) == len(set(names))
    assert {kind for kind, _, _ in _TABLE} == set(KINDS)
    assert all(kind in KINDS for kind in MEMORY_BOUND)


@pytest.mark.parametrize('kind, names', [
    (COMPUTE, ['aten::conv2d', 'aten::_convolution', 'aten::mkldnn_convolution', 'aten::addmm',
               'aten::baddbmm', 'aten::convolution_backward', 'ConvolutionBackward0',
               'aten::cudnn_convolution', 'mkldnn::_linear_pointwise', 'AddmmBackward0',
               'aten::_scaled_dot_product_flash_attention_for_cpu_backward',
               'autograd::engine::evaluate_function: BmmBackward0']),
    (COPY, ['aten::view', 'aten::_unsafe_view', 'aten::copy_', 'aten::t', 'TBackward0', 'detach',
            'autograd::engine::evaluate_function: ReshapeAliasBackward0', 'aten::slice_backward',
            'torch::autograd::CopyBackwards', 'aten::constant_pad_nd', 'aten::_index_put_impl_',
            'Memcpy DtoD (Device -> Device)', 'Memset (Device)',
            'autograd::engine::evaluate_function: SplitWithSizesBackward0']),
    (ADD, ['aten::add', 'aten::add_', 'AddBackward0', 'aten::mul', 'aten::div_',
           'autograd::engine::evaluate_function: torch::autograd::AccumulateGrad']),
    (NORM, ['aten::native_batch_norm', 'aten::_batch_norm_impl_index', 'NativeLayerNormBackward0',
            'aten::native_batch_norm_backward', 'aten::cudnn_batch_norm']),
    (SOFTMAX, ['aten::softmax', 'aten::_softmax', 'aten::_softmax_backward_data', 'aten::relu_',
               'SoftmaxBackward0', 'aten::clamp_min_', 'aten::threshold_backward', 'aten::gelu']),
    (OTHER, ['aten::max_pool2d_with_indices', 'MaxPool2DWithIndicesBackward0', 'aten::mean',
             'UpsampleBilinear2DBackward0', 'aten::sum', 'a user\'s own range', 'ProfilerStep*']),
])
def test_names(kind, names):
    assert {name: classify([name]) for name in names} == {name: kind for name in names}


def test_callees_have_the_kind_of_their_caller():
    assert classify(['aten::empty', 'aten::native_batch_norm', 'aten::batch_norm']) == NORM
    assert classify(['aten::fill_', 'aten::zero_', 'aten::zeros', 'SliceBackward0']) == COPY
    assert classify(['aten::sum', 'autograd::engine::evaluate_function: AddmmBackward0']) == COMPUTE
    assert classify(['aten::unheard_of', 'aten::conv2d']) == COMPUTE
    assert classify(['aten::empty']) == COPY  # without a caller
    assert classify(['aten::copy_', 'aten::conv2d']) == COPY  # a copy stays a copy


@pytest.mark.parametrize('name, kind', [
    ('triton_poi_fused_add_relu_3', SOFTMAX),
    ('triton_per_fused__softmax_mul_0', SOFTMAX),
    ('triton_red_fused__native_batch_norm_legit_no_training_add_relu_7', NORM),
    ('graph_0_cpp_fused_convolution_view_2', COMPUTE),
    ('cpp_fused_constant_pad_nd_clone_1', COPY),
    ('cpp_fused_nobody_knows_1', OTHER),
])
def test_fused_kernels_have_the_kind_of_their_main_part(name, kind):
    assert classify([name]) == kind
