"""Results survive interruptions, and are not mixed with those of other settings."""

import json

import pytest

from evit_mm.analysis.results import Results
from evit_mm.errors import UserError

SETTINGS = {'shape': (512, 512), 'models': ['m0'], 'threads': 2}


def test_second_run_continues(tmp_path):
    path = tmp_path / 'new' / 'runtime.json'
    first = Results(path, SETTINGS)
    assert first.num_reused == 0 and 'm0' not in first
    first.add('m0', {'share': 0.25, 'shape': (7, 7), 'unknown': float('nan')})
    second = Results(path, SETTINGS)
    assert second.num_reused == 1 and list(second) == ['m0']
    assert second['m0'] == {'share': 0.25, 'shape': [7, 7], 'unknown': None}
    second.add('m1', 1)
    assert json.loads(path.read_text()) == {
        'settings': {'shape': [512, 512], 'models': ['m0'], 'threads': 2},
        'items': {'m0': second['m0'], 'm1': 1}}
    assert [file.name for file in path.parent.iterdir()] == ['runtime.json']  # nothing unfinished


def test_every_result_is_written_immediately(tmp_path):
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
    with pytest.raises(UserError, match='threads: 2 in the file, 4 in this run.*--overwrite'):
        Results(path, {**SETTINGS, 'threads': 4})
    with pytest.raises(UserError, match=r'batch: \(missing\) in the file, 1 in this run'):
        Results(path, {**SETTINGS, 'batch': 1})
    assert Results(path, SETTINGS)['m0'] == 1  # a refusal loses nothing
    assert len(Results(path, {**SETTINGS, 'threads': 4}, overwrite=True)) == 0
    assert Results(path, {**SETTINGS, 'threads': 4}).num_reused == 0


def test_run_without_results_does_not_block_another(tmp_path):
    path = tmp_path / 'x.json'
    Results(path, {**SETTINGS, 'threads': 40})  # and the analysis fails
    results = Results(path, SETTINGS)
    results.add_partial('m0', {'images': 4})
    with pytest.raises(UserError, match='threads: 2 in the file, 40 in this run'):
        Results(path, {**SETTINGS, 'threads': 40})


def test_partial_result_is_kept_until_it_is_finished(tmp_path):
    path = tmp_path / 'x.json'
    Results(path, SETTINGS).add_partial('m0', {'images': 4, 'sums': (0.1, 2)})
    second = Results(path, SETTINGS)
    assert 'm0' not in second and second.num_reused == 0
    assert second.partial('m0') == {'images': 4, 'sums': [0.1, 2]}
    second.add('m0', 1)
    assert second.partial('m0') is None and 'partial' not in json.loads(path.read_text())


def test_results_of_a_changed_file_are_refused(tmp_path):
    path, weights = tmp_path / 'x.json', tmp_path / 'weights.pth'
    weights.write_bytes(b'one')
    settings = {'nested': [{'checkpoint': weights}]}
    Results(path, settings).add('m0', 1)
    assert Results(path, settings)['m0'] == 1
    weights.write_bytes(b'two')  # of the same size
    with pytest.raises(UserError, match=r'weights.pth has changed since .*--overwrite'):
        Results(path, settings)
    weights.unlink()  # a missing file is ignored
    assert Results(path, settings)['m0'] == 1


def test_results_of_changed_data_are_refused(tmp_path):
    """Other settings, which may select other data, are reported first; old files have no data."""
    path = tmp_path / 'x.json'
    Results(path, SETTINGS).add_partial('m0', 1)
    assert Results(path, SETTINGS, data={'the folder': 'one'}).partial('m0') == 1
    Results(path, SETTINGS, data={'the folder': 'one'}).add('m1', 2)
    with pytest.raises(UserError, match=r'the folder has changed since .*--overwrite'):
        Results(path, SETTINGS, data={'the folder': 'two'})
    with pytest.raises(UserError, match='threads: 2 in the file, 4 in this run'):
        Results(path, {**SETTINGS, 'threads': 4}, data={'the folder': 'two'})
    assert list(Results(path, SETTINGS, data={'the folder': 'one'})) == ['m1']


def test_results_of_a_changed_config_are_measured_again(tmp_path, capsys):
    """Including changes of its base file, and of the weights that it names."""
    path, config, base = (tmp_path / name for name in ('x.json', 'own.py', 'base.py'))
    weights = tmp_path / 'own.pth'
    weights.write_bytes(b'one')
    base.write_text('width = 1\n')
    config.write_text(f"_base_ = './base.py'\nload_from = {str(weights)!r}\n")
    form = f'{config}:deploy'

    def reused():
        results = Results(path, SETTINGS)
        names = list(results)
        for name in ('m0', str(config), form):
            results.add(name, 1)
        return names

    assert reused() == []
    assert reused() == ['m0', str(config), form]
    capsys.readouterr()
    for change in (lambda: base.write_text('width = 2\n'), lambda: weights.write_bytes(b'two')):
        change()
        assert reused() == ['m0']
        assert f'{form} has changed since {path} was written' in capsys.readouterr().out
        assert reused() == ['m0', str(config), form]
    base.write_text('# The same values.\nwidth = 2\n')
    assert reused() == ['m0', str(config), form]


def test_config_that_changes_during_the_run_is_measured_again(tmp_path):
    path, config = tmp_path / 'x.json', tmp_path / 'own.py'
    config.write_text('width = 1\n')
    results = Results(path, SETTINGS, names=[str(config)])
    config.write_text('width = 2\n')
    results.add(str(config), 1)
    assert not Results(path, SETTINGS, names=[str(config)])


def test_reused_results_are_reported(tmp_path, capsys):
    path = tmp_path / 'x.json'
    results = Results(path, SETTINGS, names=['m0', 'm1'])
    results.add('m0', 1)
    results.add('m5', 1)
    assert capsys.readouterr().out == ''
    Results(path, SETTINGS, names=['m0', 'm1'])
    assert capsys.readouterr().out == (f'reusing 1 of 2 results of an earlier run in {path}; '
                                       'pass --overwrite to measure again\n')
    Results(path, SETTINGS)
    assert capsys.readouterr().out == (f'reusing 2 of 2 results of an earlier run in {path}; '
                                       'pass --overwrite to measure again\n')
    Results(path, SETTINGS, names=['m0'])
    assert capsys.readouterr().out.startswith('reusing 1 of 1 results')
    Results(path, SETTINGS, names=['m1'])
    Results(path, SETTINGS, overwrite=True)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('text', ['', '{}', '[]', '{"settings": 1, "items": {}}'])
def test_other_files_are_not_overwritten(tmp_path, text):
    path = tmp_path / 'x.json'
    path.write_text(text)
    with pytest.raises(UserError, match='is not a results file'):
        Results(path, SETTINGS)
    assert path.read_text() == text


def test_folder_that_cannot_be_written_is_reported_first(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r"can't write .*file/x\.json"):
        Results(tmp_path / 'file' / 'x.json', SETTINGS)
