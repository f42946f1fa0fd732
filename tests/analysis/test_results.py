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


def test_a_run_that_found_nothing_blocks_no_other(tmp_path):
    path = tmp_path / 'x.json'
    Results(path, {**SETTINGS, 'threads': 40})  # and the analysis fails
    results = Results(path, SETTINGS)
    results.add_partial('m0', {'images': 4})
    with pytest.raises(UserError, match='threads: 2 there, 40 here'):
        Results(path, {**SETTINGS, 'threads': 40})


def test_an_unfinished_finding_is_kept_until_it_is_finished(tmp_path):
    path = tmp_path / 'x.json'
    Results(path, SETTINGS).add_partial('m0', {'images': 4, 'sums': (0.1, 2)})
    second = Results(path, SETTINGS)
    assert 'm0' not in second and second.kept == 0
    assert second.partial('m0') == {'images': 4, 'sums': [0.1, 2]}
    second.add('m0', 1)
    assert second.partial('m0') is None and 'partial' not in json.loads(path.read_text())


def test_findings_of_a_changed_file_are_refused(tmp_path, capsys):
    path, weights = tmp_path / 'x.json', tmp_path / 'weights.pth'
    weights.write_bytes(b'one')
    settings = {'nested': [{'checkpoint': weights}]}
    Results(path, settings).add('m0', 1)
    assert Results(path, settings)['m0'] == 1
    weights.write_bytes(b'two')  # of the same size
    with pytest.raises(UserError, match=r'weights.pth is not what it was.*--overwrite'):
        Results(path, settings)
    weights.unlink()  # no reason to doubt what was found
    assert Results(path, settings)['m0'] == 1


def test_findings_of_changed_data_are_refused(tmp_path):
    """Other settings, which may choose other data, are told first; old files name no data."""
    path = tmp_path / 'x.json'
    Results(path, SETTINGS).add_partial('m0', 1)
    assert Results(path, SETTINGS, data={'the folder': 'one'}).partial('m0') == 1
    Results(path, SETTINGS, data={'the folder': 'one'}).add('m1', 2)
    with pytest.raises(UserError, match=r'the folder is not what it was when .*--overwrite'):
        Results(path, SETTINGS, data={'the folder': 'two'})
    with pytest.raises(UserError, match='threads: 2 there, 4 here'):
        Results(path, {**SETTINGS, 'threads': 4}, data={'the folder': 'two'})
    assert list(Results(path, SETTINGS, data={'the folder': 'one'})) == ['m1']


def test_findings_of_a_changed_config_are_measured_again(tmp_path, capsys):
    """Also where its base file changed, or the weights that it names."""
    path, config, base = (tmp_path / name for name in ('x.json', 'own.py', 'base.py'))
    weights = tmp_path / 'own.pth'
    weights.write_bytes(b'one')
    base.write_text('width = 1\n')
    config.write_text(f"_base_ = './base.py'\nload_from = {str(weights)!r}\n")
    form = f'{config}:deploy'

    def kept():
        results = Results(path, SETTINGS)
        found = list(results)
        for name in ('m0', str(config), form):
            results.add(name, 1)
        return found

    assert kept() == []
    assert kept() == ['m0', str(config), form]
    capsys.readouterr()
    for change in (lambda: base.write_text('width = 2\n'), lambda: weights.write_bytes(b'two')):
        change()
        assert kept() == ['m0']
        assert f'{form} is not what it was' in capsys.readouterr().out
        assert kept() == ['m0', str(config), form]
    base.write_text('# The same values.\nwidth = 2\n')
    assert kept() == ['m0', str(config), form]


def test_a_config_that_changes_during_the_work_does_not_pass_for_the_new_one(tmp_path):
    path, config = tmp_path / 'x.json', tmp_path / 'own.py'
    config.write_text('width = 1\n')
    results = Results(path, SETTINGS, wanted=[str(config)])
    config.write_text('width = 2\n')
    results.add(str(config), 1)
    assert not Results(path, SETTINGS, wanted=[str(config)])


def test_reused_findings_are_told(tmp_path, capsys):
    path = tmp_path / 'x.json'
    results = Results(path, SETTINGS, wanted=['m0', 'm1'])
    results.add('m0', 1)
    results.add('m5', 1)
    assert capsys.readouterr().out == ''
    Results(path, SETTINGS, wanted=['m0', 'm1'])
    assert capsys.readouterr().out == (f'1 of 2 results is from an earlier run of {path}; '
                                       '--overwrite measures it again\n')
    Results(path, SETTINGS)
    assert capsys.readouterr().out == (f'2 results are from an earlier run of {path}; '
                                       '--overwrite measures them again\n')
    Results(path, SETTINGS, wanted=['m0'])
    assert capsys.readouterr().out.startswith('1 of 1 result is from an earlier run')
    Results(path, SETTINGS, wanted=['m1'])
    Results(path, SETTINGS, overwrite=True)
    assert capsys.readouterr().out == ''


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
