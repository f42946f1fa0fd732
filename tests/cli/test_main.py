"""The command evit-mm, and how commands end."""

import ast
import os
import resource
import runpy
import subprocess
import sys
from types import ModuleType

import pytest

from evit_mm import __version__
from evit_mm.cli import main as cli
from evit_mm.cli.common import ConfigOptions
from evit_mm.cli.main import COMMANDS, main, run_tool
from evit_mm.errors import UserError

HEAVY = {'cv2', 'matplotlib', 'mmcv', 'mmdet', 'mmengine', 'mmseg', 'numpy', 'torch', 'torchvision'}


@pytest.fixture
def command(monkeypatch):
    """Add a command `fake` that calls a function with the parsed arguments."""

    def add(run):
        module = ModuleType('evit_mm.cli.fake')
        module.DESCRIPTION = 'A command of this test.'
        module.run = run

        def add_arguments(parser):
            parser.add_argument('--launcher', default='none')
            parser.add_argument('--local-rank', '--local_rank', type=int)
            parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions)

        module.add_arguments = add_arguments
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(COMMANDS, 'fake', cli.Command('fake', 'fake.py', 'return'))

    return add


def raising(error):
    def run(args):
        raise error

    return run


class TestStartUp:
    def test_modules_import_nothing_heavy(self, repository):
        """Only the standard library, errors, versions and evit_runtime.cli at module level."""
        files = sorted((repository / 'evit_mm' / 'cli').rglob('*.py'))
        assert {'main.py', 'common.py', 'run_script.py'} <= {file.name for file in files}
        files.append(repository / 'evit_runtime' / 'cli.py')
        for file in files:
            depth = len(file.relative_to(repository).parts) - 2
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Import):
                    assert all(name.name.split('.')[0] in sys.stdlib_module_names
                               for name in node.names), file
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    assert node.module.split('.')[0] in sys.stdlib_module_names \
                        or node.module == 'evit_runtime.cli', file
                elif isinstance(node, ast.ImportFrom) and node.level > depth:
                    assert node.module in ('errors', 'version'), file

    def test_help_needs_no_torch_and_little_time(self):
        code = ('import sys\n'
                'from evit_mm.cli.main import main\n'
                'try:\n'
                '    main(["train", "--help"])\n'
                'finally:\n'
                f'    print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n')
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stdout.startswith('usage: evit-mm train')
        assert done.stderr == '[]\n'
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5

    def test_only_the_chosen_module_is_imported(self, monkeypatch, capsys):
        imported = []
        implementation = cli._implementation
        monkeypatch.setattr(cli, '_implementation',
                            lambda command: imported.append(command.module)
                            or implementation(command))
        with pytest.raises(SystemExit):
            main(['convert', '--help'])
        with pytest.raises(SystemExit):
            main(['--help'])
        assert imported == ['convert']


class TestMain:
    def test_version_as_a_module(self):
        done = subprocess.run([sys.executable, '-m', 'evit_mm', '--version'], capture_output=True,
                              text=True)
        assert (done.returncode, done.stdout) == (0, f'evit-mm {__version__}\n')

    def test_help_lists_the_commands(self, capsys):
        with pytest.raises(SystemExit) as ended:
            main(['--help'])
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        for name in COMMANDS:
            assert f'\n    {name}' in printed

    @pytest.mark.parametrize('argv, message', [
        ([], 'the following arguments are required: COMMAND'), (['fly'], "invalid choice: 'fly'")])
    def test_an_unknown_command(self, argv, message, capsys):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2 and message in capsys.readouterr().err

    def test_data_shapes(self, tmp_path, capsys):
        assert main(['data', 'shapes', '--out', str(tmp_path), '--num-train', '2', '--num-val', '1',
                     '--size', '64', '--layout', 'coco']) == 0
        assert len(list((tmp_path / 'coco').rglob('*.jpg'))) == 3
        assert str(tmp_path / 'coco') in capsys.readouterr().out

    def test_a_mistake(self, tmp_path, capsys):
        assert main(['train', str(tmp_path / 'missing.py')]) == 2
        error = capsys.readouterr().err
        assert error.startswith('error: ') and 'missing.py' in error and error.count('\n') == 1


class TestTools:
    @pytest.mark.parametrize('name', sorted(set(COMMANDS) - {'app', 'run'}))
    def test_scripts_have_their_commands_flags(self, name, repository, monkeypatch, capsys):
        script = COMMANDS[name].script
        monkeypatch.setattr(sys, 'path', [*sys.path])
        monkeypatch.setattr(sys, 'argv', [script, '--help'])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(repository / 'tools' / script), run_name='__main__')
        of_script = capsys.readouterr().out
        assert ended.value.code == 0 and of_script.startswith(f'usage: {script} ')
        with pytest.raises(SystemExit):
            main([name, '--help'])
        of_command = capsys.readouterr().out
        # The usage wraps at other places, and metavars in braces wrap with it.
        flags = {word for word in of_script.split() if word.startswith('--')}
        assert flags == {word for word in of_command.split() if word.startswith('--')}


class TestEnding:
    def test_success(self, command, monkeypatch):
        monkeypatch.delenv('LOCAL_RANK', raising=False)
        seen = []
        command(lambda args: seen.append((args.cfg_options, os.environ.get('LOCAL_RANK'))))
        assert run_tool('fake', ['--local_rank=3', '--cfg-options', 'a.b=[1,2]', 'c=x']) == 0
        assert seen == [({'a.b': [1, 2], 'c': 'x'}, '3')]

    def test_the_rank_of_torchrun_stays(self, command, monkeypatch):
        monkeypatch.setenv('LOCAL_RANK', '1')
        command(lambda args: None)
        assert run_tool('fake', ['--local-rank', '3']) == 0
        assert os.environ['LOCAL_RANK'] == '1'

    @pytest.mark.parametrize('launcher', ['none', 'pytorch'])
    def test_a_launchers_process_may_leave_early(self, launcher, command, monkeypatch):
        from evit_mm.engine import launch

        calls = []
        monkeypatch.setattr(launch, 'work_is_done', lambda: calls.append(launcher))
        command(lambda args: None)
        assert run_tool('fake', ['--launcher', launcher]) == 0
        assert calls == ([] if launcher == 'none' else [launcher])
        calls.clear()
        command(raising(UserError('no')))
        assert run_tool('fake', ['--launcher', launcher]) == 2 and not calls

    @pytest.mark.parametrize('error, status, message', [
        (UserError('a.py has no model'), 2, 'error: a.py has no model\n'),
        (ModuleNotFoundError("No module named 'timm'"), 1,
         "error: No module named 'timm' (EVIT_MM_TRACEBACK=1 shows where)\n"),
        (KeyboardInterrupt(), 130, 'interrupted; what was saved is kept\n')])
    def test_errors_become_sentences(self, error, status, message, command, monkeypatch, capsys):
        monkeypatch.delenv('EVIT_MM_TRACEBACK', raising=False)
        command(raising(error))
        for run in (lambda: run_tool('fake', []), lambda: main(['fake'])):
            assert run() == status
            assert capsys.readouterr().err == message

    @pytest.mark.parametrize('error', [UserError('x'), ImportError('x')])
    def test_the_traceback_on_demand(self, error, command, monkeypatch):
        monkeypatch.setenv('EVIT_MM_TRACEBACK', '1')
        command(raising(error))
        with pytest.raises(type(error)):
            run_tool('fake', [])

    @pytest.mark.parametrize('error', [ValueError('x'), BrokenPipeError('a socket')])
    def test_other_errors_keep_their_traceback(self, error, command):
        command(raising(error))
        with pytest.raises(type(error)):
            run_tool('fake', [])

    @pytest.mark.parametrize('lines', [1, 100_000])
    def test_a_closed_pipe_ends_quietly(self, lines):
        code = ('import sys\n'
                'from evit_mm.cli import main, run_script\n'
                f'run_script.run = lambda args: [print("line") for _ in range({lines})]\n'
                'sys.exit(main.main(["run"]))\n')
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([sys.executable, '-c', code], stdout=write, stderr=subprocess.PIPE,
                              text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, '')


class TestConfigOptions:
    def test_values_are_parsed_as_in_mmengine(self, command):
        seen = []
        command(lambda args: seen.append(args.cfg_options))
        run_tool('fake', ['--cfg-options', 'a=1', 'b=1.5', 'c=true', 'd=None', 'e=x=y', 'f=1,2',
                          'g=(3,[4,z])', '--cfg-options', 'a=2'])
        assert seen == [{'a': 2, 'b': 1.5, 'c': True, 'd': None, 'e': 'x=y', 'f': [1, 2],
                         'g': (3, [4, 'z'])}]

    @pytest.mark.parametrize('values, message', [
        (['a', 'b=1', 'c'], '--cfg-options takes KEY=VALUE pairs, but got a c'),
        (['a=[1,(2'], '--cfg-options a=[1,(2: Imbalanced brackets exist in [1,(2')])
    def test_malformed_pairs(self, values, message, command, capsys):
        command(lambda args: None)
        with pytest.raises(SystemExit) as ended:
            run_tool('fake', ['--cfg-options', *values])
        assert ended.value.code == 2 and message in capsys.readouterr().err
