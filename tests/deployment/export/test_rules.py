"""What test pipelines do with images, as exported files say it."""

import pytest
from mmdet.datasets.transforms import Pad, Resize
from small_models import small_config, small_model

from evit_mm.deployment.export.rules import preprocessing_of
from evit_mm.deployment.export.run import fixed_predictor
from evit_mm.deployment.export.verify import drawn_image
from evit_mm.errors import ConfigError

SQUARE = [dict(type='Resize', scale=(96, 96), keep_ratio=True),
          dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114, 114, 114)))]


@pytest.mark.parametrize('size', [(100, 37), (37, 100), (64, 64), (95, 97)])
def test_padding_to_a_square_is_that_of_the_scale(size):
    """YOLOX's test pipeline."""
    rule = preprocessing_of(SQUARE)
    assert (rule.pad_size, rule.pad_value) == ((96, 96), (114, 114, 114))
    results = dict(img=drawn_image(size))
    for step, kind in zip(SQUARE, (Resize, Pad), strict=True):
        results = kind(**{key: value for key, value in step.items() if key != 'type'})(results)
    assert results['img'].shape[:2] == rule.pad_size


@pytest.mark.parametrize('resize', [
    None, dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=False)])
def test_a_square_of_an_unknown_size_is_refused(resize):
    steps = [SQUARE[1]] if resize is None else [resize, SQUARE[1]]
    with pytest.raises(ConfigError, match='pad_to_square=True'):
        preprocessing_of(steps)


def test_a_model_of_a_fixed_size_pads_to_it():
    config = small_config('yolox')
    config.test_dataloader.dataset.pipeline[1:2] = [dict(step) for step in SQUARE]
    config.test_pipeline = config.test_dataloader.dataset.pipeline
    model = fixed_predictor(small_model('yolox', config), (64, 128))
    _, pad = model.module.cfg.test_pipeline[1:3]
    assert pad['pad_to_square']  # the model's own
    result, = model([drawn_image((50, 70))])
    assert result.shape == (50, 70)
