"""Weights are found in what training programs put around them, and mmengine finds them too."""

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from evit_mm.checkpoint.containers import as_mmengine_expects, find_weights

STATE = {'conv.weight': torch.ones(2), 'conv.bias': torch.zeros(1)}
OTHER = {key: value + 5 for key, value in STATE.items()}


def under(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize('checkpoint,place', [
    (STATE, ()),
    ({'model': STATE, 'optimizer': {}}, ('model',)),
    ({'state_dict': STATE, 'meta': {}}, ('state_dict',)),
    ({'model': {'state_dict': STATE}}, ('model', 'state_dict')),
    (under('module.'), ()),
    (under('module._orig_mod.'), ()),
    ({'conv._orig_mod.weight': STATE['conv.weight'], 'conv._orig_mod.bias': STATE['conv.bias']},
     ()),
    ({'model': OTHER, 'model_ema': STATE}, ('model_ema',)),  # Microsoft's training program
    ({'state_dict': OTHER, 'state_dict_ema': under('module.')}, ('state_dict_ema',)),  # timm's
    ({'model': OTHER, 'ema': {'module': STATE, 'updates': 7}}, ('ema', 'module')),
    ({'model': STATE, 'model_ema': None}, ('model',)),
    ({'model': STATE, 'model_ema': {}}, ('model',)),
    # mmengine saves the average as 'state_dict' and keeps the plain weights under this name.
    ({'state_dict': STATE, 'ema_state_dict': {'steps': torch.zeros(()), **under('module.', OTHER)}},
     ('state_dict',)),
    ({'n_averaged': torch.zeros(()), **under('module.')}, ()),
])
def test_weights_are_found(checkpoint, place, tmp_path):
    found = find_weights(checkpoint)
    assert found.place == place
    assert found.state.keys() == STATE.keys()
    assert all(found.state[key] is value for key, value in STATE.items())

    # Through mmengine into a model: nothing is left out.
    model = torch.nn.Sequential()
    model.conv = torch.nn.Module()
    model.conv.weight = torch.nn.Parameter(torch.full((2,), -1.0))
    model.conv.bias = torch.nn.Parameter(torch.full((1,), -1.0))
    torch.save(checkpoint, tmp_path / 'a.pth')
    load_checkpoint(model, str(tmp_path / 'a.pth'), strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in STATE.items())


@pytest.mark.parametrize('checkpoint', [None, 3, [], {}, {'model': {}}, {'epoch': 3}, 'text'])
def test_there_may_be_none(checkpoint):
    assert find_weights(checkpoint) is None
    assert as_mmengine_expects(checkpoint) is checkpoint


@pytest.mark.parametrize('place', [(), ('state_dict',), ('model',)])
def test_arrays_count_as_tensors(place, tmp_path):
    checkpoint = {key: value.numpy() for key, value in STATE.items()}
    for container in place:
        checkpoint = {container: checkpoint}
    torch.save({**checkpoint, 'best': np.float64(0.5)}, tmp_path / 'a.pth')
    model = torch.nn.Sequential()
    model.conv = torch.nn.Module()
    model.conv.weight = torch.nn.Parameter(torch.full((2,), -1.0))
    model.conv.bias = torch.nn.Parameter(torch.full((1,), -1.0))
    load_checkpoint(model, str(tmp_path / 'a.pth'), strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in STATE.items())


def test_a_container_that_holds_itself():
    endless = {}
    endless['state_dict'] = endless['model'] = endless
    assert find_weights(endless) is None


def test_all_else_stays_as_it_was():
    inner = {'state_dict': under('model.')}  # mmpretrain's TIMMClassifier has such names
    assert as_mmengine_expects(inner) is inner
    training = {'state_dict': STATE, 'optimizer': {'lr': 0.1}, 'meta': {'epoch': 3}}
    assert as_mmengine_expects(training) is training
    moved = as_mmengine_expects({'model': STATE, 'epoch': 3})
    assert moved['epoch'] == 3 and moved['state_dict'].keys() == STATE.keys()


def test_an_average_is_told(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr('evit_mm.checkpoint.mmengine_loader.print_log',
                        lambda text, **_: said.append(text))
    torch.save({'model': OTHER, 'model_ema': STATE}, tmp_path / 'a.pth')
    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), logger='silent')
    assert len(said) == 1 and 'an average of its weights (model_ema)' in said[0]
