"""Each name builds its model, or raises an error in one sentence."""

import sys
import warnings

import pytest
import torch
from mmengine.registry import MODELS

from evit_mm.benchmark.model_factory import build_model, load_weights, short_names, split_form
from evit_mm.errors import CheckpointError, UserError
from evit_mm.models import EfficientViT


def maps_of(name, **options):
    model = build_model(name, **options)
    assert not model.training
    with torch.no_grad():
        return [tuple(x.shape[1:]) for x in model(torch.zeros(1, 3, 64, 128))]


def test_backbones_by_name():
    backbone = build_model('M1', options=dict(out_indices=(0, 2), window_sizes=8))
    assert isinstance(backbone, EfficientViT) and backbone.arch_name == 'm1'
    assert maps_of('m1', options=dict(out_indices=(0, 2))) == [(128, 4, 8), (192, 1, 2)]


def test_feature_maps_of_torchvision():
    """Strides 4 to 32; MobileNetV3's are the last ones of each stride."""
    sizes = [(16, 32), (8, 16), (4, 8), (2, 4)]
    for name, channels in {'resnet50': (256, 512, 1024, 2048),
                           'mobilenet_v3_large': (24, 40, 112, 960)}.items():
        expected = [(count, *size) for count, size in zip(channels, sizes, strict=True)]
        assert maps_of(f'torchvision://{name}', features_only=True) == expected
    with torch.no_grad():
        logits = build_model('torchvision://mobilenet_v3_large')(torch.zeros(1, 3, 64, 64))
    assert logits.shape == (1, 1000)


def test_timm_models():
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    assert maps_of('timm://efficientvit_m0', features_only=True) \
        == [(64, 4, 8), (128, 2, 4), (192, 1, 2)]
    larger = build_model('timm://efficientvit_m0', options=dict(img_size=448))
    windows = {table.shape[1] for name, table in larger.named_parameters()
               if name.endswith('attention_biases')}
    assert windows == {49}


def test_configs_build_whole_models_without_pretrained_weights(repository):
    config = repository / 'configs' / 'retinanet_evit_m0_coco.py'
    model = build_model(str(config), options={'model.bbox_head.num_classes': 3})
    assert not model.training and model.bbox_head.num_classes == 3
    assert model.backbone.init_cfg is None


def test_only_mmsegs_own_warnings_are_ignored(repository, monkeypatch):
    build = MODELS.build

    def warns(config):
        warnings.warn('Of this part.', stacklevel=1)
        return build(config)

    monkeypatch.setattr(MODELS, 'build', warns)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        build_model(str(repository / 'configs' / 'upernet_evit_m0_ade20k.py'))
    assert {str(one.message) for one in caught if one.category is UserWarning
            and ('mmseg' in one.filename or one.filename == __file__)} == {'Of this part.'}


def test_mistakes_are_reported(repository, tmp_path):
    config = str(repository / 'configs' / 'retinanet_evit_m0_coco.py')
    no_model = str(repository / 'configs' / '_base_' / 'ade20k.py')
    for match, name, options in [
        ('no such model: m9; choose m0 to m5', 'm9', {}),
        ('no such config', str(tmp_path / 'absent.py'), {}),
        ('has no model', no_model, {}),
        ('has no such argument.*colour', 'm0', {'colour': 1}),
        ('window_sizes', 'm0', {'window_sizes': -1}),
        ('no such model: torchvision://vgg', 'torchvision://vgg', {}),
        ('can\'t be built.*colour', 'torchvision://resnet50', {'colour': 1}),
        ('can\'t be built', config, {'model.backbone.type': 'Nothing'}),
    ]:
        with pytest.raises(UserError, match=match):
            build_model(name, options=options)


def test_mistakes_with_timm_are_reported(monkeypatch):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    with pytest.raises(UserError, match='has no model \'efficientvit_m9\''):
        build_model('timm://efficientvit_m9')
    with pytest.raises(UserError, match='can\'t be built.*colour'):
        build_model('timm://efficientvit_m0', options={'colour': 1})
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UserError, match='needs timm, which is not installed'):
        build_model('timm://efficientvit_m0')


def test_weights_that_cant_be_downloaded_are_reported(monkeypatch):
    import torchvision

    def offline(**_):
        raise OSError('no route to host')

    monkeypatch.setattr(torchvision.models, 'resnet50', offline)
    with pytest.raises(UserError, match='torchvision://resnet50 can\'t be loaded.*route'):
        build_model('torchvision://resnet50', pretrained=True)


def test_forms():
    assert split_form('m4') == ('m4', 'plain') and split_form('m4:deploy') == ('m4', 'deploy')
    assert split_form('timm://deit') == ('timm://deit', 'plain')
    assert split_form('timm://efficientvit_m4:plain') == ('timm://efficientvit_m4', 'plain')
    with pytest.raises(UserError, match="'fused' is not a form"):
        split_form('m4:fused')


def test_equal_labels_become_full_names():
    swins = ['timm://swin_base_patch4_window7_224', 'timm://swin_base_patch4_window12_384']
    configs = ['a/detector.py', 'b/detector.py:deploy', 'b/detector.py']
    assert short_names([*swins, 'm0:deploy', *configs]) == [
        *swins, 'm0 (deploy)', 'a/detector.py', 'detector (deploy)', 'b/detector.py']
    assert short_names(swins[:1]) == ['swin_base']


def test_configs_without_a_part_are_reported(tmp_path):
    config = tmp_path / 'headless.py'
    config.write_text("default_scope = 'mmdet'\nmodel = dict(type='SingleStageDetector', "
                      "backbone=dict(type='EfficientViT'))\n")
    with pytest.raises(UserError, match='headless.py can\'t be built'):
        build_model(str(config))


def test_checkpoints_of_classifiers_must_fit(tmp_path):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    name = 'timm://deit_tiny_patch16_224'

    def classifier(num_classes):
        return build_model(name, options=dict(depth=1, num_classes=num_classes))

    trained, fresh, path = classifier(4), classifier(4), str(tmp_path / 'x.pth')
    torch.save({'model': trained.state_dict()}, path)
    load_weights(fresh, name, path)
    assert all(torch.equal(a, b) for a, b in zip(
        trained.state_dict().values(), fresh.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match=f'does not fit {name}'):
        load_weights(classifier(5), name, path)
