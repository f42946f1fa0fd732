"""Try EfficientViT in every family of MMDetection and MMSegmentation; write docs/families.md.

    make families
    PYTHONPATH=tests python -m families.survey mmdet/atss mmseg/fcn --again

Each family runs in a process of its own. Results are kept in work_dirs/families.json, so that a
survey that was stopped continues where it was.
"""

import argparse
import importlib
import json
import logging
import multiprocessing
import re
from collections.abc import Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from families.families import FAILURES, NOT_APPLICABLE, PACKAGES, SPECIAL, config_of, families
from families.trial import STAGES, try_family
from mmengine.logging import MMLogger

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / 'work_dirs' / 'families.json'
PAGE = REPOSITORY / 'docs' / 'families.md'
TIMEOUT = 300
INTRODUCTION = '''# Families of detectors and segmentors

<!-- Written by `make families`; change tests/families/ instead. -->

In one config of each family of MMDetection {mmdet} and MMSegmentation {mmseg}, EfficientViT-M0
replaces the backbone, with mmcv-lite. A family *builds* if the model passes the checks before
training. It *trains* if one step on two small images has finite losses, and finite gradients that
reach the backbone. It *predicts* if the result has the right type and size. The weights are random,
so the table says what fits together, not how accurate it is.

The maps keep the strides of those that they replace, with `stem_strides` and `out_indices`. Where
these have one stride several times (dilated networks, plain ViTs), the new strides start with 4 and
double. `EfficientViTFPN` replaces a plain FPN, with the same outputs. Otherwise only the numbers of
input channels change, unless the note says more. [Your own config](own-config.md) shows how.
'''
TITLES = {'mmdet': 'MMDetection', 'mmseg': 'MMSegmentation'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('families', nargs='*', help='such as mmdet/atss; all by default')
    parser.add_argument('--again', action='store_true', help='also those that have a result')
    arguments = parser.parse_args()
    unknown = set(arguments.families) - set(all_families())
    if unknown:
        parser.error(f'no such family: {", ".join(sorted(unknown))}')
    for package in PACKAGES:  # once, for all processes
        importlib.import_module(f'{package}.models')
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for family in arguments.families or all_families():
        if family in NOT_APPLICABLE or (family in results and not arguments.again):
            continue
        results[family] = in_own_process(family)
        print(family, results[family], flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True))
    missing = set(all_families()) - set(results) - set(NOT_APPLICABLE)
    if missing:
        print(f'{PAGE.name} is not written: {len(missing)} families have no result yet')
    else:
        PAGE.write_text(page(results))


def all_families() -> list[str]:
    return [family for package in PACKAGES for family in families(package)]


def in_own_process(family: str) -> dict[str, Any]:
    """Return the outcome of a family, tried in a new process."""
    # A fork has the packages imported already, which takes longer than most families.
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(family, sender))
    process.start()
    sender.close()
    failure = dict.fromkeys(STAGES, False)
    try:
        if not receiver.poll(TIMEOUT):
            return {**failure, 'error': f'TimeoutError: more than {TIMEOUT} seconds'}
        return receiver.recv()
    except EOFError:
        return {**failure, 'error': 'the process died'}
    finally:
        process.kill()
        process.join()


def _send_outcome(family: str, sender: Connection) -> None:
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # it lists all weights
    sender.send(try_family(family))


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of docs/families.md for the outcomes of all families."""
    lines = [INTRODUCTION.format(mmdet=version('mmdet'), mmseg=version('mmsegmentation'))]
    for package in PACKAGES:
        names = families(package)
        applicable = [name for name in names if name not in NOT_APPLICABLE]
        working = [name for name in applicable if results[name]['predicts']]
        lines += [f'## {TITLES[package]}', '',
                  f'Families that work: {len(working)} of {len(names)}. Not applicable: '
                  f'{len(names) - len(applicable)}. Failing: {len(applicable) - len(working)}.', '',
                  '| family | config | builds | trains | predicts | note |',
                  '|---|---|---|---|---|---|']
        for name in names:
            lines.append(_row(name, results.get(name)))
        lines.append('')
    return '\n'.join(lines)


def _row(family: str, outcome: Mapping[str, Any] | None) -> str:
    name = family.partition('/')[2]
    if family in NOT_APPLICABLE:
        return f'| {name} | | | | | not applicable: {NOT_APPLICABLE[family]} |'
    answers = ' | '.join('yes' if outcome[stage] else 'no' for stage in STAGES)
    note = SPECIAL[family].reason if family in SPECIAL else ''
    if outcome['error']:
        note = f'fails: {_reason(family, outcome["error"])}'
    return f'| {name} | `{config_of(family).stem}` | {answers} | {note} |'


def _reason(family: str, error: str) -> str:
    """Return a sentence for a known error, and the error itself for others."""
    pattern, sentence = FAILURES.get(family, ('$^', ''))
    if re.search(pattern, error):
        return sentence
    missing = re.match(r'MissingOpError: mmcv op \'?(.+?)\'? is not available', error)
    if missing:
        return f'needs mmcv\'s operator `{missing[1]}`'
    return f'`{error[:160]}`'.replace('|', '\\|')


if __name__ == '__main__':
    main()
