"""The analysis of channels on a detector, a segmentor and a classifier."""

import json
import os
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm.analysis import channels
from evit_mm.analysis.channels import analyze_channels, losses
from evit_mm.analysis.channels.report import share_table, shares
from evit_mm.benchmark.model_factory import build_model
from evit_mm.data import generate_ade, generate_coco
from evit_mm.errors import UserError

DEIT = 'timm://deit_tiny_patch16_224'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    generate_coco(root / 'coco', num_train=4, num_val=1, image_size=(64, 64), progress=False)
    generate_ade(root / 'ade', num_train=4, num_val=1, image_size=(64, 64), progress=False)
    return root


@pytest.fixture
def arguments(data, randomized, tmp_path):
    """Write weights for a detector, so that no branch is zero; return arguments of a quick run."""
    def write(config, budget):
        model = randomized(build_model(str(config)))
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'model.pth')
        return dict(model=config, checkpoint=tmp_path / 'model.pth', data_root=data / 'coco',
                    batches=1, batch_size=2, steps=2, budget=budget, shape=(64, 64))
    return write


@pytest.fixture
def detection(arguments, small_detector):
    """Arguments of a run on a narrow detector."""
    return arguments(small_detector, budget=0.75)


@contextmanager
def edited(folder):
    """Change the modification times of the files in a folder within the context."""
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for path, time in times.items():
        os.utime(path, ns=(time, time + 1))
    try:
        yield
    finally:
        for path, time in times.items():
            os.utime(path, ns=(time, time))


def test_detector(arguments, repository, data, tmp_path, capsys, monkeypatch):
    """Results are printed, drawn and exported; an interrupted run continues to the same ones."""
    detection = arguments(repository / 'configs' / 'retinanet_evit_m0_shapes.py', budget=0.8)
    out, path = tmp_path / 'whole', tmp_path / 'narrow.py'
    results = analyze_channels(**detection, out=out, export_arch=path)
    printed = capsys.readouterr().out
    assert 'multiply-adds at 64x64; training loss of RetinaNet on 1 batch of 2 images' in printed
    assert '| stage 3 |' in printed and '% of the multiply-adds remain' in printed
    whole = (out / 'channels.json').read_text()
    items = json.loads(whole)['items']
    assert items == dict(results)
    assert 0.79 < items['result']['share'] <= 0.8
    assert items['step 2']['macs'] == items['result']['macs']
    # With the dearest of the last removed channels, the budget would be missed.
    dearest = max(items['channels'][name]['macs'] for name in items['step 2']['removed'])
    assert items['result']['macs'] + dearest > 0.8 * items['result']['macs_before']
    assert {entry['kind'] for entry in items['channels'].values()} == {'QK', 'V', 'FFN'}
    assert max(max(entry['importance']) for entry in items['channels'].values()) > 0
    totals = {share['kind']: share for share in items['result']['channels']
              if share['block'] == 'all'}
    assert totals['QK']['count'] == 384 and totals['V']['count'] == 896
    values = totals['V']['count'] - totals['V']['kept']
    assert items['result']['free_channels'] == values > 0
    free = items['result']['loss_with_free_channels']
    assert free != items['result']['loss']
    assert f'{values} of the removed channels save no multiply-adds' in printed
    assert f'with them the loss went to {free:.4g}' in printed
    removed = sum(len(channels) for step in ('step 1', 'step 2')
                  for channels in items[step]['removed'].values())
    assert removed == sum(share['count'] - share['kept'] for share in totals.values()) > 0
    with Image.open(out / 'channels.png') as picture:
        colours = {tuple(colour) for colour in np.unique(
            np.asarray(picture.convert('RGB')).reshape(-1, 3), axis=0).tolist()}
    assert {(0, 0x72, 0xB2), (0xE6, 0x9F, 0), (0, 0x9E, 0x73)} <= colours
    assert (0x99, 0x99, 0x99) in colours  # of the legend
    assert f'{path}: ' in printed and min(build_model(str(path)).backbone.arch.ffn_ratio) < 2

    count = []

    def interrupted(self, batch, plain=losses.TrainingLoss.loss):
        count.append(1)
        if len(count) == 3:  # the check at the start, step 1, step 2
            raise KeyboardInterrupt
        return plain(self, batch)

    monkeypatch.setattr(losses.TrainingLoss, 'loss', interrupted)
    out = tmp_path / 'parts'
    with pytest.raises(KeyboardInterrupt):
        analyze_channels(**detection, out=out)
    assert list(json.loads((out / 'channels.json').read_text())['items']) == ['channels', 'step 1']
    count[:] = [1] * 3
    with edited(data / 'coco' / 'train2017'), pytest.raises(
            UserError, match=f'the training data of {detection["model"]} has changed since'):
        analyze_channels(**detection, out=out)
    count[:] = [1] * 3
    analyze_channels(**detection, out=out)
    assert len(count) == 3 + 4  # check, step 2, the result, and the result with free channels
    assert (out / 'channels.json').read_text() == whole
    with pytest.raises(UserError, match='seed: 0 in the file, 3 in this run'):
        analyze_channels(**detection, out=out, seed=3)


def test_loss_with_free_channels_is_that_of_removing_only_the_others(detection, tmp_path, capsys):
    """With one step, QK and FFN are removed in the same order, with V or without."""
    detection['steps'] = 1
    whole, costly = (
        analyze_channels(**detection, out=tmp_path / name, **keywords)['result']
        for name, keywords in (('all', {}), ('costly', dict(kinds=('QK', 'FFN')))))
    assert whole['loss_with_free_channels'] == pytest.approx(costly['loss'], rel=1e-6)
    assert costly['free_channels'] == 0 and costly['loss_with_free_channels'] == costly['loss']
    assert capsys.readouterr().out.count('save no multiply-adds') == 1


def test_mistake_does_not_block_another_run(detection, tmp_path, capsys):
    """It does not change existing results either, and nothing needs --overwrite."""
    def run(**keywords):
        return analyze_channels(**{**detection, 'out': tmp_path / 'out', **keywords})

    with pytest.raises(UserError, match='choose from') as caught:
        run(budget=0.01)
    with pytest.raises(UserError, match='must be between 0 and 1, got 66'):
        run(budget=66)
    with pytest.raises(UserError, match='these kinds saves no multiply-adds'):
        run(kinds=('V',))
    # The lowest budget leaves single channels; no width of an architecture is as low.
    lowest = float(re.search(r'choose from ([\d.]+)', str(caught.value))[1])
    run(budget=lowest, export_arch=tmp_path / 'narrow.py')
    printed = capsys.readouterr().out
    assert 'These widths miss the' in printed and 'no multiples of 4 are closer' in printed
    run(budget=lowest)
    assert 'reusing 3 of 3 results of an earlier run' in capsys.readouterr().out

    model = torch.load(tmp_path / 'model.pth')
    next(iter(model['state_dict'].values())).add_(1)
    torch.save(model, tmp_path / 'model.pth')
    with pytest.raises(UserError, match='model.pth has changed since'):
        run(budget=lowest)


def test_segmentor(repository, data, randomized, tmp_path):
    config = tmp_path / 'small.py'
    config.write_text(f'''_base_ = {str(repository / 'configs' / 'upernet_evit_m0_shapes.py')!r}
model = dict(decode_head=dict(channels=16), auxiliary_head=None)
''')
    model = randomized(build_model(str(config)))
    torch.save({'state_dict': model.state_dict(), 'meta': {}}, tmp_path / 'model.pth')
    result = analyze_channels(
        config, checkpoint=tmp_path / 'model.pth', data_root=data / 'ade', batches=1, batch_size=2,
        steps=1, budget=0.9, shape=(64, 64), kinds=('FFN',), out=tmp_path)['result']
    assert 0.89 < result['share'] <= 0.9
    assert {share['kind'] for share in result['channels']
            if share['kept'] < share['count']} == {'FFN'}


def test_classifier(tmp_path, capsys):
    pytest.importorskip('timm')
    images = tmp_path / 'images'
    images.mkdir()
    Image.effect_noise((64, 64), 60).save(images / 'x.png')
    keywords = dict(images=images, labels='predicted', batches=1, steps=1, out=tmp_path / 'out')
    result = analyze_channels(DEIT, **keywords)['result']
    printed = capsys.readouterr().out
    assert 'M multiply-adds at 224x224' in printed
    assert 'labels: predictions of the model, not ground truth' in printed
    assert 0.65 < result['share'] <= 0.66
    assert result['macs_before'] == pytest.approx(1.25e9, rel=0.02)  # the published number
    with edited(images), pytest.raises(UserError, match=f'{images} has changed since'):
        analyze_channels(DEIT, **keywords)


def test_shares_add_up(backbone):
    sites = channels.find_sites(backbone)
    kept = channels.replay(sites, [])
    kept[sites[0].name][:20] = 0  # the first FFN of block 1.1
    table = {(share.block, share.kind): share for share in shares(sites, kept)}
    first = table['1.1', 'FFN']
    assert (first.width, first.count, first.kept) == (32, 64, 44)
    assert (table['1.1', 'QK'].width, table['1.1', 'QK'].count) == (16, 16)
    assert (table['stage 1', 'FFN'].kept, table['all', 'FFN'].kept) == (44, sum(
        site.count for site in sites if site.kind == 'FFN') - 20)
    text = share_table(table.values())
    assert '44/64 69%' in text and '| 1>2 ' in text


def test_mistakes(detection, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = detection['model']
    fresh = dict(model=config, data_root=data / 'coco', batches=1, batch_size=2, shape=(64, 64))
    mobile = tmp_path / 'mobile.py'
    mobile.write_text(f"_base_ = {str(config)!r}\nmodel = dict(backbone=dict(\n"
                      "    _delete_=True, type='mmdet.MobileNetV2'))\n")
    for sentence, keywords in {
        'm0 has no loss': dict(model='m0'),
        'absent.py': dict(model='absent.py'),
        'needs images': dict(model=DEIT),
        '--shape is for configs': dict(model=DEIT, images=data, shape=(64, 64)),
        '--export-arch is for configs': dict(model=DEIT, images=data, export_arch='x.py'),
        '--images is for classifiers': dict(model=config, images=data),
        '--steps must be positive': dict(detection, steps=0),
        '--shape must be positive': dict(detection, shape=(64, 0)),
        'must be a .py file': dict(detection, export_arch='arch.txt'),
        'no such folder: absent': dict(detection, export_arch='absent/arch.py'),
        'is the analyzed config': dict(detection, export_arch=config),
        'without model.backbone.window_sizes': dict(
            detection, export_arch='x.py', cfg_options={'model.backbone.window_sizes': 14}),
        "can't run on 1000000x1000000": dict(fresh, shape=(10 ** 6, 10 ** 6)),
        'no channel changes the loss': dict(fresh, budget=0.8),
        "--budget 0.01 can't be reached": dict(detection, budget=0.01),
        'no channels that this analysis can rank': dict(fresh, cfg_options={
            'model.backbone.type': 'mmdet.MobileNetV2', 'model.backbone._delete_': True,
            'model.backbone.out_indices': [2, 4, 7], 'model.neck.in_channels': [32, 96, 1280]}),
        '--export-arch is for EfficientViT': dict(fresh, model=mobile, export_arch='x.py'),
        'no such folder': dict(fresh, data_root='absent'),
        'not a checkpoint': dict(fresh, checkpoint=__file__),
    }.items():
        with pytest.raises(UserError, match=re.escape(sentence)):
            analyze_channels(**keywords, out=tmp_path / 'out', overwrite=True)
