"""What an analysis found survives interruptions, and is not mixed with other settings."""

import json

import pytest

from evit_mm.analysis.results import Results
from evit_mm.errors import UserError

SETTINGS = {'shape': (512, 512), 'models': ['m0'], 'threads': 2}


def test_a_second_run_goes_on(tmp_path):
    path = tmp_path / 'new' / 'runtime.json'
    first = Results(path, SETTINGS)
    assert first.kept == 0 and 'm0' not in first
    first.add('m0', {'share': 0.25, 'shape': (7, 7), 'unknown': float('nan')})
    second = Results(path, SETTINGS)
    assert second.kept == 1 and list(second) == ['m0']
    assert second['m0'] == {'share': 0.25, 'shape': [7, 7], 'unknown': None}
    second.add('m1', 1)
    assert json.loads(path.read_text()) == {
        'settings': {'shape': [512, 512], 'models': ['m0'], 'threads': 2},
        'items': {'m0': second['m0'], 'm1': 1}}
    assert [file.name for file in path.parent.iterdir()] == ['runtime.json']  # nothing unfinished


def test_every_finding_is_written_at_once(tmp_path):
    path = tmp_path / 'x.json'
    results = Results(path, {})
    with pytest.raises(KeyboardInterrupt):
        for name in 'abc':
            if name == 'c':
                raise KeyboardInterrupt
            results.add(name, 0)
    assert list(Results(path, {})) == ['a', 'b']


def test_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / 'x.json'
    Results(path, SETTINGS).add('m0', 1)
    with pytest.raises(UserError, match=r'threads: 2 there, 4 here.*--overwrite.*--out'):
        Results(path, {**SETTINGS, 'threads': 4})
    with pytest.raises(UserError, match=r'batch: \(not there\) there, 1 here'):
        Results(path, {**SETTINGS, 'batch': 1})
    assert Results(path, SETTINGS)['m0'] == 1  # a refusal loses nothing
    assert len(Results(path, {**SETTINGS, 'threads': 4}, overwrite=True)) == 0
    assert Results(path, {**SETTINGS, 'threads': 4}).kept == 0


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"settings": 1, "items": {}}'])
def test_other_files_are_left_alone(tmp_path, text):
    path = tmp_path / 'x.json'
    path.write_text(text)
    with pytest.raises(UserError, match='holds no results'):
        Results(path, SETTINGS)
    assert path.read_text() == text


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r"can't write .*file/x\.json"):
        Results(tmp_path / 'file' / 'x.json', SETTINGS)
