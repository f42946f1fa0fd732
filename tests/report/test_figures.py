"""The scalars of several runs are joined, and figures show what they should."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from evit_mm.benchmark import figures as style
from evit_mm.report.evaluation import Evaluation
from evit_mm.report.figures import draw_confusion, draw_curves, draw_precision, read_log


def write_run(work_dir, name, entries, end=''):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(
        ''.join(json.dumps(entry) + '\n' for entry in entries) + end)


def step(number, loss, epoch=None):
    entry = dict(lr=0.1 / number, loss=loss, loss_cls=loss / 2, time=0.1, step=number)
    return entry if epoch is None else dict(entry, epoch=epoch, iter=number)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, kept instead of thrown away."""
    kept = []
    original = style.drawing

    @contextmanager
    def drawing(path, **options):
        with original(path, **options) as figure:
            yield figure
        kept.append(figure)

    monkeypatch.setattr(style, 'drawing', drawing)
    return kept


def test_a_resumed_run_replaces_what_it_computes_again(tmp_path):
    write_run(tmp_path, '20260101_000000', [
        step(1, 9, 1), step(2, 8, 1), dict(mAP=0.1, step=1), step(3, 7, 2), step(4, 6, 2),
        dict(mAP=0.2, step=2)])
    # From the checkpoint of the first epoch; it was killed while it wrote its last line.
    write_run(tmp_path, '20260102_000000', [step(3, 5, 2), step(4, 4, 2), dict(mAP=0.3, step=2)],
              end='{"loss": 1')
    (tmp_path / '20260103_000000' / 'vis_data').mkdir(parents=True)  # of a test
    log = read_log(tmp_path)
    assert log.train['loss'] == [(1, 9), (2, 8), (3, 5), (4, 4)]
    assert log.val == {'mAP': [(1, 0.1), (2, 0.3)]}
    assert set(log.train) == {'loss', 'loss_cls', 'lr'}


def test_a_new_run_replaces_all_of_an_earlier_one(tmp_path):
    write_run(tmp_path, '1', [step(10, 9), step(20, 8), dict(mIoU=1, step=20)])
    write_run(tmp_path, '2', [step(10, 7)])
    log = read_log(tmp_path)
    assert log.train['loss'] == [(10, 7)] and not log.val['mIoU']


def test_curves(tmp_path, drawn):
    write_run(tmp_path, '1', [step(2, 4.0, 1), step(4, 2.0, 1), dict(mAP=-1, mAP_50=0.5, step=1),
                              step(8, 1.0, 2), dict(mAP=-1, mAP_50=0.75, step=2)])
    assert draw_curves(read_log(tmp_path), tmp_path / 'curves.png', iterations_per_epoch=4)
    losses, rates, metrics = drawn[0].axes
    lines = {line.get_label(): line for line in losses.lines}
    assert set(lines) == {'loss', 'loss_cls'}
    assert lines['loss'].get_xydata().tolist() == [[0.5, 4], [1, 2], [2, 1]]  # in epochs
    assert rates.lines[0].get_xydata()[:, 1].tolist() == [0.05, 0.025, 0.0125]
    # A metric that is not defined is left out.
    assert [line.get_label() for line in metrics.lines] == ['mAP_50']
    assert metrics.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    assert metrics.get_xlabel() == 'epoch'
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_no_curves_of_nothing(tmp_path):
    assert not draw_curves(read_log(tmp_path), tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()


def test_precision_and_recall(tmp_path, drawn):
    precision = np.stack([np.ones(101), np.linspace(1, 0, 101), -np.ones(101)], 1)
    evaluation = Evaluation(['cat', 'dog $1$', 'none'], {}, precision={'bbox': precision})
    draw_precision(evaluation, 'bbox', tmp_path / 'curve.png')
    axes, = drawn[0].axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ['cat 1.000', r'dog \$1\$ 0.500', 'mean of 2 classes 0.750']
    assert axes.lines[1].get_xydata()[50].tolist() == [0.5, 0.5]


@pytest.mark.parametrize('background', [False, True])
def test_confusion_is_in_percent_of_the_true_class(background, tmp_path, drawn):
    counts = np.array([[3, 1, 0], [0, 5, 5], [0, 0, 0]])
    evaluation = Evaluation(['cat', 'dog'] if background else ['cat', 'dog', 'cow'], {},
                            confusion=counts, confusion_title='pixels')
    draw_confusion(evaluation, tmp_path / 'confusion.png')
    axes = drawn[0].axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), '75'), ((1, 0), '25'), ((1, 1), '50'), ((2, 1), '50')}
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ['cat', 'dog', '(missed)' if background else 'cow']


@pytest.mark.parametrize('count', [20, 21, 150, 400])
def test_names_are_beside_their_rows_and_columns(count, tmp_path, drawn):
    names = [f'class {k}' for k in range(count)]
    draw_confusion(Evaluation(names, {}, confusion=np.eye(count + 1)), tmp_path / 'confusion.png')
    axes = drawn[0].axes[0]
    for axis, last in ((axes.xaxis, '(missed)'), (axes.yaxis, '(background)')):
        labels = {int(place): label.get_text() for place, label in
                  zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)}
        assert all(name == [*names, last][place] for place, name in labels.items())
        assert len(labels) == count + 1 if count < 160 else len(labels) > 100


def test_many_classes(tmp_path):
    names = [f'class {k}' for k in range(90)]
    evaluation = Evaluation(names, {}, confusion=np.eye(91),
                            precision={'bbox': np.full((101, 90), 0.5)})
    draw_confusion(evaluation, tmp_path / 'confusion.png')
    draw_precision(evaluation, 'bbox', tmp_path / 'curve.png')
    assert len(list(tmp_path.glob('*.png'))) == 2
