"""Datasets to break, and configs over them."""

import json
import shutil

import pytest
from mmengine.config import Config

from evit_mm.engine import config as configure

SEGMENTOR = """
_base_ = ['mmseg::_base_/models/upernet_r50.py', 'mmseg::_base_/datasets/ade20k.py',
          'mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_20k.py']
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        _delete_=True, type='EfficientViT', stem_strides=(8,), norm_eval=False,
        arch=dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))),
    decode_head=dict(in_channels=[8, 16, 24, 32], channels=16, num_classes=150),
    auxiliary_head=dict(in_channels=24, channels=8, num_classes=150))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='RandomCrop', crop_size=(64, 64)), dict(type='PackSegInputs')]))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)),
              dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=4))
"""


@pytest.fixture
def copy(shapes, tmp_path, config):
    """A copy of the dataset to break, with the config pointing to it."""
    root = tmp_path / 'copy'
    shutil.copytree(shapes, root)
    configure.set_data_root(config, root)
    return root



@pytest.fixture
def rewrite(copy):
    """Changes the content of the copy's annotation file."""
    path = copy / 'annotations' / 'instances_train2017.json'

    def run(change):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return run


@pytest.fixture
def ade(scenes, tmp_path):
    """A copy of the generated scenes to break."""
    root = tmp_path / 'ade'
    shutil.copytree(scenes, root)
    return root


@pytest.fixture
def segmentor_file(tmp_path):
    """UperNet on a tiny EfficientViT, in stock MMSegmentation's terms."""
    path = tmp_path / 'segmentor.py'
    path.write_text(SEGMENTOR)
    return path


@pytest.fixture
def segmentor(segmentor_file, ade):
    """The same, read, over the copy."""
    config = Config.fromfile(segmentor_file)
    configure.set_data_root(config, ade)
    return config
