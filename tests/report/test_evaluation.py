"""Tables of an evaluation as CSV and JSON."""

import csv
import json

import pytest

from evit_mm.errors import UserError
from evit_mm.report.evaluation import Evaluation


def test_tables(tmp_path):
    evaluation = Evaluation(['cat', 'dog, small'], {'objects': [3, 0],
                                                    'AP': [0.25, float('nan')]})
    evaluation.write(tmp_path / 'metrics' / 'epoch_1.5', {'mAP': 0.25, 'text': 'x'})
    with (tmp_path / 'metrics' / 'epoch_1.5.csv').open(newline='') as file:
        assert list(csv.DictReader(file)) == [
            {'class': 'cat', 'objects': '3', 'AP': '0.25'},
            {'class': 'dog, small', 'objects': '0', 'AP': ''}]
    assert json.loads((tmp_path / 'metrics' / 'epoch_1.5.json').read_text()) == {
        'metrics': {'mAP': 0.25},
        'classes': [{'class': 'cat', 'objects': 3, 'AP': 0.25},
                    {'class': 'dog, small', 'objects': 0, 'AP': None}]}


def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / 'metrics').write_text('')
    with pytest.raises((UserError, OSError)):
        Evaluation(['cat'], {}).write(tmp_path / 'metrics' / 'epoch_1', {})
