"""State dicts are found in every container, by us and by mmengine."""

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

from evit_mm.checkpoint import strip_containers
from evit_mm.checkpoint.containers import as_mmengine_expects, find_weights
from evit_mm.errors import CheckpointError

STATE = {'conv.weight': torch.ones(2), 'conv.bias': torch.zeros(1)}
OTHER = {key: value + 5 for key, value in STATE.items()}


def with_prefix(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def assert_mmengine_loads(checkpoint, path):
    """Load a checkpoint into a model through a file and mmengine; every tensor must arrive."""
    model = torch.nn.Sequential()
    model.conv = torch.nn.Module()
    model.conv.weight = torch.nn.Parameter(torch.full((2,), -1.0))
    model.conv.bias = torch.nn.Parameter(torch.full((1,), -1.0))
    torch.save(checkpoint, path)
    load_checkpoint(model, str(path), strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in STATE.items())


@pytest.mark.parametrize('checkpoint,place', [
    (STATE, ()),
    ({'model': STATE, 'optimizer': {}}, ('model',)),
    ({'state_dict': STATE, 'meta': {}}, ('state_dict',)),
    ({'model': {'state_dict': STATE}}, ('model', 'state_dict')),
    (with_prefix('module.'), ()),
    (with_prefix('module._orig_mod.'), ()),
    ({'conv._orig_mod.weight': STATE['conv.weight'], 'conv._orig_mod.bias': STATE['conv.bias']},
     ()),
    ({'model': OTHER, 'model_ema': STATE}, ('model_ema',)),  # Microsoft's training program
    # timm's training program
    ({'state_dict': OTHER, 'state_dict_ema': with_prefix('module.')}, ('state_dict_ema',)),
    ({'model': OTHER, 'ema': {'module': STATE, 'updates': 7}}, ('ema', 'module')),
    ({'model': STATE, 'model_ema': None}, ('model',)),
    ({'model': STATE, 'model_ema': {}}, ('model',)),
    # mmengine saves the average as 'state_dict' and keeps the plain weights under this name.
    ({'state_dict': STATE,
      'ema_state_dict': {'steps': torch.zeros(()), **with_prefix('module.', OTHER)}},
     ('state_dict',)),
    ({'n_averaged': torch.zeros(()), **with_prefix('module.')}, ()),
])
def test_find_weights(checkpoint, place, tmp_path):
    weights = find_weights(checkpoint)
    assert weights.place == place
    assert weights.state.keys() == STATE.keys()
    assert all(weights.state[key] is value for key, value in STATE.items())
    assert_mmengine_loads(checkpoint, tmp_path / 'a.pth')


@pytest.mark.parametrize('checkpoint', [None, 3, [], {}, {'model': {}}, {'epoch': 3}, 'text',
                                        {'state_dict': {}}])
def test_no_weights(checkpoint):
    assert find_weights(checkpoint) is None
    assert as_mmengine_expects(checkpoint) is checkpoint
    with pytest.raises(CheckpointError, match='a.pth holds no weights'):
        strip_containers(checkpoint, 'a.pth')


@pytest.mark.parametrize('place', [(), ('state_dict',), ('model',)])
def test_numpy_arrays_are_converted_to_tensors(place, tmp_path):
    checkpoint = {key: value.numpy() for key, value in STATE.items()}
    for container in place:
        checkpoint = {container: checkpoint}
    assert_mmengine_loads({**checkpoint, 'best': np.float64(0.5)}, tmp_path / 'a.pth')


def test_container_that_contains_itself():
    endless = {}
    endless['state_dict'] = endless['model'] = endless
    assert find_weights(endless) is None


def test_other_entries_do_not_change():
    inner = {'state_dict': with_prefix('model.')}  # mmpretrain's TIMMClassifier has such names
    assert as_mmengine_expects(inner) is inner
    training = {'state_dict': STATE, 'optimizer': {'lr': 0.1}, 'meta': {'epoch': 3}}
    assert as_mmengine_expects(training) is training
    moved = as_mmengine_expects({'model': STATE, 'epoch': 3})
    assert moved['epoch'] == 3 and moved['state_dict'].keys() == STATE.keys()


def test_use_of_averaged_weights_is_logged(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr('mmengine.logging.print_log',
                        lambda text, **_: logged.append(text))
    torch.save({'model': OTHER, 'model_ema': STATE}, tmp_path / 'a.pth')
    CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), logger='silent')
    assert logged == [f"{tmp_path / 'a.pth'}: using the averaged weights under 'model_ema'"]
