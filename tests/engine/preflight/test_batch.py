"""Batches that are too small are reported before the first step, with a remedy that works."""

import re

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmseg.models.utils import SELayer
from mmseg.structures import SegDataSample
from torch import nn
from torch.utils.data import DataLoader

from evit_mm.engine import preflight
from evit_mm.errors import ConfigError


@pytest.mark.parametrize('batch,processes,accumulate,warned', [
    (8, 1, 1, False), (4, 2, 1, False), (2, 2, 2, False), (8, 2, 1, True), (1, 1, 1, True)])
def test_effective_batch(config, monkeypatch, batch, processes, accumulate, warned):
    warnings = []
    monkeypatch.setattr(preflight.batch, 'print_log', lambda text, **_: warnings.append(text))
    config.train_dataloader.batch_size = batch
    config.optim_wrapper.accumulative_counts = accumulate
    effective = batch * processes * accumulate
    text = preflight.describe_batch_size(config, processes)
    assert text.startswith(f'effective batch size {effective} ({processes} process')
    assert text.endswith('learning rate 0.001')
    preflight.warn_of_batch_size(config, processes)
    assert len(warnings) == warned
    if warned:
        assert '--auto-scale-lr' in warnings[0] and f'{0.001 * effective / 8:g}' in warnings[0]
        config.auto_scale_lr.enable = True
        preflight.warn_of_batch_size(config, processes)
        assert len(warnings) == 1
        assert preflight.describe_batch_size(config, processes).endswith('(scaled from 0.001)')


def test_configs_without_a_batch_size():
    config = Config(dict(auto_scale_lr=dict(base_batch_size=2)))
    assert preflight.describe_batch_size(config, 1) == ''
    preflight.warn_of_batch_size(config, 1)


def loader(batch_size, images=8, sampler=DefaultSampler, **options):
    dataset = list(range(images))
    return DataLoader(dataset, batch_size=batch_size, sampler=sampler(dataset), **options)


def built(config):
    init_default_scope('mmseg')
    return MODELS.build(config.model)


def train_step(model, images):
    """Forward and backward in training mode, on noise."""
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 128, 128, dtype=torch.long)))
    model.train()
    losses = model(torch.rand(images, 3, 128, 128), [sample] * images, mode='loss')
    sum(value for name, value in losses.items() if 'loss' in name).backward()


def fixed(error, config):
    """Return the config with the options of the message's end."""
    options = re.findall(r'(model\.[\w.]+)=(\w+)', str(error).rpartition(' or ')[2])
    config = Config(config.to_dict())
    config.merge_from_dict({key: int(value) if value.isdigit() else value == 'True' or value
                            for key, value in options})
    return config


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='SyncBN', requires_grad=True),
                                      dict(type='BN', eps=1e-3)])
def test_one_image_behind_a_global_pooling(segmentor, norm_cfg):
    """UperNet pools to 1x1: the check agrees with torch, and both remedies work."""
    segmentor.model.decode_head.norm_cfg = norm_cfg
    segmentor.model.auxiliary_head.norm_cfg = norm_cfg
    model = built(segmentor)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        train_step(model, images=1)
    with pytest.raises(ConfigError) as caught:
        preflight.check_norms(model, loader(1), segmentor, world_size=1)
    assert str(caught.value).startswith(
        "decode_head.psp_modules.0.1.bn can't learn from a batch of one image, as a global ")
    assert 'set train_dataloader.batch_size=2 or more, or model.decode_head.norm_cfg.type=GN ' \
           'model.decode_head.norm_cfg.num_groups=8' in str(caught.value)

    preflight.check_norms(model, loader(2), segmentor, world_size=1)
    train_step(model, images=2)
    model = built(fixed(caught.value, segmentor))
    preflight.check_norms(model, loader(1), segmentor, world_size=1)
    train_step(model, images=1)


def test_thirty_two_groups_at_usual_widths(segmentor):
    segmentor.model.decode_head.channels = 128
    with pytest.raises(ConfigError) as caught:
        preflight.check_norms(built(segmentor), loader(1), segmentor, world_size=1)
    assert str(caught.value).endswith('model.decode_head.norm_cfg.num_groups=32')
    train_step(built(fixed(caught.value, segmentor)), images=1)


def test_options_that_other_norms_do_not_take(segmentor):
    segmentor.model.decode_head.norm_cfg.momentum = 0.01
    with pytest.raises(ConfigError) as caught:
        preflight.check_norms(built(segmentor), loader(1), segmentor, world_size=1)
    assert str(caught.value).endswith("model.decode_head.norm_cfg=dict(_delete_=True, type='GN', "
                                      "num_groups=8) in the config")


@pytest.mark.parametrize('batch_size,images,sampler,options,fragment', [
    (2, 9, DefaultSampler, {}, 'the last batch of an epoch, one image'),
    (2, 9, DefaultSampler, dict(drop_last=True), None),
    (2, 9, InfiniteSampler, {}, None),  # has no end
    (1, 9, InfiniteSampler, {}, 'a batch of one image'),
    (4, 11, DefaultSampler, {}, None)])
def test_last_batches(segmentor, batch_size, images, sampler, options, fragment):
    model, batches = built(segmentor), loader(batch_size, images, sampler, **options)
    if fragment is None:
        preflight.check_norms(model, batches, segmentor, world_size=1)
        return
    with pytest.raises(ConfigError, match=fragment) as caught:
        preflight.check_norms(model, batches, segmentor, world_size=1)
    assert ('drop_last=True' in str(caught.value)) == (batch_size > 1)


def test_custom_batch_samplers(segmentor):
    class Pairs:
        batch_size = 1

        def __iter__(self):
            yield [0]

    with pytest.raises(ConfigError, match='one image'):
        preflight.check_norms(built(segmentor), DataLoader([0, 1], batch_sampler=Pairs()),
                              segmentor, world_size=1)


def test_other_heads(segmentor):
    """A pooling in another part of the model, in several parts, and in none."""
    atrous = dict(type='ASPPHead', in_channels=32, in_index=3, channels=16, num_classes=150,
                  dilations=(1, 2), norm_cfg=dict(type='BN'))
    segmentor.model.auxiliary_head = [segmentor.model.auxiliary_head, atrous]
    with pytest.raises(ConfigError) as caught:
        preflight.check_norms(built(segmentor), loader(1), segmentor, world_size=1)
    assert 'model.decode_head.norm_cfg.num_groups=8 model.auxiliary_head.1.norm_cfg.type=GN' \
        in str(caught.value)
    train_step(built(fixed(caught.value, segmentor)), images=1)

    segmentor.model.decode_head = segmentor.model.auxiliary_head.pop(0)
    segmentor.model.auxiliary_head = None
    model = built(segmentor)
    preflight.check_norms(model, loader(1), segmentor, world_size=1)
    train_step(model, images=1)


def pooling(*more):
    return nn.Sequential(nn.Sequential(nn.AdaptiveAvgPool2d((1, 1))), *more)


@pytest.mark.parametrize('model,found', [
    (pooling(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), True),
    (pooling(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4)), True),
    (nn.Sequential(nn.AdaptiveMaxPool2d(1), ConvModule(4, 4, 1, norm_cfg=dict(type='BN'))), True),
    (pooling(nn.GroupNorm(2, 4)), False),
    (pooling(nn.Upsample(scale_factor=2), nn.BatchNorm2d(4)), False),
    (nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)), False),
    (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(4)), False),
    (nn.Sequential(SELayer(4, ratio=2), nn.BatchNorm2d(4)), False)])  # pools beside the map
def test_global_poolings(model, found):
    """The check agrees with a training step of torch."""
    config = Config(dict(model=dict(type='Own')))
    image = torch.rand(1, 4, 8, 8)
    if found:
        with pytest.raises(ConfigError, match='one value per channel'):
            preflight.check_norms(model, loader(1), config, world_size=1)
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            model.train()(image)
    else:
        preflight.check_norms(model, loader(1), config, world_size=1)
        model.train()(image)


class Frozen(nn.Module):
    """Keeps its norm from training, as `norm_eval` does."""

    def __init__(self, **options):
        super().__init__()
        self.pool = pooling(nn.BatchNorm2d(4, **options), nn.Dropout())

    def forward(self, x):
        return self.pool(x)

    def train(self, mode=True):
        super().train(mode)
        self.pool[1].eval()
        return self


def test_frozen_norms_do_not_count_and_modes_stay():
    model, config = Frozen(), Config(dict(model={}))
    model.pool.eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    preflight.check_norms(model, loader(1), config, world_size=1)
    assert [module.training for module in model.modules()] == modes
    model.train()(torch.rand(1, 4, 8, 8))

    model = Frozen(track_running_stats=False)  # has the batch's statistics alone
    with pytest.raises(ConfigError, match='one value per channel'):
        preflight.check_norms(model, loader(1), config, world_size=1)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        model.train()(torch.rand(1, 4, 8, 8))


def test_synced_norms_count_the_images_of_all_processes(segmentor):
    model = built(segmentor)
    preflight.check_norms(model, loader(1), segmentor, world_size=2)
    with pytest.raises(ConfigError, match='one image'):
        preflight.check_norms(model, loader(1), segmentor, world_size=1)
    segmentor.model.decode_head.norm_cfg.type = 'BN'
    with pytest.raises(ConfigError, match='one image'):
        preflight.check_norms(built(segmentor), loader(1), segmentor, world_size=2)


def test_synced_norms_without_gpus(segmentor, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    preflight.check_synced_norms(segmentor)  # mmengine replaces it by BN
    segmentor.launcher = 'pytorch'
    with pytest.raises(ConfigError) as caught:
        preflight.check_synced_norms(segmentor)
    assert str(caught.value).endswith(
        'set model.decode_head.norm_cfg.type=BN model.auxiliary_head.norm_cfg.type=BN')
    for head in (segmentor.model.decode_head, segmentor.model.auxiliary_head):
        head.norm_cfg.type = 'BN'
    preflight.check_synced_norms(segmentor)
    segmentor.sync_bn = 'torch'
    with pytest.raises(ConfigError, match='set sync_bn=None$'):
        preflight.check_synced_norms(segmentor)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    preflight.check_synced_norms(segmentor)


def test_mistakes_that_only_the_first_step_shows(segmentor):
    """Images that are too small for the backbone, whose norms follow no pooling."""
    model = built(segmentor)
    small = torch.rand(1, 3, 32, 32)
    model.train()
    with pytest.raises(ConfigError) as caught, preflight.explain_norms(model, segmentor):
        model.extract_feat(small)
    text = str(caught.value)
    assert text.startswith('backbone.') and 'larger images' in text
    assert text.endswith('or model.backbone.norm_eval=True') and '\n' not in text
    model = built(fixed(caught.value, segmentor))
    model.train()
    model.extract_feat(small)

    for error in (ValueError('Expected more than 1 value per channel'), ValueError('else')):
        with pytest.raises(ValueError, match=str(error)) as caught, \
                preflight.explain_norms(model, segmentor):
            raise error
        assert caught.value is error
