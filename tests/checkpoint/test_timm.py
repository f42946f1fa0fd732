"""timm's model and ours agree when they load the same random weights from files of timm's."""

import copy

import pytest
import torch
from torch import nn

from evit_mm.checkpoint import TIMM
from evit_mm.checkpoint.convert import convert_state, write_weights
from evit_mm.models import ARCHS, EfficientViT
from evit_mm.models.attention import relative_position_index

timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
save_file = pytest.importorskip('safetensors.torch').save_file


def randomize(model: nn.Module) -> nn.Module:
    """Set weights and statistics so that no branch is zero and no two tensors are equal."""
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var') or (tensor.dim() == 1 and name.endswith('weight')):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 4:
            tensor.normal_(0, tensor[0].numel() ** -0.5)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.5 if name.endswith('attention_biases') else 0.1)
    return model.eval()


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('arch', ARCHS)
@torch.no_grad()
def test_features_equal_timms(arch, tmp_path):
    theirs = randomize(timm.create_model(f'efficientvit_{arch}'))
    path = tmp_path / 'model.safetensors'
    save_file(theirs.state_dict(), path, metadata={'format': 'pt'})
    ours = EfficientViT(arch, window_sizes=(7, 7, 4),
                        init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    ours.init_weights()
    # In double precision: these weights amplify rounding errors by up to 1e6.
    image = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    expected = theirs.double().forward_intermediates(image, intermediates_only=True)
    features = ours.double().eval()(image)
    assert [x.shape[-1] for x in features] == [14, 7, 4]
    for actual, reference in zip(features, expected, strict=True):
        assert relative_error(actual, reference) < 1e-9


@torch.no_grad()
def test_names_of_features_only(tmp_path):
    """timm flattens the outermost modules there: stages_0 instead of stages.0."""
    theirs = randomize(timm.create_model('efficientvit_m1', features_only=True))
    save_file(theirs.state_dict(), tmp_path / 'a.safetensors')
    # TIMMBackbone of mmseg and mmpretrain adds a prefix.
    torch.save({'state_dict': {f'backbone.timm_model.{key}': value
                               for key, value in theirs.state_dict().items()}
                | {'decode_head.conv_seg.weight': torch.zeros(1)}}, tmp_path / 'b.pth')
    image = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    expected = theirs.double()(image)
    for name in ('a.safetensors', 'b.pth'):
        ours = EfficientViT('m1', window_sizes=(7, 7, 4), init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / name)))
        ours.init_weights()
        for actual, reference in zip(ours.double().eval()(image), expected, strict=True):
            assert relative_error(actual, reference) < 1e-9


@torch.no_grad()
def test_bias_tables_have_timms_order():
    """Both number the distances between tokens in the same order."""
    for side in (4, 7, 8):
        attention = timm.models.efficientvit_msra.CascadedGroupAttention(
            32, 16, num_heads=1, attn_ratio=1, resolution=side)
        assert torch.equal(attention.attention_bias_idxs, relative_position_index(side))


@torch.no_grad()
def test_timm_loads_converted_files(tmp_path):
    """Including the classifier: the logits equal those of the original model."""
    source = randomize(timm.create_model('efficientvit_m2'))
    converted = convert_state(source.state_dict(), TIMM)
    write_weights(tmp_path / 'a.safetensors', converted)
    write_weights(tmp_path / 'a.pth', converted)
    image = torch.randn(1, 3, 224, 224)
    for name in ('a.safetensors', 'a.pth'):
        loaded = timm.create_model('efficientvit_m2', checkpoint_path=str(tmp_path / name)).eval()
        assert torch.equal(loaded(image), source(image))
    larger = timm.create_model('efficientvit_m2', img_size=256,
                               checkpoint_path=str(tmp_path / 'a.safetensors')).eval()
    assert larger(torch.randn(1, 3, 256, 256)).shape == (1, 1000)


def test_fused_exports_of_timm_are_refused(tmp_path):
    theirs = copy.deepcopy(timm.create_model('efficientvit_m0'))
    for module in list(theirs.modules()):
        for name, child in list(module.named_children()):
            if hasattr(child, 'fuse'):
                setattr(module, name, child.fuse())
    save_file(theirs.state_dict(), tmp_path / 'a.safetensors')
    ours = EfficientViT('m0', init_cfg=dict(type='Pretrained',
                                            checkpoint=str(tmp_path / 'a.safetensors')))
    with pytest.raises(RuntimeError, match=r'a.safetensors is a fused export in the timm layout'):
        ours.init_weights()
