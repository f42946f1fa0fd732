"""Classification of the profiler's operations by kind of work.

One table covers forward operations, backward nodes and fused kernels. Names are compared without
namespace, underscores, case and the word "backward": ``aten::_softmax``,
``aten::_softmax_backward_data`` and ``autograd::engine::evaluate_function: SoftmaxBackward0`` are
all ``softmax``.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = ['ADD', 'COMPUTE', 'COPY', 'KINDS', 'MEMORY_BOUND', 'NORM', 'OTHER', 'SOFTMAX',
           'classify']

COMPUTE = 'convolution and matmul'
COPY = 'reshape and copy'
ADD = 'element-wise add'
NORM = 'normalisation'
SOFTMAX = 'softmax and activation'
OTHER = 'other'

KINDS = (COMPUTE, COPY, ADD, NORM, SOFTMAX, OTHER)

MEMORY_BOUND = (COPY, ADD, NORM)
"""Kinds limited by memory bandwidth rather than arithmetic; some authors add `SOFTMAX`."""

# (kind, group, names). Dispatching callers (conv2d, which calls convolution, which calls
# mkldnn_convolution) have self time too, and belong to the operation they dispatch to.
_TABLE: tuple[tuple[str, str, str], ...] = (
    (COMPUTE, 'convolutions, from the call down to the kernels of libraries', '''
        conv1d conv2d conv3d conv_transpose2d convolution convolution_overrideable
        mkldnn_convolution convolution_pointwise cudnn_convolution cudnn_convolution_transpose
        cudnn_convolution_relu cudnn_convolution_add_relu conv_depthwise2d thnn_conv2d
        slow_conv2d slow_conv2d_forward slow_conv_transpose2d slow_conv_dilated2d
        nnpack_spatial_convolution nnpack_available mkldnn_reorder_conv2d_weight
        reorder_convolution_weight'''),
    (COMPUTE, 'convolutions with folded frozen BN (evit_mm/ops/folded_conv.py)', '''
        folded_chain folding'''),
    (COMPUTE, 'matrix products', '''
        linear addmm addmm_activation mm bmm baddbmm addbmm matmul einsum bilinear dot mv addmv
        mkldnn_linear linear_pointwise mkl_linear int_mm scaled_mm'''),
    (COMPUTE, 'fused attention, dominated by its matrix products', '''
        scaled_dot_product_attention scaled_dot_product_flash_attention
        scaled_dot_product_flash_attention_for_cpu scaled_dot_product_fused_attention
        scaled_dot_product_efficient_attention scaled_dot_product_cudnn_attention
        scaled_dot_product_attention_math flash_attention flash_attention_forward
        efficient_attention efficient_attention_forward cudnn_attention cudnn_attention_forward
        fused_sdp_choice'''),
    (COPY, 'views, which copy nothing but have a call overhead', '''
        view view_as reshape reshape_as reshape_alias unsafe_view flatten unflatten permute
        transpose t mt swapaxes movedim expand expand_as select slice narrow split unsafe_split
        split_with_sizes chunk unbind unsqueeze squeeze as_strided diagonal detach alias
        resolve_conj resolve_neg lift_fresh unfold'''),
    (COPY, 'copies into another layout or dtype', '''
        copy clone contiguous to to_copy type_as cat stack pad constant_pad_nd reflection_pad2d
        replication_pad2d roll flip repeat repeat_interleave tile im2col col2im pixel_shuffle
        pixel_unshuffle channel_shuffle to_dense to_mkldnn'''),
    (COPY, 'gather and scatter: bias tables, nearest neighbours', '''
        index index_select index_put index_put_impl unsafe_index gather scatter scatter_add
        take embedding masked_fill masked_select where upsample_nearest2d
        upsample_nearest_exact2d'''),
    (ADD, 'residuals and biases; scaling by a factor, gate or mask has the same traffic', '''
        add sub rsub mul div neg addcmul addcdiv lerp accumulate_grad foreach_add foreach_mul'''),
    (NORM, 'normalisation, with frozen or batch statistics', '''
        batch_norm batch_norm_impl_index native_batch_norm native_batch_norm_legit
        native_batch_norm_legit_no_training batch_norm_with_update batch_norm_no_update
        cudnn_batch_norm miopen_batch_norm sync_batch_norm batch_norm_stats batch_norm_elemt
        batch_norm_gather_stats_with_counts batch_norm_reduce layer_norm native_layer_norm
        fused_layer_norm group_norm native_group_norm instance_norm rms_norm fused_rms_norm
        normalize linalg_vector_norm'''),
    (SOFTMAX, 'softmax', 'softmax log_softmax safe_softmax'),
    (SOFTMAX, 'activations; ReLU also appears as threshold and clamp', '''
        relu relu6 clamp clamp_min clamp_max threshold leaky_relu elu gelu silu mish sigmoid
        log_sigmoid tanh hardtanh hardsigmoid hardswish softplus prelu glu'''),
    (OTHER, 'pooling and interpolation', '''
        max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d
        upsample_bilinear2d upsample_bilinear2d_aa upsample_bicubic2d mean max min argmax topk
        sort'''),
    (OTHER, 'dropout, losses, random numbers', '''
        dropout feature_dropout alpha_dropout native_dropout bernoulli rand randn uniform normal
        pow square sqrt rsqrt exp log abs nll_loss cross_entropy_loss'''),
)

# Operations that have the kind of their caller: allocating the output of a convolution is part of
# the convolution, summing the gradient of a linear layer is part of its bias. Without a caller
# they have the kind given here.
_CALLEES = {
    COPY: '''empty empty_like empty_strided empty_permuted new_empty new_empty_strided new_zeros
             zeros zeros_like ones ones_like full full_like new_full new_ones fill zero resize
             resize_as resize_output set arange''',
    OTHER: '''sum sum_to_size result_type item local_scalar_dense is_nonzero lift''',
}

_COPY_KERNELS = ('Memcpy', 'Memset')  # prefixes of the names of GPU kernels
_FUSED = re.compile(r'(?:triton_[a-z]+|cpp)_fused_(?P<operations>.*)')
# A kernel with several operations has the first of these kinds.
_PRIORITY = (COMPUTE, NORM, SOFTMAX, ADD, COPY, OTHER)


def _bare(name: str) -> str:
    """Return a name without namespace, underscores, case and "backward"."""
    name = name.rsplit('::', 1)[-1].rsplit(' ', 1)[-1].replace('_', '').lower()
    return re.sub(r'backwards?(data)?\d*$', '', name)


_KINDS = {_bare(name): kind for kind, _, names in _TABLE for name in names.split()}
_CALLEE_KINDS = {_bare(name): kind for kind, names in _CALLEES.items() for name in names.split()}


def classify(stack: Sequence[str]) -> str:
    """Return the kind of an operation's self time.

    Args:
        stack: Names of the operation, its caller, the caller's caller, and so on.

    Returns:
        str: One of `KINDS`. An unknown operation has the kind of its caller, or `OTHER` without
        a known caller.
    """
    for name in stack:
        kind = _kind_of(name)
        if kind:
            return kind
    return _CALLEE_KINDS.get(_bare(stack[0]), OTHER)


@lru_cache(maxsize=4096)
def _kind_of(name: str) -> str | None:
    if name.startswith(_COPY_KERNELS):
        return COPY
    fused = _FUSED.search(name)
    if fused:
        words = fused['operations'].split('_')
        kinds = {_KINDS.get(''.join(words[start:end])) for start in range(len(words))
                 for end in range(start + 1, len(words) + 1)}
        return next((kind for kind in _PRIORITY if kind in kinds), None)
    return _KINDS.get(_bare(name))
