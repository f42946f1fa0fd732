"""Pages of what the augmentations feed the model."""

import json
import shutil

import cv2
import numpy as np
import pytest

from evit_mm.cli.main import run_tool
from evit_mm.engine.browse import browse
from evit_mm.errors import UserError

OPTIONS = {'train_dataloader.dataset.pipeline.2.scale': (96, 96)}


def test_boxes(config_file, shapes, tmp_path):
    pages = browse(config_file, out=tmp_path / 'pages', count=3, data_root=shapes,
                   cfg_options=OPTIONS)
    assert [page.name for page in pages] == ['train_1.png']
    page = cv2.imread(str(pages[0]))
    assert page.shape[1] == 3 * 428 + 8
    again, = browse(config_file, out=tmp_path / 'again', count=3, data_root=shapes,
                    cfg_options=OPTIONS)
    assert again.read_bytes() == pages[0].read_bytes()
    other, = browse(config_file, out=tmp_path / 'other', count=3, data_root=shapes, seed=1,
                    cfg_options=OPTIONS)
    assert other.read_bytes() != pages[0].read_bytes()


def test_augmentations_are_applied(config_file, shapes, tmp_path):
    """Every image is flipped, with its boxes: as far right as they were left before."""
    pages = [browse(config_file, out=tmp_path / str(prob), count=1, data_root=shapes,
                    cfg_options={**OPTIONS, 'train_dataloader.dataset.pipeline.3.prob': prob})[0]
             for prob in (0.0, 1.0)]
    plain, flipped = (cv2.imread(str(page))[36:, 8:428].astype(int) for page in pages)
    rows = slice(0, 250)
    assert np.abs(plain[rows] - flipped[rows]).mean() > 10
    assert np.abs(plain[rows] - flipped[rows, ::-1]).mean() < \
        0.6 * np.abs(plain[rows] - flipped[rows]).mean()


def test_label_maps_by_the_command(segmentor_file, ade, tmp_path, capsys):
    out = tmp_path / 'pages'
    assert run_tool('data', ['browse', str(segmentor_file), '--data-root', str(ade), '--out',
                             str(out), '-n', '2']) == 0
    page = out / 'train_1.png'
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert cv2.imread(str(page)).shape[1] == 2 * 428 + 8


def test_repaired_annotations(config_file, shapes, tmp_path):
    """An annotation file that a training repairs can be looked at, too."""
    root = tmp_path / 'coco'
    shutil.copytree(shapes, root)
    path = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    for entry in content['annotations']:
        del entry['area'], entry['iscrowd']
    path.write_text(json.dumps(content))
    page, = browse(config_file, out=tmp_path / 'pages', count=1, data_root=root,
                   cfg_options=OPTIONS)
    assert page.is_file() and list((tmp_path / 'pages' / 'annotations').glob('*.json'))


@pytest.mark.parametrize('options,fragment', [
    (dict(count=0), '-n 0: the number of images must be at least 1'),
    (dict(data_root='nowhere'), 'no such folder: nowhere'),
    (dict(split='test', cfg_options={'test_dataloader': None}), 'has no test_dataloader')])
def test_mistakes(options, fragment, config_file, shapes, tmp_path):
    with pytest.raises(UserError, match=fragment):
        browse(config_file, **{'out': tmp_path, 'data_root': shapes, **options})
