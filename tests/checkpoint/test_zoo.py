"""Published names map to addresses, and load wherever a checkpoint can be named."""

import re

import pytest
import torch
from mmengine.runner import CheckpointLoader

from evit_mm.checkpoint import (
    PUBLISHED,
    address,
    list_weights,
    local_copy,
    markdown_table,
    read_checkpoint,
    zoo,
)
from evit_mm.errors import CheckpointError
from evit_mm.models import ARCHS, EfficientViT

RELEASE = 'https://github.com/xinyuliu-jeffrey/EfficientViT_Model_Zoo/releases/download/v1.0/'
HUB = 'https://huggingface.co/timm/efficientvit_m4.r224_in1k/resolve/'


@pytest.fixture(autouse=True)
def default_hub(monkeypatch):
    monkeypatch.delenv('HF_ENDPOINT', raising=False)


@pytest.mark.parametrize('name,expected', [
    ('evit://efficientvit_m4', f'{RELEASE}efficientvit_m4.pth'),
    ('efficientvit_m4', f'{RELEASE}efficientvit_m4.pth'),
    ('evit://retinanet_efficientvit_m4_fpn_1x_coco',
     f'{RELEASE}retinanet_efficientvit_m4_fpn_1x_coco.pth'),
    ('mask_rcnn_efficientvit_m4_fpn_1x_coco',
     f'{RELEASE}mask_rcnn_efficientvit_m4_fpn_1x_coco.pth'),
    ('timm://efficientvit_m4', f'{HUB}main/model.safetensors'),
    ('timm://efficientvit_m4.r224_in1k', f'{HUB}main/model.safetensors'),
    ('timm/efficientvit_m4.r224_in1k', f'{HUB}main/model.safetensors'),
    ('timm/efficientvit_m4', f'{HUB}main/model.safetensors'),
    ('hf-hub:timm/efficientvit_m4.r224_in1k', f'{HUB}main/model.safetensors'),
    ('hf-hub:timm/efficientvit_m4.r224_in1k@v2', f'{HUB}v2/model.safetensors'),
    ('hf://timm/efficientvit_m4.r224_in1k/pytorch_model.bin', f'{HUB}main/pytorch_model.bin'),
    ('hf-hub:someone/theirs@a1b2/sub/w.pth',
     'https://huggingface.co/someone/theirs/resolve/a1b2/sub/w.pth'),
    # Files and addresses are returned unchanged.
    ('efficientvit_m4.pth', 'efficientvit_m4.pth'),
    ('timm/efficientvit_m4.pth', 'timm/efficientvit_m4.pth'),
    ('https://example.org/a.pth', 'https://example.org/a.pth'),
])
def test_addresses(name, expected):
    assert address(name) == expected


@pytest.mark.parametrize('name,fragment', [
    ('evit://efficientvit_m6', 'choose from evit://efficientvit_m'),
    ('evit://retinanet_m4', 'evit://retinanet_efficientvit_m4_fpn_1x_coco'),
    ('timm://efficientvit_b0', 'is not one of timm://efficientvit_m0'),  # MIT's
    ('timm://resnet50', 'is not one of timm://efficientvit_m0'),
    ('hf-hub:nobody', 'write hf-hub:owner/repository'),
    ('hf://', 'write hf-hub:owner/repository'),
])
def test_unknown_names(name, fragment):
    with pytest.raises(CheckpointError, match=fragment):
        address(name)
    with pytest.raises(CheckpointError, match=fragment):
        CheckpointLoader.load_checkpoint(name, logger='silent')


def test_hub_endpoint_of_the_environment(monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'https://mirror.example/')
    assert address('timm://efficientvit_m0') == \
        'https://mirror.example/timm/efficientvit_m0.r224_in1k/resolve/main/model.safetensors'
    assert address('efficientvit_m0').startswith(RELEASE)


def test_names_load_in_every_place_that_accepts_a_checkpoint(tmp_path, monkeypatch):
    """test_download.py tests the downloads themselves."""
    torch.save({'model': EfficientViT('m0').state_dict()}, tmp_path / 'm0.pth')
    requests = []

    def download(url, *, sha256=None, find_damage=None):
        requests.append((url, sha256))
        return tmp_path / 'm0.pth'

    monkeypatch.setattr('evit_mm.checkpoint.safe_load.download', download)
    row = next(row for row in PUBLISHED if row.name == 'evit://efficientvit_m0')
    monkeypatch.setattr(zoo, 'PUBLISHED', (zoo.Published(
        row.name, row.source, 'm0', row.trained_for, sha256='ab' * 32), *PUBLISHED))
    for name in ('evit://efficientvit_m0', 'efficientvit_m0', 'timm://efficientvit_m0',
                 'timm/efficientvit_m0.r224_in1k', 'hf-hub:timm/efficientvit_m0'):
        model = EfficientViT('m0', init_cfg=dict(type='Pretrained', checkpoint=name))
        model.init_weights()
        assert local_copy(name) == tmp_path / 'm0.pth'
    ours, hub = (row.address, 'ab' * 32), (address('timm://efficientvit_m0'), None)
    assert requests == [ours] * 4 + [hub] * 6


def test_local_file_takes_precedence_over_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'timm').mkdir()
    for name in ('efficientvit_m0', 'timm/efficientvit_m0.r224_in1k'):
        torch.save({'w': torch.ones(1)}, tmp_path / name)
        assert CheckpointLoader.load_checkpoint(name, logger='silent')['w'] == 1
        assert str(local_copy(name)) == name
        assert read_checkpoint(tmp_path / name)['w'] == 1


def test_published_weights():
    assert list_weights() is PUBLISHED
    names = [row.name for row in PUBLISHED]
    assert len(set(names)) == len(names)
    for arch in ARCHS:
        assert {f'evit://efficientvit_{arch}', f'timm://efficientvit_{arch}'} <= set(names)
    for row in PUBLISHED:
        assert row.arch in ARCHS and re.match('https://', row.address)
        assert address(row.name) == row.address
    # None is known yet, and none may be made up.
    assert {(row.size, row.sha256) for row in PUBLISHED} == {(None, None)}


def test_documentation_contains_the_table(repository):
    assert markdown_table() in (repository / 'docs' / 'weights.md').read_text(), \
        'copy the output of `evit-mm convert --list` to docs/weights.md'


def test_accuracies_match_the_readme(repository):
    text = (repository / 'README.md').read_text()
    for row in PUBLISHED:
        if row.accuracy.endswith('top-1'):
            assert re.search(rf'^\| {row.arch} .*\| {row.accuracy.split()[0]} \|$', text, re.M)
