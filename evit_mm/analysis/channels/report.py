"""What is left of a network's channels, as a table and as the paper's figure."""

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
    """Channels of one kind in one block, or in several.

    Attributes:
        block: The block's name; ``'stage 2'`` and ``'all'`` are sums.
        kind: One of `KINDS`.
        width: Channels of the block's input, summed like the others.
        count: Channels before.
        kept: Channels that are left.
    """

    block: str
    kind: str
    width: int
    count: int
    kept: int


def shares(sites: Sequence[Site], kept: Mapping[str, Tensor]) -> list[Share]:
    """What is left in each block, each stage (of several) and in all, in this order."""
    blocks = dict.fromkeys((site.stage, site.block) for site in sites)
    found = [_share(block, kind, [site for site in sites if (site.stage, site.block, site.kind)
                                  == (stage, block, kind)], kept)
             for stage, block in blocks for kind in KINDS]
    stages = sorted({site.stage for site in sites})
    found += [_share(f'stage {stage + 1}', kind, [site for site in sites if
                                                  (site.stage, site.kind) == (stage, kind)], kept)
              for stage in stages if len(stages) > 1 for kind in KINDS]
    found += [_share('all', kind, [site for site in sites if site.kind == kind], kept)
              for kind in KINDS]
    return [share for share in found if share.count]


def _share(block: str, kind: str, members: Sequence[Site], kept: Mapping[str, Tensor]) -> Share:
    # Heads of a block share its input, feed-forward parts have one each.
    width = sum({site.name if kind == 'FFN' else site.block: site.width
                 for site in members}.values())
    return Share(block, kind, width, sum(site.count for site in members),
                 sum(int(kept[site.name].sum()) for site in members))


def share_table(found: Iterable[Share]) -> str:
    """A Markdown table: a row for each block, stage and all, a column for each kind."""
    rows: dict[str, dict[str, str]] = {}
    for share in found:
        rows.setdefault(share.block, {})[share.kind] = (
            f'{share.kept}/{share.count} {share.kept / share.count:.0%}')
    return format_table(('block', *KINDS), [
        (block, *(cells.get(kind) for kind in KINDS)) for block, cells in rows.items()])


def draw_shares(found: Iterable[Share], path: Path) -> None:
    """Draw channels over the width of the block's input, before and after, block by block.

    Raises:
        UserError: If the file can't be written.
    """
    from matplotlib.patches import Patch  # only here: matplotlib takes a second to import

    blocks = [share for share in found if share.block != 'all'
              and not share.block.startswith('stage ')]
    kinds = [kind for kind in KINDS if any(share.kind == kind for share in blocks)]
    names = list(dict.fromkeys(share.block for share in blocks))
    with drawing(path, height=0.7 + 0.9 * len(kinds)) as figure:
        all_axes = figure.subplots(len(kinds), 1, sharex=True, squeeze=False)[:, 0]
        for axes, kind, colour in zip(all_axes, kinds, ('blue', 'orange', 'green'), strict=False):
            bars = [share for share in blocks if share.kind == kind]
            places = [names.index(share.block) for share in bars]
            axes.bar(places, [share.count / share.width for share in bars], color='white',
                     edgecolor=PALETTE['grey'], linewidth=0.6)
            axes.bar(places, [share.kept / share.width for share in bars],
                     color=PALETTE[colour])
            axes.set_title(f'{kind} channels / input channels', loc='left')
        all_axes[-1].set_xticks(range(len(names)), names,
                                rotation=90 if max(map(len, names)) * len(names) > 36 else 0)
        # Grey, since what is left has a colour of its own in each part of the figure.
        figure.legend(handles=[
            Patch(facecolor='white', edgecolor=PALETTE['grey'], linewidth=0.6, label='before'),
            Patch(color=PALETTE['grey'], label='left')], loc='outside upper right', ncols=2)
        all_axes[-1].set_xlabel('block')
