"""`tools/analyze.py channels` as a whole: on a detector, a segmentor and a classifier."""

import json
import os
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm.analysis import channels
from evit_mm.analysis.channels import losses
from evit_mm.analysis.channels.report import share_table, shares
from evit_mm.benchmark.model_factory import build_subject
import argparse
from evit_mm.cli.analyze import add_arguments
from evit_mm.cli.analyze import run as analyze_run
from evit_mm.cli import run_tool
from evit_mm.data import generate_ade, generate_coco


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    generate_coco(root / 'coco', num_train=4, num_val=1, image_size=(64, 64), progress=False)
    generate_ade(root / 'ade', num_train=4, num_val=1, image_size=(64, 64), progress=False)
    return root


@pytest.fixture
def detection(repository, data, randomised, tmp_path):
    """Flags of a quick run on a detector whose blocks do something."""
    config = repository / 'configs' / 'retinanet_evit_m0_shapes.py'
    model = randomised(build_subject(str(config)))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'model.pth')
    return [config, '--checkpoint', tmp_path / 'model.pth', '--data-root', data / 'coco',
            '--batches', 1, '--batch-size', 2, '--steps', 2, '--budget', 0.8, '--shape', 64, 64]


def run(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run_tool(parser, analyze_run, ['channels', *map(str, arguments)])


@contextmanager
def edited(folder):
    """Its files seem to have changed since, within the block; names and sizes stay."""
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path, time in times.items():
        os.utime(path, ns=(time, time + 1))
    try:
        yield
    finally:
        for path, time in times.items():
            os.utime(path, ns=(time, time))


def test_a_detector(detection, data, tmp_path, capsys, monkeypatch):
    """Finds, keeps, draws and exports; an interrupted run goes on and finds the same."""
    out, path = tmp_path / 'whole', tmp_path / 'narrow.py'
    assert run(*detection, '--out', out, '--export-arch', path) == 0
    printed = capsys.readouterr().out
    assert 'multiply-adds at 64x64; training loss of RetinaNet on 1 batch of 2 images' in printed
    assert '| stage 3 |' in printed and '% of the multiply-adds are left' in printed
    whole = (out / 'channels.json').read_text()
    items = json.loads(whole)['items']
    assert 0.79 < items['result']['share'] <= 0.8
    assert items['step 2']['macs'] == items['result']['macs']
    assert {entry['kind'] for entry in items['channels'].values()} == {'QK', 'V', 'FFN'}
    assert max(max(entry['importance']) for entry in items['channels'].values()) > 0
    everything = {share['kind']: share for share in items['result']['channels']
                  if share['block'] == 'all'}
    assert everything['QK']['count'] == 384 and everything['V']['count'] == 896
    values = everything['V']['count'] - everything['V']['kept']
    assert items['result']['free_channels'] == values > 0
    free = items['result']['loss_with_free_channels']
    assert free != items['result']['loss']
    assert f'{values} of the removed channels save no multiply-adds' in printed
    assert f'with them the loss went to {free:.4g} instead' in printed
    removed = sum(len(gone) for step in ('step 1', 'step 2')
                  for gone in items[step]['removed'].values())
    assert removed == sum(share['count'] - share['kept'] for share in everything.values()) > 0
    with Image.open(out / 'channels.png') as picture:
        colours = {tuple(colour) for colour in np.unique(
            np.asarray(picture.convert('RGB')).reshape(-1, 3), axis=0).tolist()}
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0), (0, 0x9E, 0x73)} <= colours
    assert (0x99, 0x99, 0x99) in colours  # of the legend
    assert f'{path}: ' in printed and min(build_subject(str(path)).backbone.arch.ffn_ratio) < 2

    count = []

    def interrupted(self, batch, plain=losses.TrainingLoss.loss):
        count.append(1)
        if len(count) == 3:  # the trial at the start, step 1, step 2
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(losses.TrainingLoss, 'loss', interrupted)
    out = tmp_path / 'parts'
    assert run(*detection, '--out', out) == 130
    assert list(json.loads((out / 'channels.json').read_text())['items']) == ['channels', 'step 1']
    count[:] = [1] * 3
    capsys.readouterr()
    with edited(data / 'coco' / 'train2017'):
        assert run(*detection, '--out', out) == 2
    assert f'the training data of {detection[0]} is not what it was' in capsys.readouterr().err
    count[:] = [1] * 3
    assert run(*detection, '--out', out) == 0
    assert len(count) == 3 + 4  # the trial, step 2, what is left, and with values that cost nothing
    assert (out / 'channels.json').read_text() == whole

    capsys.readouterr()
    assert run(*detection, '--out', out, '--seed', 3) == 2
    assert 'seed: 0 there, 3 here' in capsys.readouterr().err


def test_the_loss_with_free_channels_is_that_of_removing_the_others_alone(
        detection, tmp_path, capsys):
    """One step ranks what goes; without V, the same share of QK and FFN goes in the same order."""
    steps = detection.index('--steps')
    detection[steps + 1] = 1
    items = []
    for out, kinds in (('all', ()), ('costly', ('--kinds', 'QK', 'FFN'))):
        assert run(*detection, *kinds, '--out', tmp_path / out) == 0
        items.append(json.loads((tmp_path / out / 'channels.json').read_text())['items'])
    whole, costly = (item['result'] for item in items)
    assert whole['loss_with_free_channels'] == pytest.approx(costly['loss'], rel=1e-6)
    assert costly['free_channels'] == 0 and costly['loss_with_free_channels'] == costly['loss']
    assert capsys.readouterr().out.count('save no multiply-adds') == 1


def test_a_mistake_blocks_no_further_run(detection, tmp_path, capsys):
    """Nor does it spoil what is there; no --overwrite anywhere."""
    out = ['--out', tmp_path / 'out']
    assert run(*detection, *out, '--budget', 0.01) == 2
    told = capsys.readouterr().err
    assert run(*detection, *out, '--budget', 66) == 2
    assert '--budget 66 is not between 0 and 1' in capsys.readouterr().err
    assert run(*detection, *out, '--kinds', 'V') == 2
    assert 'these kinds save nothing in this model' in capsys.readouterr().err
    # The lowest budget leaves single channels; no width of an architecture is as low.
    lowest = told.split('choose from ')[1].split()[0]
    path = tmp_path / 'narrow.py'
    assert run(*detection, *out, '--budget', lowest, '--export-arch', path) == 0
    printed = capsys.readouterr().out
    assert 'These widths miss the' in printed and 'no multiples of 4 come nearer' in printed
    assert run(*detection, *out, '--budget', lowest) == 0
    assert '3 of 3 results are from an earlier run of' in capsys.readouterr().out

    model = torch.load(tmp_path / 'model.pth')
    next(iter(model['state_dict'].values())).add_(1)
    torch.save(model, tmp_path / 'model.pth')
    assert run(*detection, *out, '--budget', lowest) == 2
    assert 'model.pth is not what it was when' in capsys.readouterr().err


def test_a_segmentor(repository, data, randomised, tmp_path, capsys):
    config = repository / 'configs' / 'upernet_evit_m0_shapes.py'
    model = randomised(build_subject(str(config)))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'model.pth')
    assert run(config, '--checkpoint', tmp_path / 'model.pth', '--data-root', data / 'ade',
               '--batches', 1, '--batch-size', 2, '--steps', 1, '--budget', 0.9, '--shape', 64, 64,
               '--kinds', 'FFN', '--out', tmp_path) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / 'channels.json').read_text())['items']['result']
    assert 0.89 < result['share'] <= 0.9
    assert {share['kind'] for share in result['channels']
            if share['kept'] < share['count']} == {'FFN'}


def test_a_classifier(tmp_path, capsys):
    pytest.importorskip('timm')
    images = tmp_path / 'images'
    images.mkdir()
    Image.effect_noise((64, 64), 60).save(images / 'x.png')
    arguments = ['timm://deit_tiny_patch16_224', '--images', images, '--labels', 'predicted',
                 '--batches', 1, '--steps', 1, '--out', tmp_path / 'out']
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert 'M multiply-adds at 224x224' in printed
    assert 'labels: what the model itself predicts, no truth' in printed
    items = json.loads((tmp_path / 'out' / 'channels.json').read_text())['items']
    assert 0.65 < items['result']['share'] <= 0.66
    assert items['result']['macs_before'] == pytest.approx(1.25e9, rel=0.02)  # as is published
    with edited(images):
        assert run(*arguments) == 2
    assert f'what is in {images} is not what it was' in capsys.readouterr().err


def test_shares_add_up(backbone):
    sites = channels.find_sites(backbone)
    kept = channels.replay(sites, [])
    kept[sites[0].name][:20] = 0  # the first FFN of block 1.1
    found = {(share.block, share.kind): share for share in shares(sites, kept)}
    first = found['1.1', 'FFN']
    assert (first.width, first.count, first.kept) == (32, 64, 44)
    assert (found['1.1', 'QK'].width, found['1.1', 'QK'].count) == (16, 16)
    assert (found['stage 1', 'FFN'].kept, found['all', 'FFN'].kept) == (44, sum(
        site.count for site in sites if site.kind == 'FFN') - 20)
    table = share_table(found.values())
    assert '44/64 69%' in table and '| 1>2 ' in table


def test_mistakes_are_told(repository, detection, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, *rest = detection
    fresh = ['--data-root', data / 'coco', '--batches', 1, '--batch-size', 2, '--shape', 64, 64]
    timm = 'timm://deit_tiny_patch16_224'
    mobile = tmp_path / 'mobile.py'
    mobile.write_text(f"_base_ = {str(config)!r}\nmodel = dict(backbone=dict(\n"
                      "    _delete_=True, type='mmdet.MobileNetV2'))\n")
    for sentence, arguments in {
        'm0 alone has no loss': ['m0'],
        'no such config': ['absent.py'],
        'needs images': [timm],
        '--shape is for configs': [timm, '--images', data, '--shape', 64, 64],
        '--export-arch is for configs': [timm, '--images', data, '--export-arch', 'x.py'],
        '--images is for classifiers': [config, '--images', data],
        '--steps must be positive': [*detection, '--steps', 0],
        '--shape must be positive': [*detection, '--shape', 64, 0],
        'name a .py file': [*detection, '--export-arch', 'arch.txt'],
        'is the config that is analysed': [*detection, '--export-arch', config],
        'without model.backbone.window_sizes': [
            *detection, '--export-arch', 'x.py', '--cfg-options', 'model.backbone.window_sizes=14'],
        "can't run on 1000000x1000000": [config, *fresh, '--shape', 10 ** 6, 10 ** 6],
        'no channel changes the loss': [config, *fresh, '--budget', 0.8],
        '--budget 0.01 is out of reach': [*detection, '--budget', 0.01],
        'no channels that this analysis knows': [
            config, *fresh, '--cfg-options', 'model.backbone.type=mmdet.MobileNetV2',
            'model.backbone._delete_=True', 'model.backbone.out_indices=[2,4,7]',
            'model.neck.in_channels=[32,96,1280]'],
        'writes architectures of EfficientViT': [
            mobile, *fresh, '--export-arch', 'x.py'],
        'no such folder': [config, *fresh[2:], '--data-root', 'absent'],
        'not a checkpoint': [config, *fresh, '--checkpoint', __file__],
    }.items():
        assert run(*arguments, '--out', tmp_path / 'out', '--overwrite') == 2, sentence
        told = [line for line in capsys.readouterr().err.splitlines() if 'error: ' in line]
        assert len(told) == 1 and sentence in told[0], (sentence, told)
