"""`_base_ = 'evit_mm::...'` in configs."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from evit_mm.compat import packaged_configs


@pytest.fixture
def config(tmp_path):
    """Write a config and return its path."""

    def write(text):
        path = tmp_path / 'mine.py'
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize('base, scope', [('retinanet_evit_m4_coco', 'mmdet'),
                                         ('upernet_evit_m4_ade20k', 'mmseg')])
def test_a_packaged_config_as_base(base, scope, config, repository):
    mine = Config.fromfile(config(f"_base_ = 'evit_mm::{base}.py'\nmodel = dict(backbone=dict("
                                  "arch='m0'))\n"))
    original = Config.fromfile(repository / 'configs' / f'{base}.py')
    assert mine.default_scope == scope and mine.model.backbone.arch == 'm0'
    original.model.backbone.arch = 'm0'
    assert mine.to_dict() == original.to_dict()  # no scope of its own either


def test_parts_in_a_folder_and_other_packages(config):
    mine = Config.fromfile(config("_base_ = ['evit_mm::_base_/schedule_1x_adamw.py', "
                                  "'mmdet::_base_/default_runtime.py']\n"))
    assert mine.optim_wrapper.optimizer.type == 'AdamW' and mine.default_scope == 'mmdet'


def test_an_unknown_name(config):
    path = config("_base_ = 'evit_mm::retinanet.py'\n")
    with pytest.raises(FileNotFoundError, match=r'no such file: .*retinanet\.py \(evit_mm::'):
        Config.fromfile(path)


@pytest.mark.parametrize('name', [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',  # in a metafile
    'mmdet::_base_/schedules/schedule_1x.py', 'mmseg::_base_/models/upernet_r50.py'])
def test_the_files_of_mmengine(name):
    path, scope = Config._get_cfg_path(name, '')
    expected, expected_scope = Config._get_cfg_path.__wrapped__(name, '')
    assert Path(path).samefile(expected) and scope == expected_scope


def test_a_fork_that_is_published_under_another_name(monkeypatch):
    """mmengine looks for the distributions mmdet and mmsegmentation."""
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda package: False)
    path, scope = Config._get_cfg_path('mmseg::_base_/models/upernet_r50.py', '')
    assert scope == 'mmseg' and Path(path).is_file()
    with pytest.raises(FileNotFoundError, match=r'no such file: .*none\.py \(mmseg::.* mine'):
        Config._get_cfg_path('mmseg::_base_/none.py', 'mine.py')
    with pytest.raises(ModuleNotFoundError, match='mmrotate is not installed'):
        Config._get_cfg_path('mmrotate::_base_/none.py', '')


def test_installing_twice_wraps_once():
    resolve = Config._get_cfg_path
    packaged_configs.install()
    assert Config._get_cfg_path is resolve


def test_importing_evit_mm_is_enough():
    """mmengine is changed as soon as it is imported, and no finder is left behind."""
    code = ('import sys, evit_mm\n'
            'assert not {"mmengine", "torch"} & set(sys.modules)\n'
            'from mmengine.config import Config\n'
            'print(Config._get_cfg_path("evit_mm::retinanet_evit_m4_coco.py", ""))\n'
            'assert not any(type(finder).__name__ == "_AfterImport" for finder in sys.meta_path)\n')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"('{packaged_configs.CONFIGS / 'retinanet_evit_m4_coco.py'}', None)\n"
