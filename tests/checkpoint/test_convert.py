"""Conversion changes names and nothing else, and inspection runs nothing."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file

from evit_mm.checkpoint import MICROSOFT, NATIVE, TIMM, load_backbone_weights
from evit_mm.checkpoint import convert as module
from evit_mm.checkpoint.convert import TARGETS, convert, convert_state
from evit_mm.cli import convert_weights_parser, run_tool
from evit_mm.errors import CheckpointError
from evit_mm.models import EfficientViT
from evit_mm.models.attention import relative_position_index


def classifier(arch='m0', dtype=torch.float32):
    """A classifier as Microsoft publishes it."""
    model = EfficientViT(arch, window_sizes=(7, 7, 4))
    state = {}
    for key, value in model.state_dict().items():
        random = torch.randint(9, value.shape) if not value.is_floating_point() else \
            torch.randn(value.shape).to(dtype)
        name = MICROSOFT.published_key(key)
        state[name] = random
        if key.endswith('attention_biases'):
            state[name.replace('biases', 'bias_idxs')] = \
                relative_position_index(round(value.shape[1] ** 0.5))
    width = model.out_channels[-1]
    state.update({f'head.bn.{name}': torch.randn(width)
                  for name in ('weight', 'bias', 'running_mean', 'running_var')})
    state.update({'head.bn.num_batches_tracked': torch.tensor(5),
                  'head.l.weight': torch.randn(10, width), 'head.l.bias': torch.randn(10)})
    return state


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


@pytest.fixture
def tool(capsys):
    """Run the tool in this process: its exit status, and what it printed."""
    def run(*arguments):
        status = run_tool(convert_weights_parser(), convert, [str(part) for part in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def mistake(tool):
    """Run the tool; it must end with status 2 and one sentence, which is given."""
    def run(*arguments):
        status, _, errors = tool(*arguments)
        lines = errors.strip().splitlines()
        assert status == 2 and lines[-1].startswith('error: '), errors
        assert 'Traceback' not in errors
        return lines[-1]

    return run


def round_trip(tool, folder, original, chain):
    """Through the tool and files, from each layout to the next; the tensors of the last file."""
    source = folder / 'original.pth'
    torch.save(original, source)
    for number, (layout, suffix) in enumerate(chain):
        target = folder / f'{number}{suffix}'
        status, output, errors = tool(source, target, '--to', layout)
        assert status == 0, errors
        source = target
    return source, output


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_round_trip(tool, tmp_path, suffix, dtype):
    """Microsoft -> ours -> timm -> ours -> Microsoft, bit for bit, classifier and all."""
    original = classifier(dtype=dtype)
    chain = [(layout, suffix) for layout in ('evit-mm', 'timm', 'evit-mm', 'microsoft')]
    last, _ = round_trip(tool, tmp_path, {'model': original, 'epoch': 300}, chain)
    found = load_file(last) if suffix == '.safetensors' else torch.load(last)['model']
    same(found, original)


@pytest.mark.parametrize('name', ['m0', 'm1', 'm2', 'm3', 'm4', 'm5'])
def test_round_trip_of_published_names(name, golden):
    original = {key: torch.from_numpy(np.asarray(value))
                for key, value in golden.official_state(name).items()}
    state = original
    for layout in (NATIVE, TIMM, NATIVE, MICROSOFT):
        state = convert_state(state, layout).state
    same(state, original)


@pytest.mark.parametrize('detector', ['retinanet_m4', 'mask_rcnn_m4'])
def test_detectors_keep_their_other_parts(detector, golden, tool, tmp_path):
    original = {key: torch.from_numpy(np.asarray(value))
                for key, value in golden.official_state(detector).items()}
    meta = {'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(1, 2, 3)]}}
    last, _ = round_trip(tool, tmp_path, {'state_dict': original, 'meta': meta},
                         [('evit-mm', '.safetensors'), ('microsoft', '.pth')])
    found = torch.load(last)
    same(found['state_dict'], original)
    expected = {'classes': ['cat', 'dog'], 'palette': [[1, 2, 3]]}
    assert found['meta']['dataset_meta'] == expected
    ours = CheckpointLoader.load_checkpoint(str(tmp_path / '0.safetensors'), logger='silent')
    assert ours['meta']['dataset_meta'] == expected  # mmdet's pictures have the right names
    assert 'neck.fpn_convs.0.conv.weight' in ours['state_dict']
    assert 'backbone.stem.0.conv.weight' in ours['state_dict']
    status, output, _ = tool(last, tmp_path / 'timm', '--to', 'timm')
    assert status == 0 and re.search(r'without .*\bneck\.\* \(\d+\)', output), output
    assert not [key for key in load_file(tmp_path / 'timm.safetensors') if 'neck' in key]


def test_files_say_what_they_are(tool, tmp_path):
    torch.save(classifier('m3'), tmp_path / 'a.pth')
    for number, (name, layout) in enumerate(TARGETS.items()):
        target = tmp_path / f'{number}.r224_in1k'  # no suffix of a format: safetensors
        assert tool(tmp_path / 'a.pth', target, '--to', name)[0] == 0
        with safe_open(f'{target}.safetensors', framework='pt') as file:
            assert file.metadata() == {'format': 'pt', 'layout': layout.name, 'arch': 'm3',
                                       'window_sizes': '7, 7, 4'}
    report = load_backbone_weights(EfficientViT('m3', window_sizes=(7, 7, 4)),
                                   load_file(tmp_path / '0.r224_in1k.safetensors'), source='x')
    assert report.complete and len(report.dropped) == 7  # the classifier


def test_views_and_ties_are_written_as_they_are(tool, tmp_path):
    state = classifier()
    row = torch.randn(4, 64)
    state['patch_embed.6.bn.weight'], state['patch_embed.6.bn.bias'] = row[0], row[0]
    key = 'patch_embed.6.c.weight'
    state[key] = state[key].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.save(state, tmp_path / 'a.pth')
    for suffix in ('.safetensors', '.pt'):
        assert tool(tmp_path / 'a.pth', tmp_path / f'b{suffix}', '--to', 'microsoft')[0] == 0
        assert (tmp_path / f'b{suffix}').stat().st_size < 1.1 * (tmp_path / 'a.pth').stat().st_size
    same(load_file(tmp_path / 'b.safetensors'), state)


def test_nothing_is_overwritten_or_left_behind(tool, mistake, tmp_path, monkeypatch):
    torch.save(classifier(), tmp_path / 'a.pth')
    (tmp_path / 'b.safetensors').write_text('mine')
    assert 'b.safetensors exists: name another file, or pass --overwrite' in \
        mistake(tmp_path / 'a.pth', tmp_path / 'b')
    assert (tmp_path / 'b.safetensors').read_text() == 'mine'

    def fails(tensors, path, **_):
        path.write_bytes(b'half')
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(module, 'save_file', fails)
        assert 'b.safetensors can\'t be written: No space left on device' in \
            mistake(tmp_path / 'a.pth', tmp_path / 'b', '--overwrite')
    assert (tmp_path / 'b.safetensors').read_text() == 'mine'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.pth', 'b.safetensors']
    assert tool(tmp_path / 'a.pth', tmp_path / 'b', '--overwrite')[0] == 0
    assert len(load_file(tmp_path / 'b.safetensors')) == len(classifier()) - 6


def test_what_can_not_be_converted(mistake, tmp_path):
    good = classifier()
    fused = {key.replace('.c.', '.'): value for key, value in good.items() if '.bn.' not in key}
    cases = {
        'none': ({'epoch': 3}, 'holds no weights in a place that is known here (it holds epoch)'),
        'meta': ({**good, 'patch_embed.0.c.weight': good['patch_embed.0.c.weight'].to('meta')},
                 'can\'t be written'),
        'other': ({'conv1.weight': torch.zeros(1)}, 'no EfficientViT that is known here'),
        'fused': (fused, 'is a fused export in the Microsoft layout'),
        'more': ({**good, 'blocks1.0.surprise': torch.zeros(1)},
                 'without a rule (blocks1.0.surprise)'),
        'less': ({key: value for key, value in good.items() if key != 'patch_embed.2.bn.bias'},
                 '1 missing (patch_embed.2.bn.bias)'),
        'two': ({f'{name}.{key}': value for name in 'ab' for key, value in good.items()},
                "2 backbones, under 'a.', 'b.'"),
    }
    for name, (state, fragment) in cases.items():
        torch.save(state, tmp_path / f'{name}.pth')
        sentence = mistake(tmp_path / f'{name}.pth', tmp_path / 'out')
        assert fragment in sentence and (f'{name}.pth' in sentence or name == 'meta'), sentence
    assert 'no such checkpoint' in mistake(tmp_path / 'gone.pth', tmp_path / 'out')
    assert 'is a folder' in mistake(tmp_path / 'none.pth', tmp_path)
    assert 'there is no folder' in mistake(tmp_path / 'none.pth', tmp_path / 'x' / 'y.pth')
    assert 'name the file to write' in mistake(tmp_path / 'none.pth')
    assert 'name the file to read' in mistake()
    assert not (tmp_path / 'out.safetensors').exists()


def test_inspection(tool, tmp_path, monkeypatch):
    def built(*_, **__):
        raise AssertionError('a model was built')

    state = classifier('m1')
    numbers = sum(value.numel() for value in state.values() if value.is_floating_point()) / 1e6
    whole = sum(value.dtype == torch.int64 for value in state.values())
    average = {f'module.{key}': value for key, value in state.items()}
    torch.save({'model': state, 'model_ema': average, 'optimizer': {'state': {}, 'groups': []},
                'epoch': 299}, tmp_path / 'a.pth')
    neck = {'neck.conv.weight': torch.zeros(2), 'neck.conv.bias': torch.zeros(2)}
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in state.items()} | neck,
                'meta': {}}, tmp_path / 'b.pth')
    assert tool(tmp_path / 'b.pth', tmp_path / 'c')[0] == 0
    endless = [3]
    endless[0] = endless
    torch.save({'x': 3, '\x1b[2J\n': endless}, tmp_path / 'd.pth')
    torch.save({key.replace('.c.', '.'): value for key, value in state.items()
                if '.bn.' not in key}, tmp_path / 'e.pth')
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'f.pth')
    monkeypatch.setattr(EfficientViT, '__init__', built)
    for name, lines in {
        'a.pth': [r'file +\S+a\.pth \(torch\.save, [\d.]+ MB\)',
                  r'weights in +model_ema, keys begin with module\.', r'layout +Microsoft$',
                  r'arch +m1 \(widths 128, 144, 192\)', r'windows +7, 7, 4$',
                  rf'tensors +615 \({615 - whole} float32, {whole} int64\), {numbers:.2f} M '
                  r'numbers, [\d.]+ MB',
                  r'classifier +yes', r'extra: model +615 entries',
                  r'extra: optimizer +2 entries: groups, state', r'extra: epoch +int, 299'],
        'b.pth': [r'layout +Microsoft, under backbone\.\*', r'beside it +neck\.\* \(2\)',
                  r'extra: meta +0 entries'],
        'c.safetensors': [r'file +\S+c\.safetensors \(safetensors,',
                          r'layout +evit-mm, under backbone\.\*', r'arch +m1 ',
                          r'extra: meta +4 entries: arch, format, layout, window_sizes'],
        'd.pth': [r'weights +none', r'extra: x +int, 3', r'extra: \?\[2J\? +list, \['],
        'e.pth': [r'layout +Microsoft, fused: BN is folded', r'arch +m1'],
        'f.pth': [r'layout +none that is known here'],
    }.items():
        status, output, _ = tool(tmp_path / name, '--inspect')
        assert status == 0
        for line in lines:
            assert re.search(f'^{line}', output, re.M), (name, line, output)


class Hostile:
    """Pickles as a call that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_trust_is_the_one_way_out(tool, mistake, tmp_path):
    torch.save({'model': classifier(), 'args': Hostile(tmp_path / 'owned')}, tmp_path / 'a.pth')
    for arguments in ((tmp_path / 'b',), ('--inspect',)):
        sentence = mistake(tmp_path / 'a.pth', *arguments)
        assert 'a.pth is refused' in sentence and 'tools/convert_weights.py --trust' in sentence
    assert not (tmp_path / 'owned').exists()
    status, _, errors = tool(tmp_path / 'a.pth', tmp_path / 'b', '--trust')
    assert status == 0 and 'warning: --trust runs whatever code' in errors
    assert (tmp_path / 'owned').exists()  # it was asked for
    (tmp_path / 'owned').unlink()
    assert tool(tmp_path / 'b.safetensors', '--inspect')[0] == 0
    EfficientViT('m0', init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'b.safetensors'))).init_weights()
    assert not (tmp_path / 'owned').exists()


def test_the_tool_in_a_process_of_its_own(repository, tmp_path):
    script = repository / 'tools' / 'convert_weights.py'
    torch.save({'model': classifier()}, tmp_path / 'a.pth')
    result = subprocess.run([sys.executable, script, 'a.pth', 'b', '--to', 'timm'], cwd=tmp_path,
                            capture_output=True, text=True, timeout=300,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'b.safetensors: m0, 693 tensors in the timm layout ' \
                            '(from the Microsoft layout)\n'
    header = (tmp_path / 'b.safetensors').read_bytes()
    names = json.loads(header[8:8 + int.from_bytes(header[:8], 'little')])
    assert 'stages.1.downsample.patchmerge.se.fc1.weight' in names


def test_weights_of_no_known_variant(tmp_path, tool):
    tiny = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))
    state = EfficientViT(tiny).state_dict()
    torch.save(state, tmp_path / 'a.pth')
    assert 'a variant of its own' in tool(tmp_path / 'a.pth', tmp_path / 'b')[1]
    same(load_file(tmp_path / 'b.safetensors'), state)
    with pytest.raises(CheckpointError, match='holds no EfficientViT'):
        convert_state({'stem.0.conv.weight': torch.zeros(1)}, NATIVE)
