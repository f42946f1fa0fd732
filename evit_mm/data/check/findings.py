"""What a check of a dataset has found, and how a run goes on from there."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ...errors import UserError

__all__ = ['Finding', 'Findings', 'Severity', 'printable', 'shorten']

_EXAMPLES = 5


class Severity(str, Enum):
    """How a run goes on after a finding."""

    ERROR = 'error'  # not at all
    INVALID = 'invalid'  # only without the objects concerned, if the user says so
    WARNING = 'warning'
    REPAIRED = 'repaired'  # with a value that follows from the others
    NOTE = 'note'


@dataclass(frozen=True)
class Finding:
    """One kind of fault in one file.

    Attributes:
        kind: A short name that stays the same, for programs that read the report.
        severity: How a run goes on.
        message: A sentence that names the file, the field, and what to do.
        count: Number of images or objects concerned.
        examples: Some of them.
    """

    kind: str
    severity: Severity
    message: str
    count: int = 1
    examples: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as values that JSON can hold."""
        return {**asdict(self), 'severity': self.severity.value, 'examples': list(self.examples)}


class Findings(list[Finding]):
    """The findings of a check, in the order in which they were made."""

    def add(self, kind: str, severity: Severity, message: str,
            examples: Sequence[str] = ()) -> None:
        """Add a finding about ``examples``, all that are concerned."""
        self.append(Finding(kind, severity, printable(message), max(1, len(examples)),
                            tuple(map(printable, examples[:_EXAMPLES]))))

    def of(self, *severities: Severity) -> list[Finding]:
        """Return the findings of some severities."""
        return [finding for finding in self if finding.severity in severities]

    def raise_errors(self, *, skip_invalid: bool = False) -> None:
        """Raise the first finding that a run can't go on after.

        Args:
            skip_invalid: Go on without invalid objects.

        Raises:
            UserError: With that finding's sentence, and the number of others.
        """
        stopping = self.of(Severity.ERROR, *([] if skip_invalid else [Severity.INVALID]))
        if not stopping:
            return
        first, others = stopping[0], len(stopping) - 1
        fix = '; to go on without these objects, pass --skip-invalid-objects' \
            if first.severity is Severity.INVALID else ''
        more = f' ({others} more fault{"s" * (others > 1)}: evit-mm data check lists all)' \
            if others else ''
        raise UserError(first.message + fix + more)


def shorten(values: Iterable[object], limit: int = 3) -> str:
    """Return the first values as a list in a sentence."""
    shown = [str(value) for value in values]
    return ', '.join(shown[:limit]) + (' ...' if len(shown) > limit else '')


def printable(text: str) -> str:
    """Return a text on one line; names in files may have line breaks and halves of characters."""
    return ''.join(letter if letter.isprintable() else
                   letter.encode('unicode_escape').decode() for letter in text)
