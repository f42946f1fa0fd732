"""Damaged COCO files: the data check reports each in a sentence, in little time."""

import contextlib
import io
import signal
from collections import Counter

import pytest
from data.check.test_mutations import damaged_files
from PIL import Image

from evit_mm.cli.main import run_tool

hypothesis = pytest.importorskip('hypothesis')
st = hypothesis.strategies

FLAGS = ['--decode', '--skip-invalid-objects', '--ignore-unknown-categories']
SECONDS = 30  # for a file, on a busy machine


@contextlib.contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f'a check took longer than {SECONDS} seconds')

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('count', [20, pytest.param(400, marks=pytest.mark.faults)])
def test_damaged_files_end_in_a_sentence(count, tmp_path, record_property):
    """The command returns 0 or 2 for each file, and says in one line what is wrong."""
    record_property('a damaged COCO file', count)
    for number in (1, 2, 3):
        Image.new('RGB', (100, 80)).save(tmp_path / f'{number}.jpg')
    file = tmp_path / 'mine.json'
    outcomes = Counter()

    @hypothesis.settings(max_examples=count, deadline=None, database=None, derandomize=True,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(damaged_files(), st.lists(st.sampled_from(FLAGS), unique=True))
    def check(content, flags):
        file.write_bytes(content)
        stdout, stderr = io.StringIO(), io.StringIO()
        with time_limit(), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = run_tool('data', ['check', '--coco', str(file), '--images', str(tmp_path),
                                       *flags])
        errors = [line for line in stderr.getvalue().splitlines() if line]
        assert status in (0, 2)
        assert [line[:7] for line in errors] == (['error: '] if status else [])
        outcomes[status] += 1

    check()
    assert outcomes.total() >= count
    assert min(outcomes[0], outcomes[2]) > count // 20, outcomes
