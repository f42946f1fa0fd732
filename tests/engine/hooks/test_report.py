"""A run leaves tables and figures in its work dir."""

import csv
import json
from types import SimpleNamespace

import numpy as np

from evit_mm.engine.hooks import ReportHook, report
from evit_mm.report.evaluation import Evaluation

CLASSES = ['circle', 'square', 'triangle', 'star']


def test_a_training_writes_tables_and_figures(trained):
    assert (trained.work_dir / 'curves.png').is_file()
    names = {path.name for path in (trained.work_dir / 'metrics').iterdir()}
    assert names == {'epoch_2.csv', 'epoch_2.json', 'epoch_2_bbox_precision_recall.png',
                     'epoch_2_confusion.png'}
    with (trained.work_dir / 'metrics' / 'epoch_2.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['class'] for row in rows] == CLASSES
    content = json.loads((trained.work_dir / 'metrics' / 'epoch_2.json').read_text())
    assert f'coco/bbox_mAP: {content["metrics"]["coco/bbox_mAP"]:.4f}' in trained.printed
    assert [row['bbox_AP'] for row in content['classes']] == [
        float(row['bbox_AP']) if row['bbox_AP'] else None for row in rows]
    assert '| class    | objects |' in trained.printed


def evaluated(work_dir, evaluations, **attributes):
    metrics = [SimpleNamespace(evaluation=one) for one in evaluations]
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=[*metrics, object()]))
    return SimpleNamespace(work_dir=str(work_dir), val_loop=loop, test_loop=loop, _train_loop=None,
                           iter=400, **attributes)


def test_a_test_is_named_by_its_checkpoint(tmp_path):
    evaluation = Evaluation(['cat'], {'IoU': [50.0]}, confusion=np.array([[1]]))
    for source in ('run/epoch_3.pth', 'evit://retinanet', None):
        ReportHook().after_test_epoch(evaluated(tmp_path, [evaluation, evaluation],
                                                _load_from=source), {'mIoU': 50.0})
    names = {path.name for path in (tmp_path / 'metrics').iterdir()}
    for stem in ('test_epoch_3', 'test_retinanet', 'test_model'):
        assert {f'{stem}.csv', f'{stem}_2.json', f'{stem}_confusion.png'} <= names


def test_a_full_disk_does_not_end_a_training(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(report, 'print_log', lambda text, **_: messages.append(text))
    (tmp_path / 'metrics').write_text('')  # no folder can be made here
    ReportHook().after_val_epoch(evaluated(tmp_path, [Evaluation(['cat'], {})]), {})
    assert len(messages) == 1 and str(tmp_path / 'metrics') in messages[0]


def test_without_matplotlib(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(report, 'print_log', lambda text, **_: messages.append(text))
    monkeypatch.setattr(report.importlib.util, 'find_spec', lambda name: None)
    evaluation = Evaluation(['cat'], {}, confusion=np.array([[1]]))
    ReportHook().after_test_epoch(evaluated(tmp_path, [evaluation], _load_from='a.pth'))
    assert messages == ['no figures, as matplotlib is not installed: pip install matplotlib']
    assert {path.name for path in (tmp_path / 'metrics').iterdir()} == {'test_a.csv', 'test_a.json'}
