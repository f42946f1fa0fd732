"""Conversion changes only names, and inspection runs no code and builds no model."""

import argparse
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file

from evit_mm.checkpoint import MICROSOFT, NATIVE, TIMM, load_backbone_weights, markdown_table
from evit_mm.checkpoint.convert import (
    LAYOUT_NAMES,
    convert_checkpoint,
    convert_state,
    inspect_checkpoint,
)
from evit_mm.cli import convert as command
from evit_mm.errors import CheckpointError, MissingCheckpointError, UserError
from evit_mm.models import EfficientViT
from evit_mm.models.attention import relative_position_index


def classifier(arch='m0', dtype=torch.float32):
    """Return a classifier as Microsoft publishes it."""
    model = EfficientViT(arch, window_sizes=(7, 7, 4))
    state = {}
    for key, value in model.state_dict().items():
        random = torch.randn(value.shape).to(dtype) if value.is_floating_point() else \
            torch.randint(9, value.shape)
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


@pytest.fixture(scope='module')
def m0():
    """The state dict of an M0 classifier; tests only read it."""
    return classifier()


@pytest.fixture
def m0_file(m0, tmp_path):
    torch.save({'model': m0}, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert value.dtype == b[key].dtype and torch.equal(value, b[key]), key


def run_command(*arguments):
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def convert_in_turn(original, folder, layouts):
    """Convert through files, from each layout to the next; return the last path."""
    source = folder / 'original.pth'
    torch.save(original, source)
    for number, (layout, suffix) in enumerate(layouts):
        source = convert_checkpoint(source, folder / f'{number}{suffix}', to=layout).path
    return source


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_round_trip(tmp_path, suffix, dtype):
    """Microsoft -> ours -> timm -> ours -> Microsoft is exact, including the classifier."""
    original = classifier(dtype=dtype)
    last = convert_in_turn({'model': original, 'epoch': 300}, tmp_path, [
        (layout, suffix) for layout in ('evit-mm', 'timm', 'evit-mm', 'microsoft')])
    assert_equal(load_file(last) if suffix == '.safetensors' else torch.load(last)['model'],
                 original)


@pytest.mark.parametrize('name', ['m0', 'm1', 'm2', 'm3', 'm4', 'm5'])
def test_round_trip_of_published_names(name, golden):
    original = {key: torch.from_numpy(np.asarray(value))
                for key, value in golden.official_state(name).items()}
    state = original
    for layout in (NATIVE, TIMM, NATIVE, MICROSOFT):
        state = convert_state(state, layout).state
    assert_equal(state, original)


@pytest.mark.parametrize('detector', ['retinanet_m4', 'mask_rcnn_m4'])
def test_detectors_keep_their_other_parts(detector, golden, tmp_path):
    original = {key: torch.from_numpy(np.asarray(value))
                for key, value in golden.official_state(detector).items()}
    meta = {'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(1, 2, 3)]}}
    last = convert_in_turn({'state_dict': original, 'meta': meta}, tmp_path,
                           [('evit-mm', '.safetensors'), ('microsoft', '.pth')])
    written = torch.load(last)
    assert_equal(written['state_dict'], original)
    expected = {'classes': ['cat', 'dog'], 'palette': [[1, 2, 3]]}
    assert written['meta']['dataset_meta'] == expected
    ours = CheckpointLoader.load_checkpoint(str(tmp_path / '0.safetensors'), logger='silent')
    assert ours['meta']['dataset_meta'] == expected  # mmdet draws the right names
    assert 'neck.fpn_convs.0.conv.weight' in ours['state_dict']
    assert 'backbone.stem.0.conv.weight' in ours['state_dict']
    converted = convert_checkpoint(last, tmp_path / 'timm', to='timm')
    assert re.search(r'left out, .*\bneck\.\* \(\d+\)', str(converted))
    assert converted.path == tmp_path / 'timm.safetensors' and not converted.has_other_parts
    assert not [key for key in load_file(converted.path) if 'neck' in key]


def test_header_of_safetensors_files(tmp_path):
    torch.save(classifier('m3'), tmp_path / 'a.pth')
    for name, layout in LAYOUT_NAMES.items():
        path = convert_checkpoint(tmp_path / 'a.pth', tmp_path / name, to=name).path
        assert path == tmp_path / f'{name}.safetensors'  # appended
        with safe_open(path, framework='pt') as file:
            assert file.metadata() == {'format': 'pt', 'layout': layout.name, 'arch': 'm3',
                                       'window_sizes': '7, 7, 4'}
    report = load_backbone_weights(EfficientViT('m3', window_sizes=(7, 7, 4)),
                                   load_file(tmp_path / 'evit-mm.safetensors'), source='x')
    assert report.complete and len(report.dropped) == 7  # the classifier


def test_views_and_shared_tensors(m0, tmp_path):
    state = dict(m0)
    row = torch.randn(4, 64)
    state['patch_embed.6.bn.weight'], state['patch_embed.6.bn.bias'] = row[0], row[0]
    key = 'patch_embed.6.c.weight'
    state[key] = state[key].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.save(state, tmp_path / 'a.pth')
    for suffix in ('.safetensors', '.pt'):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / f'b{suffix}', to='microsoft')
        assert (tmp_path / f'b{suffix}').stat().st_size < 1.1 * (tmp_path / 'a.pth').stat().st_size
    assert_equal(load_file(tmp_path / 'b.safetensors'), state)


@pytest.mark.parametrize('name', ['b.safetensors', 'b.pth'])
def test_existing_files_survive(m0_file, name):
    path = m0_file.with_name(name)
    path.write_text('mine')
    with pytest.raises(UserError, match=f'can.t write .*{name}: it exists; .* --overwrite'):
        convert_checkpoint(m0_file, path)
    # A limit for the size of files has the effect of a full disk.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=f'can.t write .*{name}: .*File too large'):
            convert_checkpoint(m0_file, path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == 'mine'
    assert {file.name for file in path.parent.iterdir()} == {'a.pth', name}
    convert_checkpoint(m0_file, path, overwrite=True)
    assert len(CheckpointLoader.load_checkpoint(str(path))['state_dict']) == len(classifier()) - 6


@pytest.mark.parametrize('dst,message', [
    ('model.onnx', 'can.t write .*model.onnx: weights are saved as .safetensors, .pth or .pt, '
                   'and evit-mm export CONFIG CHECKPOINT --out .*model.onnx writes a model'),
    ('m0.r224_in1k', 'can.t write .*m0.r224_in1k: .* not as .r224_in1k'),
    ('', 'can.t write .*: it is a folder'), ('x/y.pth', 'no such folder: .*x$'),
    ('x' * 300, 'can.t write .*: File name too long')])
def test_invalid_outputs(m0_file, dst, message):
    """They are refused before anything is read."""
    for src in (m0_file, 'gone.pth'):
        with pytest.raises(UserError, match=message) as error:
            convert_checkpoint(src, m0_file.parent / dst)
        assert '\n' not in str(error.value)
    assert [file.name for file in m0_file.parent.iterdir()] == ['a.pth']


@pytest.mark.parametrize('name,make,message', [
    ('none', lambda state: {'epoch': 3}, 'holds no weights in any known container .its keys: epo'),
    ('other', lambda state: {'conv1.weight': torch.zeros(1)}, 'contains no EfficientViT of a kno'),
    ('fused', lambda state: {key.replace('.c.', '.'): value for key, value in state.items()
                             if '.bn.' not in key}, 'is a fused export in the Microsoft layout'),
    ('more', lambda state: {**state, 'blocks1.0.surprise': torch.zeros(1)},
     r'1 unknown \(blocks1.0.surprise\)'),
    ('less', lambda state: {key: value for key, value in state.items()
                            if key != 'patch_embed.2.bn.bias'},
     r'1 missing \(patch_embed.2.bn.bias\)'),
    ('two', lambda state: {f'{name}.{key}': value for name in 'ab'
                           for key, value in state.items()}, "2 backbones, under 'a.', 'b.'"),
])
def test_invalid_sources(name, make, message, m0, tmp_path):
    torch.save(make(m0), tmp_path / f'{name}.pth')
    with pytest.raises(CheckpointError, match=f'{name}.pth .*{message}') as error:
        convert_checkpoint(tmp_path / f'{name}.pth', tmp_path / 'out')
    assert '\n' not in str(error.value) and not (tmp_path / 'out.safetensors').exists()


def test_tensors_without_data(m0, tmp_path):
    key = 'patch_embed.0.c.weight'
    torch.save({**m0, key: m0[key].to('meta')}, tmp_path / 'a.pth')
    with pytest.raises(UserError, match='can.t write .*out.safetensors: Cannot copy out of meta'):
        convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'out')


def test_missing_sources_and_layouts(tmp_path):
    for attempt in (lambda: convert_checkpoint('gone.pth', tmp_path / 'b'),
                    lambda: inspect_checkpoint('gone.pth')):
        with pytest.raises(MissingCheckpointError, match='^no such file: gone.pth$'):
            attempt()
    with pytest.raises(UserError, match="no layout 'mit': choose from evit-mm, timm, microsoft"):
        convert_checkpoint('gone.pth', tmp_path / 'b', to='mit')


def test_inspection(tmp_path, monkeypatch):
    def build(*_, **__):
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
    convert_checkpoint(tmp_path / 'b.pth', tmp_path / 'c')
    endless = [3]
    endless[0] = endless
    torch.save({'x': 3, '\x1b[2J\n': endless}, tmp_path / 'd.pth')
    torch.save({key.replace('.c.', '.'): value for key, value in state.items()
                if '.bn.' not in key}, tmp_path / 'e.pth')
    torch.save({'conv1.weight': torch.zeros(1)}, tmp_path / 'f.pth')
    monkeypatch.setattr(EfficientViT, '__init__', build)
    for name, lines in {
        'a.pth': [r'file +\S+a\.pth \(torch\.save, [\d.]+ MB\)',
                  r'weights in +model_ema, keys start with module\.', r'layout +Microsoft$',
                  r'arch +m1 \(widths 128, 144, 192\)', r'windows +7, 7, 4$',
                  rf'tensors +615 \({615 - whole} float32, {whole} int64\), {numbers:.2f} M '
                  r'numbers, [\d.]+ MB',
                  r'classifier +yes', r'extra: model +615 entries',
                  r'extra: optimizer +2 entries: groups, state', r'extra: epoch +int, 299'],
        'b.pth': [r'layout +Microsoft, under backbone\.\*', r'other parts +neck\.\* \(2\)',
                  r'extra: meta +0 entries'],
        'c.safetensors': [r'file +\S+c\.safetensors \(safetensors,',
                          r'layout +evit-mm, under backbone\.\*', r'arch +m1 ',
                          r'extra: meta +4 entries: arch, format, layout, window_sizes'],
        'd.pth': [r'weights +none', r'extra: x +int, 3', r'extra: \?\[2J\? +list, \['],
        'e.pth': [r'layout +Microsoft, fused: BN is folded', r'arch +m1'],
        'f.pth': [r'layout +unknown'],
    }.items():
        output = inspect_checkpoint(tmp_path / name)
        for line in lines:
            assert re.search(f'^{line}', output, re.M), (name, line, output)


def test_hostile_files_need_trust(hostile_pickle, m0, tmp_path, capsys):
    path = tmp_path / 'a.pth'
    torch.save({'model': m0, 'args': hostile_pickle}, path)
    for arguments in ((path, tmp_path / 'b'), (path, '--inspect')):
        with pytest.raises(CheckpointError, match='a.pth is refused.*`evit-mm convert .*--trust`'):
            run_command(*arguments)
    assert not hostile_pickle.was_run
    run_command(path, tmp_path / 'b', '--trust')
    assert 'warning: --trust runs any code' in capsys.readouterr().err
    assert hostile_pickle.was_run  # as requested
    hostile_pickle.marker.unlink()
    run_command(tmp_path / 'b.safetensors', '--inspect')
    EfficientViT('m0', init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'b.safetensors'))).init_weights()


def test_command(m0_file, capsys):
    target = m0_file.with_name('b.pth')
    run_command(m0_file, target, '--to', 'timm')
    assert capsys.readouterr().out == \
        f'{target}: m0, 693 tensors in the timm layout (from the Microsoft layout)\n'
    run_command(target, '--inspect')
    assert capsys.readouterr().out == inspect_checkpoint(target) + '\n'
    run_command(m0_file, target, '--overwrite')
    run_command('--list')
    assert capsys.readouterr().out.endswith(markdown_table() + '\n')
    for arguments, message in (((), 'SRC is missing'), ((m0_file,), 'DST is missing')):
        with pytest.raises(UserError, match=message):
            run_command(*arguments)


def test_tool_in_its_own_process(repository, m0_file):
    script = repository / 'tools' / 'convert_weights.py'
    result = subprocess.run([sys.executable, script, 'a.pth', 'b', '--to', 'timm'],
                            cwd=m0_file.parent, capture_output=True, text=True, timeout=300,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'b.safetensors: m0, 693 tensors in the timm layout ' \
                            '(from the Microsoft layout)\n'
    header = m0_file.with_name('b.safetensors').read_bytes()
    names = json.loads(header[8:8 + int.from_bytes(header[:8], 'little')])
    assert 'stages.1.downsample.patchmerge.se.fc1.weight' in names


def test_custom_variants(tmp_path):
    tiny = dict(embed_dims=(16, 24, 32), depths=(1, 1, 1), num_heads=(2, 2, 2))
    state = EfficientViT(tiny).state_dict()
    torch.save(state, tmp_path / 'a.pth')
    converted = convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b')
    assert 'a custom variant' in str(converted)
    assert_equal(converted.state, state)
    assert_equal(load_file(converted.path), state)
    with pytest.raises(CheckpointError, match='contains no EfficientViT'):
        convert_state({'stem.0.conv.weight': torch.zeros(1)}, NATIVE)
