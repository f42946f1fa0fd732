"""`evit-mm run`: scripts of MMDetection and MMSegmentation with mmcv-lite."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config

from evit_mm.cli.main import main
from evit_mm.cli.run_script import find_script, installed_scripts
from evit_mm.data.synthetic.generate import generate_ade, generate_coco
from evit_mm.errors import UserError

DETECTOR, SEGMENTOR = 'retinanet_evit_m0_shapes.py', 'upernet_evit_m0_shapes.py'


def scripts_of(package):
    return Path(find_spec(package).submodule_search_locations[0], '.mim', 'tools')


@pytest.fixture
def in_process(monkeypatch, tmp_path):
    """Let a script change the interpreter's arguments and path, and write to its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [*sys.argv])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])


@pytest.fixture
def run_script(tmp_path):
    """Run `python -m evit_mm run ...` in a process of its own."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, '-m', 'evit_mm', 'run', *map(str, arguments)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path, timeout=600,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.fixture
def config(tmp_path):
    """Write a config of two drawn images, based on a packaged one."""

    def write(base):
        generate, name = ((generate_coco, 'coco') if base == DETECTOR else (generate_ade, 'ade'))
        generate(tmp_path / name, num_train=2, num_val=2, image_size=(64, 64), seed=0)
        path = tmp_path / base
        path.write_text(f"""_base_ = 'evit_mm::{base}'
data_root = {str(tmp_path / name) + '/'!r}
loader = dict(batch_size=2, num_workers=0, persistent_workers=False,
              dataset=dict(data_root=data_root))
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
""" + ("""
train_cfg = dict(max_epochs=1, val_interval=1)
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
model = dict(test_cfg=dict(score_thr=0.0))
default_hooks = dict(checkpoint=dict(interval=1))
""" if base == DETECTOR else """
train_cfg = dict(max_iters=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
"""))
        return path

    return write


class TestFinding:
    @pytest.mark.parametrize('name, package, file', [
        ('analyze_results.py', 'mmdet', 'analysis_tools/analyze_results.py'),
        ('analyze_results', 'mmdet', 'analysis_tools/analyze_results.py'),
        ('mmdet:test.py', 'mmdet', 'test.py'),
        ('mmseg:test', 'mmseg', 'test.py'),
        ('mmseg:misc/browse_dataset.py', 'mmseg', 'misc/browse_dataset.py'),
        # One of several in a package: the one nearest to tools/.
        ('mmdet:browse_dataset.py', 'mmdet', 'analysis_tools/browse_dataset.py'),
        ('mot/browse_dataset.py', 'mmdet', 'analysis_tools/mot/browse_dataset.py')])
    def test_by_name(self, name, package, file):
        assert find_script(name) == scripts_of(package) / file

    def test_by_path(self, tmp_path, monkeypatch):
        script = tmp_path / 'test.py'
        script.touch()
        monkeypatch.chdir(tmp_path)
        assert find_script('test.py') == find_script(str(script)) == script

    @pytest.mark.parametrize('base, package', [(DETECTOR, 'mmdet'), (SEGMENTOR, 'mmseg')])
    def test_the_scope_of_the_config_decides(self, base, package, repository):
        config = str(repository / 'configs' / base)
        assert find_script('test.py', ['--out', 'x', config]) == scripts_of(package) / 'test.py'

    @pytest.mark.parametrize('name, args, message', [
        ('test.py', [], 'test.py exists in MMDetection and MMSegmentation: write mmdet:test.py or '
         'mmseg:test.py'),
        ('image_demo.py', [], 'no such script: image_demo.py; `evit-mm run --list`'),
        ('mmpretrain:test.py', [], 'only scripts of mmdet and mmseg are known by name')])
    def test_mistakes(self, name, args, message):
        with pytest.raises(UserError, match=message):
            find_script(name, args)

    def test_list(self, capsys):
        assert main(['run', '--list']) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {'mmdet:train.py', 'mmseg:train.py', 'mmseg:misc/print_config.py'} <= set(lines)
        assert len(lines) == len(installed_scripts()) == len(set(lines))

    def test_packages_installed_from_a_checkout(self, tmp_path, monkeypatch):
        """Without .mim, tools/ and demo/ are next to the package."""
        for file in ('mmdet/__init__.py', 'tools/test.py', 'demo/image_demo.py'):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        for module in [name for name in sys.modules if name.partition('.')[0] == 'mmdet']:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(tmp_path)
        assert find_script('image_demo.py') == tmp_path / 'demo' / 'image_demo.py'
        assert find_script('mmdet:test.py') == tmp_path / 'tools' / 'test.py'

    def test_no_name(self, capsys):
        assert main(['run']) == 2
        assert '--list' in capsys.readouterr().err


@pytest.mark.usefixtures('in_process')
class TestRunning:
    def test_as_python_runs_it(self, tmp_path, capsys):
        """With its own arguments, its neighbours, `__main__`, and its exit status."""
        (tmp_path / 'neighbour.py').write_text('NAME = "next door"\n')
        script = tmp_path / 'script.py'
        script.write_text('import sys\n'
                          'import mmcv.ops\n'
                          'from mmengine.registry import MODELS\n'
                          'from neighbour import NAME\n'
                          'assert "EfficientViT" in MODELS\n'
                          'if __name__ == "__main__":\n'
                          '    print(sys.argv, NAME)\n'
                          '    sys.exit(7)\n')
        with pytest.raises(SystemExit) as ended:
            main(['run', str(script), 'x', '--list', '--help', '-h'])
        assert ended.value.code == 7
        assert capsys.readouterr().out == (
            f"{[str(script), 'x', '--list', '--help', '-h']} next door\n")

    def test_torch_load_reads_training_checkpoints_without_running_code(self, tmp_path, capsys):
        import torch
        from mmengine.logging import HistoryBuffer

        torch.save(dict(message_hub=dict(loss=HistoryBuffer([1.0], [1]))), tmp_path / 'good.pth')
        torch.save(dict(message_hub=subprocess.run), tmp_path / 'bad.pth')
        script = tmp_path / 'script.py'
        script.write_text('import pickle, sys, torch\n'
                          'print(torch.load(sys.argv[1])["message_hub"]["loss"].current())\n'
                          'try:\n'
                          '    torch.load(sys.argv[2])\n'
                          'except pickle.UnpicklingError:\n'
                          '    print("refused")\n')
        assert main(['run', str(script), str(tmp_path / 'good.pth'),
                     str(tmp_path / 'bad.pth')]) == 0
        assert capsys.readouterr().out == '1.0\nrefused\n'

    @pytest.mark.parametrize('base', [DETECTOR, SEGMENTOR])
    def test_print_config(self, base, config, capsys):
        assert main(['run', 'print_config.py', str(config(base))]) == 0
        assert "type='EfficientViT'" in capsys.readouterr().out

    def test_a_plain_model_without_custom_imports(self, tmp_path, capsys):
        """Its detectors need mmcv's operators, whatever the backbone."""
        config = tmp_path / 'plain.py'
        config.write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n")
        script = tmp_path / 'build.py'
        script.write_text('import sys\n'
                          'from mmengine.config import Config\n'
                          'from mmdet.registry import MODELS\n'
                          'from mmdet.utils import register_all_modules\n'
                          'register_all_modules()\n'
                          'model = Config.fromfile(sys.argv[1]).model\n'
                          'model.backbone.init_cfg = None\n'
                          'print(type(MODELS.build(model)).__name__)\n')
        assert main(['run', str(script), str(config)]) == 0
        assert capsys.readouterr().out.endswith('RetinaNet\n')


class TestOpenMMLabsScripts:
    @pytest.mark.slow
    @pytest.mark.parametrize('base', [DETECTOR, SEGMENTOR])
    def test_browse_dataset(self, base, config, run_script, tmp_path):
        # Without bases, for each of which a process parses mmdet's metafiles again.
        Config.fromfile(config(base)).dump(tmp_path / 'flat.py')
        run_script('browse_dataset.py', tmp_path / 'flat.py', '--output-dir', tmp_path / 'drawn',
                   '--not-show')
        assert len(list((tmp_path / 'drawn').rglob('*.[jp][pn]g'))) == 2

    @pytest.mark.slow
    def test_training_testing_and_analyses_of_detectors(self, config, run_script, tmp_path):
        detector = config(DETECTOR)
        run_script('train.py', detector, '--work-dir', tmp_path / 'work')
        weights = tmp_path / 'work' / 'epoch_1.pth'
        run_script('test.py', detector, weights, '--work-dir', tmp_path, '--out',
                   tmp_path / 'results.pkl')
        run_script('analyze_results.py', detector, tmp_path / 'results.pkl', tmp_path / 'analyzed')
        assert list((tmp_path / 'analyzed' / 'good').iterdir())
        run_script('confusion_matrix.py', detector, tmp_path / 'results.pkl', tmp_path / 'matrix')
        assert (tmp_path / 'matrix' / 'confusion_matrix.png').is_file()
        assert 'coco/bbox_mAP' in run_script('eval_metric.py', detector, tmp_path / 'results.pkl')
        assert 'Params' in run_script('get_flops.py', detector, '--num-images', '1')
        run_script('mmdet:publish_model.py', weights, tmp_path / 'published.pth')
        assert list(tmp_path.glob('published*.pth'))

    @pytest.mark.slow
    def test_training_and_testing_segmentors(self, config, run_script, tmp_path):
        segmentor = config(SEGMENTOR)
        run_script('train.py', segmentor, '--work-dir', tmp_path / 'work')
        assert 'mIoU' in run_script('test.py', segmentor, tmp_path / 'work' / 'iter_1.pth',
                                    '--work-dir', tmp_path)
