"""Commands of the README, the documentation and the configs: their flags, files and results.

A command is a line in a block of code that starts with one of our tools. It is parsed by the tool's
own parser, and the files of this repository that it names must exist. The short ones are run.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / 'README.md', REPOSITORY / 'CONTRIBUTING.md',
         *sorted((REPOSITORY / 'docs').glob('*.md')),
         *sorted((REPOSITORY / 'configs').glob('*.py'))]  # their docstrings have commands too

SCRIPTS = {'train.py': 'train', 'test.py': 'test', 'benchmark.py': 'benchmark',
           'analyze.py': 'analyze', 'convert_weights.py': 'convert', 'prepare_data.py': 'data'}
MODULES = {**{name: name for name in SCRIPTS.values()}, 'run': 'run_script'}
PROGRAMS = ('evit-mm', 'make', 'python', 'pip', 'pytest', 'torchrun', 'srun')


def code_lines(text: str) -> Iterator[str]:
    """Yield the lines of shell blocks, fenced or indented, with continuation lines joined."""
    language = None
    pending = ''
    for line in text.splitlines():
        fence = re.match(r'\s*```(\w*)', line)
        if fence:
            language = None if language is not None else fence[1]
            continue
        is_code = language in ('bash', 'sh', 'console') if language is not None \
            else line.startswith('    ')
        if not is_code:
            continue
        line = pending + line.strip()
        pending = ''
        if line.endswith('\\'):
            pending = line[:-1]
        else:
            yield line


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command that starts one of our tools."""
    for line in code_lines(text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose with an apostrophe
            continue
        while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
            words = words[1:]
        if words and (words[0] in PROGRAMS or words[0].startswith('tools/')):
            yield words


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'evit-mm {command}')
    import_module(f'evit_mm.cli.{MODULES[command]}').add_arguments(parser)
    return parser


def parse(command: str, arguments: list[str]) -> argparse.Namespace | None:
    """Parse the arguments of a command; None after --help."""
    try:
        return parser_of(command).parse_args(arguments)
    except SystemExit as end:
        assert end.code == 0, f'the parser of {command} refuses {arguments}'
        return None


def as_evit_mm(words: list[str]) -> list[str] | None:
    """Return the arguments of evit-mm that a command stands for; None if it is another program."""
    program, *rest = words
    if program == 'evit-mm':
        return rest
    if 'evit_mm' in rest and rest[rest.index('evit_mm') - 1] == '-m':
        return rest[rest.index('evit_mm') + 1:]
    if program == 'python' and rest and rest[0].startswith('tools/'):
        program, *rest = rest
    if not program.startswith('tools/'):
        return None
    assert (REPOSITORY / program).is_file(), f'there is no {program}'
    script = program.removeprefix('tools/')
    if script in SCRIPTS:
        return [SCRIPTS[script], *rest]
    if script in ('dist_train.sh', 'dist_test.sh'):
        positional = 1 if script == 'dist_train.sh' else 2
        assert rest[positional].isdigit(), f'{script}: the number of processes is missing'
        del rest[positional]
        return [script[5:-3], *rest]
    assert script == 'slurm_train.sh', f'no test knows {program}'
    _, _, config, work_dir, *flags = rest
    return ['train', config, '--work-dir', work_dir, *flags]


def check(words: list[str], written: set[str]) -> None:
    """Check one command.

    Args:
        words: The command.
        written: Config files that other commands of the documentation write.
    """
    program, *rest = words
    for word in words:
        if re.fullmatch(r'(configs|docs|tests|tools)/[\w./-]+', word) and word not in written:
            assert (REPOSITORY / word).exists(), f'there is no {word}'
    arguments = as_evit_mm(words)
    if arguments is not None:
        if arguments[:1] in (['--help'], ['--version']):
            return
        options = parse(arguments[0], arguments[1:])
        config = getattr(options, 'config', None)
        if arguments[0] in ('train', 'test') and config and not config.endswith('.py') \
                and not config.isupper():
            assert (REPOSITORY / 'configs' / f'{config}.py').is_file(), f'no config {config}'
    elif program == 'make':
        targets = re.findall(r'^([a-z-]+):', (REPOSITORY / 'Makefile').read_text(), re.M)
        assert set(rest) <= set(targets), f'no target {rest}'
    elif program == 'pip':
        extras = re.search(r'\.\[([\w,]+)\]', ' '.join(rest))
        pyproject = (REPOSITORY / 'pyproject.toml').read_text()
        for extra in extras[1].split(',') if extras else ():
            assert re.search(rf'^{extra} = \[', pyproject, re.M), f'no extra {extra}'


def exports(page: Path) -> set[str]:
    """Return the config files that the commands of a page write."""
    return {words[words.index('--export-arch') + 1]
            for words in commands(page.read_text()) if '--export-arch' in words}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_is_accepted_by_its_parser(page):
    for words in commands(page.read_text()):
        check(words, exports(page))


def test_commands_are_collected():
    """An empty collection would pass the test above."""
    collected = [words for page in PAGES for words in commands(page.read_text())]
    first_words = {words[0] for words in collected}
    assert {'evit-mm', 'make', 'pip', 'torchrun', 'tools/dist_train.sh',
            'tools/slurm_train.sh'} <= first_words
    assert {words[1] for words in collected if words[0] == 'evit-mm'} >= set(MODULES)


@pytest.mark.parametrize('command', ['train', 'test', 'convert', 'data'])
def test_every_flag_is_documented(command):
    page = (REPOSITORY / 'docs' / 'command-line.md').read_text()
    section = page.split(f'## `evit-mm {command}`')[1].split('\n## ')[0]
    documented = set(re.findall(r'--[a-z][a-z0-9-]*', section))
    actions = list(parser_of(command)._actions)
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [inner for parser in action.choices.values() for inner in parser._actions]
    visible = {flag for action in actions if action.help != argparse.SUPPRESS
               for flag in action.option_strings if flag.startswith('--')}
    assert visible - {'--help'} <= documented


def evit_mm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}  # whatever else is installed
    return subprocess.run([sys.executable, '-m', 'evit_mm', *arguments], cwd=cwd, text=True,
                          capture_output=True, timeout=300, env=environment)


@pytest.mark.parametrize('command', [*MODULES, None], ids=str)
def test_help_of_each_command(command, tmp_path):
    result = evit_mm(*([command] if command else []), '--help', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f'usage: evit-mm{" " + command if command else ""} ')


def test_list_of_published_weights(tmp_path):
    result = evit_mm('convert', '--list', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert '| `evit://efficientvit_m4` | m4 |' in result.stdout
    assert len(re.findall(r'^\| `(?:evit|timm)://', result.stdout, re.M)) == 14


def test_generated_data(tmp_path):
    result = evit_mm('data', 'shapes', '--out', 'data/shapes', '--num-train', '2', '--num-val', '1',
                     cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / 'data' / 'shapes'
    assert len(list((folder / 'coco' / 'train2017').iterdir())) == 2
    assert len(list((folder / 'ade' / 'annotations' / 'validation').iterdir())) == 1


@pytest.mark.slow
def test_first_commands_of_get_started(tmp_path):
    """`evit-mm data`, `train` and `test` as on the page, on few images for one epoch."""
    assert evit_mm('data', 'shapes', '--out', 'data/shapes', '--num-train', '8', '--num-val', '2',
                   cwd=tmp_path).returncode == 0
    trained = evit_mm('train', 'retinanet_evit_m0_shapes', '--work-dir', 'work_dirs/demo', '--seed',
                      '0', '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
                      'default_hooks.checkpoint.interval=1', cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    tested = evit_mm('test', 'retinanet_evit_m0_shapes', 'work_dirs/demo/epoch_1.pth', '--show-dir',
                     'work_dirs/demo/pictures', cwd=tmp_path)
    assert tested.returncode == 0, tested.stderr
    assert len(list((tmp_path / 'work_dirs' / 'demo' / 'pictures').glob('*.jpg'))) == 2
