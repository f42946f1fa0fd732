"""The outcome of a check as text for the terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence

from .dataset import DatasetCheck, SplitCheck
from .findings import Finding, Severity

__all__ = ['describe_check']

_WORDS = {Severity.ERROR: 'error', Severity.INVALID: 'invalid', Severity.WARNING: 'warning',
          Severity.REPAIRED: 'repaired', Severity.NOTE: 'note'}
_CLASSES = 20  # shown; --json has all


def describe_check(check: DatasetCheck) -> str:
    """Return the counts and findings of a check, one finding a line."""
    lines: list[str] = []
    for split in check.splits:
        lines += _describe_split(split)
    if check.findings:
        lines += ['all splits', *_describe_findings(check.findings)]
    stopping = len(check.stopping)
    lines.append('a run would stop: ' + (f'{stopping} fault{"s" * (stopping > 1)} to mend'
                                         if stopping else 'no'))
    return '\n'.join(lines)


def _describe_split(split: SplitCheck) -> Iterator[str]:
    yield f'{split.name}: {split.coco.path}' if split.coco else split.name
    headers = [header for header in split.headers.values() if not header.error]
    if split.files:
        yield f'  images   {len(split.files):>7}  ' + '; '.join(filter(None, (
            f'{split.coco.empty_images} without an object' if split.coco
            and split.coco.empty_images else '',
            _counted([header.format for header in headers]),
            _counted([header.mode for header in headers]))))
    if split.coco:
        coco = split.coco
        yield f'  objects  {coco.objects.total():>7}  ' + '; '.join(filter(None, (
            f'{coco.crowds} crowd regions' if coco.crowds else '',
            f'left out: {coco.describe_left_out()}' if coco.left_out else '')))
        # A finding lists classes without objects.
        used = [(name, count) for name, count in coco.objects.most_common() if count]
        width = max((len(name) for name, _ in used[:_CLASSES]), default=0)
        for name, count in used[:_CLASSES]:
            images = split.class_images[name]
            yield f'    {name:<{width}}  {count:>7} in {images} image{"s" * (images > 1)}'
        if len(used) > _CLASSES:
            yield f'    and {len(used) - _CLASSES} more classes'
    yield from _describe_findings(split.findings)


def _describe_findings(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        yield f'  {_WORDS[finding.severity]:<8} {finding.message}'


def _counted(values: Sequence[str]) -> str:
    return ', '.join(f'{count} {value}' for value, count in Counter(values).most_common())
