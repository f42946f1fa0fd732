"""Commands of the README, the documentation and the configs: their flags and files.

Every line of a shell block is parsed by the parser of its tool, and the files of this repository
that it names must exist. test_runs.py runs them.
"""

import argparse
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from documented_commands import (
    FAILS,
    FLAGS,
    NOT_RUN,
    PAGES,
    QUICK,
    REPOSITORY,
    WRITES,
    blocks,
    commands,
    reason_not_to_run,
    small,
)

import evit_runtime.cli
from evit_mm.cli.main import COMMANDS, main

SCRIPTS = {command.script: name for name, command in COMMANDS.items() if name != 'run'}
LANGUAGES = {'bash', 'python', 'text', 'bibtex'}


def commands_of(page: Path) -> list[str]:
    return [command for block in blocks(page) for command in commands(block)]


ALL = sorted({command for page in PAGES for command in commands_of(page)})


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f'evit-mm {command}')
    import_module(f'evit_mm.cli.{COMMANDS[command].module}').add_arguments(parser)
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


def check(command: str, written: set[str]) -> None:
    """Check the program, the flags and the files of a command.

    Args:
        command: The command.
        written: Config files that other commands of the documentation write.
    """
    words = shlex.split(command, comments=True)
    while re.fullmatch(r'[A-Z_]+=\S*', words[0]):
        words = words[1:]
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
        # NAME=VALUE sets a variable.
        assert {word for word in rest if '=' not in word} <= set(targets), f'no target {rest}'
    elif program == 'pip':
        extras = re.search(r'\.\[([\w,]+)\]', ' '.join(rest))
        pyproject = (REPOSITORY / 'pyproject.toml').read_text()
        for extra in extras[1].split(',') if extras else ():
            assert re.search(rf'^{extra} = \[', pyproject, re.M), f'no extra {extra}'
    elif program == 'evit-run':
        evit_runtime.cli.build_parser().parse_args(rest)
    elif rest[:1] == ['-m'] and rest[1].startswith('light.'):
        import_module(rest[1]).build_parser().parse_args(rest[2:])
    elif program == 'source':
        assert rest == ['.venv/bin/activate']
    else:
        assert program == 'ls', f'no test knows {program}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_is_accepted_by_its_parser(page):
    written = {path for command in commands_of(page)
               for path in re.findall(r'--export-arch (\S+)', command)}
    for command in commands_of(page):
        check(command, written)


@pytest.mark.parametrize('page', [page for page in PAGES if page.suffix == '.md'],
                         ids=lambda page: page.name)
def test_code_blocks_have_a_language(page):
    """Commands in other blocks, or in indented ones, would not be found."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
    assert not re.search(r'\n\n    ', text)


def test_commands_are_collected():
    """An empty collection would pass the tests."""
    first_words = {command.split()[0] for command in ALL}
    assert {'evit-mm', 'make', 'pip', 'torchrun', 'tools/dist_train.sh',
            'tools/analyze.py', 'ls'} <= first_words
    assert {command.split()[1] for command in ALL
            if command.startswith('evit-mm')} >= set(COMMANDS)
    assert len(ALL) > 60


def test_every_command_is_run_or_has_a_reason():
    """With a rule that says how, and no rule is left over."""
    for command in ALL:
        if not reason_not_to_run(command):
            small(command)
    for pattern in (*NOT_RUN, *FAILS, QUICK, *(pattern for pattern, _ in [*FLAGS, *WRITES])):
        assert any(re.match(pattern, command) for command in ALL), f'{pattern} is for no command'


@pytest.mark.parametrize('command', COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit, match='0'):
        main([command, '--help'])
    assert capsys.readouterr().out.startswith(f'usage: evit-mm {command} ')


def test_list_of_published_weights(capsys):
    assert main(['convert', '--list']) == 0
    printed = capsys.readouterr().out
    assert '| `evit://efficientvit_m4` | m4 |' in printed
    assert len(re.findall(r'^\| `(?:evit|timm)://', printed, re.M)) == 14
    assert printed in (REPOSITORY / 'docs' / 'weights.md').read_text()


@pytest.mark.parametrize('command', ['train', 'test', 'predict', 'app', 'export', 'convert',
                                     'data'])
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
