"""Taylor importance of channels, and removal of channels to a budget of multiply-adds.

Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019): the importance of a
gated channel is (gate * dLoss/dgate) ** 2, averaged over batches. All channels of the network are
ranked together, the least important ones are removed, and the rest is ranked again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import UserError
from .gates import Site, gated

__all__ = ['LossSource', 'Ranking', 'Removal', 'check_budget', 'lowest_share', 'prune', 'rank',
           'replay']


class LossSource(Protocol):
    """Batches and the loss of a model on them."""

    def batches(self) -> Iterator[Any]:
        """Yield the batches; the same ones at every call."""

    def loss(self, batch: Any) -> Tensor:
        """Return the model's loss on a batch, a differentiable scalar."""


@dataclass(frozen=True)
class Ranking:
    """Importance of all channels.

    Attributes:
        importance: By site, (count,); 0 for masked channels.
        loss: Mean loss of the batches.
    """

    importance: Mapping[str, Tensor]
    loss: float


@dataclass(frozen=True)
class Removal:
    """One step of a removal.

    Attributes:
        removed: Indices of the channels that the step removed, by site.
        macs: Remaining multiply-adds.
        loss: Mean loss before the step.
    """

    removed: Mapping[str, list[int]]
    macs: int
    loss: float


def rank(sites: Sequence[Site], kept: Mapping[str, Tensor], source: LossSource, *,
         after_batch: Callable[[], Any] = lambda: None) -> Ranking:
    """Measure the importance of the channels that are not masked.

    Args:
        sites: The channels.
        kept: Masks by site, (count,) of 0 and 1.
        source: The loss; the model's parameters need no gradients.
        after_batch: Called after each batch.

    Raises:
        UserError: If the loss is not finite or depends on no channel, or there are no batches.
    """
    total = [torch.zeros(site.count, dtype=torch.float64) for site in sites]
    loss_sum, number = 0.0, 0
    for batch in source.batches():
        with gated(sites, kept) as gates:
            loss = source.loss(batch)
            if not loss.isfinite():
                raise UserError(f'the loss of batch {number + 1} is {loss.item()}, so channels '
                                'can\'t be ranked by it: check the weights of the model')
            # Parts whose output the loss does not use have no gradient.
            slopes = torch.autograd.grad(loss, gates, materialize_grads=True)
        for sum_, gate, slope in zip(total, gates, slopes, strict=True):
            sum_ += (gate.detach() * slope).cpu().double() ** 2
        loss_sum += loss.item()
        number += 1
        after_batch()
    if not number:
        raise UserError('there are no batches by whose loss to rank channels')
    if not any(sum_.any() for sum_ in total):
        raise UserError('no channel changes the loss: in an untrained EfficientViT all residual '
                        'branches are zero, so pass trained weights with --checkpoint')
    return Ranking({site.name: sum_ / number for site, sum_ in zip(sites, total, strict=True)},
                   loss_sum / number)


def lowest_share(sites: Sequence[Site], cost: Mapping[str, int], total: int) -> float:
    """Return the share of multiply-adds that remains with one channel per site."""
    return 1 - sum((site.count - 1) * cost[site.name] for site in sites) / total


def check_budget(sites: Sequence[Site], cost: Mapping[str, int], total: int, budget: float) -> None:
    """Check that a budget can be reached.

    Args:
        sites: The channels that may be removed.
        cost: Multiply-adds saved by removing one channel, by site.
        total: Multiply-adds of the whole model.
        budget: Share of the multiply-adds to keep.

    Raises:
        UserError: If it can't be reached; names the lowest budget that can, if there is one.
    """
    if not 0 < budget < 1:
        raise UserError(f'--budget, the share of the multiply-adds to keep, must be between 0 and '
                        f'1, got {budget:g}')
    lowest = lowest_share(sites, cost, total)
    if lowest >= 1:
        raise UserError('removing channels of these kinds saves no multiply-adds in this model: '
                        'choose others with --kinds')
    if budget < lowest:
        raise UserError(
            f'--budget {budget:g} can\'t be reached: with one channel per head and feed-forward '
            f'part, {lowest:.3f} of the multiply-adds remain, so choose from '
            f'{_round_up(lowest):g} to less than 1')


def prune(sites: Sequence[Site], cost: Mapping[str, int], total: int, *, budget: float, steps: int,
          ranking: Callable[[Mapping[str, Tensor]], Ranking], done: Sequence[Removal] = ()
          ) -> Iterator[Removal]:
    """Remove the least important channels in several steps.

    Each step removes an equal part of the multiply-adds, up to the cost of one channel more. Every
    site keeps one channel, so that the network stays connected.

    Args:
        sites: The channels that may be removed.
        cost: Multiply-adds saved by removing one channel, by site.
        total: Multiply-adds of the whole model.
        budget: Share of the multiply-adds to keep.
        steps: Number of steps.
        ranking: Ranks the channels that the given masks keep.
        done: Steps of an earlier run, which are not repeated.

    Yields:
        Removal: Each further step.

    Raises:
        UserError: If the budget can't be reached; see `check_budget`.
    """
    check_budget(sites, cost, total, budget)
    kept = replay(sites, done)
    macs = done[-1].macs if done else total
    for step in range(len(done), steps):
        target = total * (1 - (1 - budget) * (step + 1) / steps)
        ranked = ranking(kept)
        removed: dict[str, list[int]] = {}
        for site, channel in _least_first(sites, kept, ranked.importance):
            if macs <= target:
                break
            if kept[site.name].sum() > 1:
                kept[site.name][channel] = 0
                removed.setdefault(site.name, []).append(channel)
                macs -= cost[site.name]
        yield Removal(removed, macs, ranked.loss)


def replay(sites: Sequence[Site], steps: Sequence[Removal]) -> dict[str, Tensor]:
    """Return the masks after some steps: (count,) of 0 and 1, by site."""
    kept = {site.name: torch.ones(site.count) for site in sites}
    for step in steps:
        for name, channels in step.removed.items():
            kept[name][channels] = 0
    return kept


def _least_first(sites: Sequence[Site], kept: Mapping[str, Tensor],
                 importance: Mapping[str, Tensor]) -> list[tuple[Site, int]]:
    """Return the remaining channels, least important first; ties in the order of the network."""
    ranked = [(float(importance[site.name][channel]), index, int(channel), site)
              for index, site in enumerate(sites)
              for channel in kept[site.name].nonzero().flatten()]
    return [(site, channel) for _, _, channel, site in sorted(ranked, key=lambda entry: entry[:3])]


def _round_up(share: float) -> float:
    scale = 1000
    while int(share * scale + 1) >= scale:  # more digits for shares that would become 1
        scale *= 10
    return int(share * scale + 1) / scale
