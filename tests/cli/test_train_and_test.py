"""The flags of train and test reach the API as keywords."""

import argparse
import inspect
import os

import pytest

import evit_mm.engine
from evit_mm.cli import test as test_command
from evit_mm.cli import train as train_command
from evit_mm.cli.main import run_tool
from evit_mm.engine import launch


def call(command, *flags):
    """Run a command with flags, and return the arguments that the API gets."""
    calls = {}

    def record(api):
        signature = inspect.signature(api)
        return lambda *arguments, **options: calls.update(
            signature.bind(*arguments, **options).arguments)

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        for name in ('train', 'test'):
            patch.setattr(evit_mm.engine, name, record(getattr(evit_mm.engine, name)))
        command.run(parser.parse_args([*map(str, flags)]))
    return calls


def defaults(api):
    return {name: parameter.default for name, parameter in inspect.signature(api).parameters.items()
            if parameter.default is not parameter.empty}


def test_train():
    assert call(train_command, 'c') == {'config': 'c', **defaults(evit_mm.engine.train)}
    flags = ['c', '--work-dir', 'w', '--data-root', 'd', '--image-size', 320, '--resume', 'r',
             '--from-scratch', '--amp', '--bf16', '--channels-last', '--compile',
             '--auto-scale-lr', '--seed', 3,
             '--ignore-unknown-categories', '--skip-invalid-objects', '--new-schedule',
             '--show-val', '--tracker', 'mlflow', '--tracker', 'wandb',
             '--cfg-options', 'a.b=[1,2]', 'c=x']
    assert call(train_command, *flags) == defaults(evit_mm.engine.train) | dict(
        config='c', work_dir='w', data_root='d', image_size=320, resume='r', from_scratch=True,
        amp=True, bf16=True, channels_last=True, compile=True, auto_scale_lr=True, seed=3,
        show_val=True,
        tracker=('mlflow', 'wandb'), new_schedule=True, ignore_unknown_categories=True,
        skip_invalid_objects=True, cfg_options={'a.b': [1, 2], 'c': 'x'}, launcher='none')
    assert call(train_command, 'c', '--resume')['resume'] == 'auto'
    assert call(train_command, 'c', '--no-channels-last')['channels_last'] is False


def test_own_data_and_recipe():
    flags = {'--train-ann': 't.json', '--val-ann': 'v.json', '--images': 'i', '--val-images': 'vi',
             '--data': 'd.yaml', '--from': 'w.pth', '--epochs': 3, '--iters': 4, '--lr': 0.5,
             '--batch-size': 6, '--early-stopping': 7}
    names = {'--from': 'from_checkpoint'}
    expected = {names.get(flag, flag[2:].replace('-', '_')): value for flag, value in flags.items()}
    words = [word for pair in flags.items() for word in pair]
    found = call(train_command, 'c', '--ema', *words)
    assert {name: found[name] for name in expected} == expected and found['ema'] is True
    assert call(train_command, 'c', '--early-stopping')['early_stopping'] == 5
    flags = [word for pair in list(zip(words[::2], words[1::2], strict=True))[1:5] for word in pair]
    found = call(test_command, 'c', 'w', *flags)
    assert [found[name] for name in ('val_ann', 'images', 'val_images', 'data')] == [
        'v.json', 'i', 'vi', 'd.yaml']


def test_test():
    assert call(test_command, 'c', 'w.pth') == {
        'config': 'c', 'checkpoint': 'w.pth', **defaults(evit_mm.engine.test)}
    flags = ['c', 'w.pth', '--work-dir', 'w', '--data-root', 'd', '--image-size', 640, '--out', 'o',
             '--show-dir', 's', '--tta', '--fast', '--deploy', '--channels-last', '--compile',
             '--bf16', '--seed', 3,
             '--ignore-unknown-categories', '--skip-invalid-objects', '--score-thr', 0.5,
             '--cfg-options', 'a=1']
    assert call(test_command, *flags) == defaults(evit_mm.engine.test) | dict(
        config='c', checkpoint='w.pth', work_dir='w', data_root='d', image_size=640, out='o',
        show_dir='s',
        tta=True, fast=True, deploy=True, channels_last=True, compile=True, bf16=True, seed=3,
        score_thr=0.5, skip_invalid_objects=True, ignore_unknown_categories=True,
        cfg_options={'a': 1}, launcher='none')


@pytest.mark.parametrize('flag', ['--local-rank', '--local_rank'])
@pytest.mark.parametrize('command,arguments', [('train', ['c']), ('test', ['c', 'w'])])
def test_launchers(command, arguments, flag, monkeypatch):
    launchers = []
    monkeypatch.setattr(evit_mm.engine, command,
                        lambda *_, launcher, **__: launchers.append(launcher))
    monkeypatch.setattr(launch, '_work_is_done', False)
    monkeypatch.setenv('LOCAL_RANK', '')  # so that it is restored afterwards
    monkeypatch.delenv('LOCAL_RANK')
    assert run_tool(command, arguments) == 0
    assert 'LOCAL_RANK' not in os.environ and not launch._work_is_done
    assert run_tool(command, [*arguments, '--launcher', 'pytorch', flag, '3']) == 0
    assert launchers == ['none', 'pytorch']
    assert os.environ['LOCAL_RANK'] == '3' and launch._work_is_done


def test_malformed_options(capsys):
    parser = argparse.ArgumentParser()
    train_command.add_arguments(parser)
    with pytest.raises(SystemExit, match='2'):
        parser.parse_args(['config.py', '--cfg-options', 'model'])
    assert 'KEY=VALUE' in capsys.readouterr().err
