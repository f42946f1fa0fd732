"""Remaining channels of a network, as a table and as the paper's figure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...benchmark.figures import PALETTE, drawing
from ...benchmark.tables import format_table
from .gates import KINDS, Site

__all__ = ['Share', 'draw_shares', 'share_table', 'shares']


@dataclass(frozen=True)
class Share:
    """Remaining channels of one kind in one block or several.

    Attributes:
        block: Name of the block; ``'stage 2'`` and ``'all'`` are sums.
        kind: One of `KINDS`.
        width: Channels of the block's input, summed like the others.
        count: Channels before the removal.
        kept: Remaining channels.
    """

    block: str
    kind: str
    width: int
    count: int
    kept: int


def shares(sites: Sequence[Site], kept: Mapping[str, Tensor]) -> list[Share]:
    """Return the shares of each block, of each stage if there are several, and of the network."""
    blocks = dict.fromkeys((site.stage, site.block) for site in sites)
    rows = [_share(block, kind, [site for site in sites if (site.stage, site.block, site.kind)
                                 == (stage, block, kind)], kept)
            for stage, block in blocks for kind in KINDS]
    stages = sorted({site.stage for site in sites})
    rows += [_share(f'stage {stage + 1}', kind, [site for site in sites if
                                                 (site.stage, site.kind) == (stage, kind)], kept)
             for stage in stages if len(stages) > 1 for kind in KINDS]
    rows += [_share('all', kind, [site for site in sites if site.kind == kind], kept)
             for kind in KINDS]
    return [share for share in rows if share.count]


def _share(block: str, kind: str, members: Sequence[Site], kept: Mapping[str, Tensor]) -> Share:
    # The heads of a block share its input; every feed-forward part has its own.
    width = sum({site.name if kind == 'FFN' else site.block: site.width
                 for site in members}.values())
    return Share(block, kind, width, sum(site.count for site in members),
                 sum(int(kept[site.name].sum()) for site in members))


def share_table(all_shares: Iterable[Share]) -> str:
    """Format a Markdown table with a row per block, stage and sum, and a column per kind."""
    rows: dict[str, dict[str, str]] = {}
    for share in all_shares:
        rows.setdefault(share.block, {})[share.kind] = (
            f'{share.kept}/{share.count} {share.kept / share.count:.0%}')
    return format_table(('block', *KINDS), [
        (block, *(cells.get(kind) for kind in KINDS)) for block, cells in rows.items()])


def draw_shares(all_shares: Iterable[Share], path: Path) -> None:
    """Draw the channels of each block before and after, relative to the width of its input.

    Raises:
        UserError: If the file can't be written.
    """
    from matplotlib.patches import Patch  # not at module level: takes a second to import

    blocks = [share for share in all_shares if share.block != 'all'
              and not share.block.startswith('stage ')]
    kinds = [kind for kind in KINDS if any(share.kind == kind for share in blocks)]
    names = list(dict.fromkeys(share.block for share in blocks))
    with drawing(path, height=0.7 + 0.9 * len(kinds)) as figure:
        all_axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, kind, colour in zip(all_axes, kinds, ('blue', 'orange', 'green'), strict=False):
            bars = [share for share in blocks if share.kind == kind]
            positions = [names.index(share.block) for share in bars]
            axes.bar(positions, [share.count / share.width for share in bars], color='white',
                     edgecolor=PALETTE['grey'], linewidth=0.6)
            axes.bar(positions, [share.kept / share.width for share in bars],
                     color=PALETTE[colour])
            axes.set_title(f'{kind} channels / input channels', loc='left')
        all_axes[-1].set_xticks(range(len(names)), names,
                                rotation=90 if max(map(len, names)) * len(names) > 36 else 0)
        # Grey, because the remaining channels have another colour in each subplot.
        figure.legend(handles=[
            Patch(facecolor='white', edgecolor=PALETTE['grey'], linewidth=0.6, label='before'),
            Patch(color=PALETTE['grey'], label='left')], loc='outside upper right', ncols=2)
        all_axes[-1].set_xlabel('block')
