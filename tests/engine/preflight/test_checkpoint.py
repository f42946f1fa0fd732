"""A checkpoint of another model is refused before it is loaded."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from evit_mm.engine import preflight
from evit_mm.engine.preflight import checkpoint
from evit_mm.errors import CheckpointError


@pytest.fixture
def model(config):
    init_default_scope('mmdet')
    return MODELS.build(config.model)


def save(path, state, **more):
    torch.save(dict(state_dict=state, **more), path)
    return str(path)


def test_checkpoints_of_this_model(model, config, tmp_path):
    whole = save(tmp_path / 'a.pth', model.state_dict(), meta={}, message_hub={}, optimizer={})
    for purpose in ('test', 'resume', 'finetune'):
        preflight.check_checkpoint(model, whole, purpose=purpose)
    weights = save(tmp_path / 'b.pth', model.state_dict())
    with pytest.raises(CheckpointError, match='resumed from.*weights only.*load_from'):
        preflight.check_checkpoint(model, weights, purpose='resume')
    config.model.backbone.window_sizes = 8
    other = MODELS.build(config.model)
    preflight.check_checkpoint(other, whole, purpose='test')  # bias tables are resized
    with pytest.raises(CheckpointError, match='window_sizes.*49 -> 64'):
        preflight.check_checkpoint(other, whole, purpose='resume')


def test_checkpoints_of_other_models(model, config, tmp_path):
    config.model.backbone.arch = 'm1'
    config.model.neck.in_channels = [128, 144, 192]
    other = save(tmp_path / 'm1.pth', MODELS.build(config.model).state_dict())
    for purpose in ('test', 'finetune'):
        with pytest.raises(CheckpointError, match='m1.pth is not.*looks like m1.*config.s is m0'):
            preflight.check_checkpoint(model, other, purpose=purpose)
    stranger = save(tmp_path / 'r.pth', {'backbone.conv1.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match='another model'):
        preflight.check_checkpoint(model, stranger, purpose='test')


def test_fine_tuning_accepts_another_head(model, config, tmp_path, monkeypatch):
    config.model.bbox_head.num_classes = 7
    other = save(tmp_path / 'a.pth', MODELS.build(config.model).state_dict())
    messages = []
    monkeypatch.setattr(checkpoint, 'print_log', lambda text, **_: messages.append(text))
    preflight.check_checkpoint(model, other, purpose='finetune')
    assert 'of another shape (bbox_head.retina_cls.weight' in messages[-1]
    with pytest.raises(CheckpointError, match='2 tensors of another shape.*number of classes'):
        preflight.check_checkpoint(model, other, purpose='test')
    state = model.state_dict()
    state['bbox_head.retina_cls.weight'] = state['bbox_head.retina_cls.weight'][:, :8]
    with pytest.raises(CheckpointError, match=r'1 tensors of another shape \([^;]*$'):
        preflight.check_checkpoint(model, save(tmp_path / 'b.pth', state), purpose='test')
