"""tools/slurm_train.sh goes on after a pre-emption; srun and scontrol are stand-ins."""

import os
import subprocess

import pytest


@pytest.fixture
def slurm(tmp_path, repository):
    """Run the script with an srun that ends with the statuses given; return what was called."""
    def run(statuses, **environment):
        calls, left = tmp_path / 'calls', tmp_path / 'statuses'
        calls.write_text('')
        left.write_text('\n'.join(map(str, statuses)) + '\n')
        for name, code in (('srun', f'status=$(head -1 {left}); sed -i 1d {left}; exit $status'),
                           ('scontrol', '')):
            script = tmp_path / name
            script.write_text(f'#!/bin/sh\necho {name} "$@" >> {calls}\n{code}\n')
            script.chmod(0o755)
        done = subprocess.run(
            [repository / 'tools' / 'slurm_train.sh', 'part', 'job', 'config', 'dir', '--seed',
             '3'], capture_output=True, text=True, timeout=30,
            env={**{name: value for name, value in os.environ.items()
                    if not name.startswith('SLURM')},
                 'PATH': f'{tmp_path}:{os.environ["PATH"]}', **environment})
        return done.returncode, calls.read_text().splitlines(), done.stderr

    return run


def test_outside_of_a_job(slurm):
    assert slurm([0])[0] == 0
    assert slurm([2])[0] == 2
    status, calls, said = slurm([143])
    assert status == 143 and len(calls) == 1 and 'run this again with --resume' in said
    status, calls, _ = slurm([143, 143, 0], REQUEUE='1')
    assert status == 0 and [call.count(' --resume') for call in calls] == [0, 1, 1]


def test_in_a_batch_job(slurm):
    status, calls, _ = slurm([143], SLURM_JOB_ID='77')
    assert status == 0 and calls[1] == 'scontrol requeue 77' and '--resume' not in calls[0]
    status, calls, _ = slurm([0], SLURM_JOB_ID='77', SLURM_RESTART_COUNT='1')
    assert status == 0 and calls[0].endswith('--seed 3 --resume')
    assert slurm([143], SLURM_JOB_ID='77', REQUEUE='0')[0] == 143
