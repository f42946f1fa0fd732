"""Taylor importance of channels, and their removal to a budget of multiply-adds.

Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019): the importance of a
channel with a gate on it is (gate * dLoss/dgate) ** 2, averaged over batches; all channels of the
network are ranked together, the last ones are removed, and the rest is ranked anew.
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
    """Where a model's loss comes from: the same batches each time."""

    def batches(self) -> Iterator[Any]:
        """The batches, the same ones at every call."""

    def loss(self, batch: Any) -> Tensor:
        """The model's loss of a batch, a scalar that can be differentiated."""


@dataclass(frozen=True)
class Ranking:
    """What each channel is worth.

    Attributes:
        importance: By site, (count,); 0 for masked channels.
        loss: The mean loss of the batches.
    """

    importance: Mapping[str, Tensor]
    loss: float


@dataclass(frozen=True)
class Removal:
    """One step.

    Attributes:
        removed: The channels that this step removed, by site.
        macs: Multiply-adds that are left.
        loss: The mean loss before the step.
    """

    removed: Mapping[str, list[int]]
    macs: int
    loss: float


def rank(sites: Sequence[Site], kept: Mapping[str, Tensor], source: LossSource, *,
         after_batch: Callable[[], Any] = lambda: None) -> Ranking:
    """Measure the importance of the channels that are there.

    Args:
        sites: The channels.
        kept: Masks by site, (count,) of 0 and 1.
        source: The loss; the model's parameters need no gradients.
        after_batch: Called after each.

    Raises:
        UserError: If the loss is not a finite number or depends on no channel, or there is no
            batch.
    """
    total = [torch.zeros(site.count, dtype=torch.float64) for site in sites]
    loss_sum, number = 0.0, 0
    for batch in source.batches():
        with gated(sites, kept) as gates:
            loss = source.loss(batch)
            if not loss.isfinite():
                raise UserError(f'the loss of batch {number + 1} is {loss.item()}, so nothing can '
                                'be ranked by it: are these the weights of a model that works?')
            # Without a gradient: parts whose output the loss does not use.
            slopes = torch.autograd.grad(loss, gates, materialize_grads=True)
        for sum_, gate, slope in zip(total, gates, slopes, strict=True):
            sum_ += (gate.detach() * slope).cpu().double() ** 2
        loss_sum += loss.item()
        number += 1
        after_batch()
    if not number:
        raise UserError('there is not one batch to compute a loss of')
    if not any(sum_.any() for sum_ in total):
        raise UserError('no channel changes the loss at all: in a fresh EfficientViT all residual '
                        'branches start at zero, so name trained weights with --checkpoint')
    return Ranking({site.name: sum_ / number for site, sum_ in zip(sites, total, strict=True)},
                   loss_sum / number)


def lowest_share(sites: Sequence[Site], cost: Mapping[str, int], total: int) -> float:
    """The share of the multiply-adds that is left when each site has one channel."""
    return 1 - sum((site.count - 1) * cost[site.name] for site in sites) / total


def check_budget(sites: Sequence[Site], cost: Mapping[str, int], total: int, budget: float) -> None:
    """Check that a budget can be reached.

    Args:
        sites: The channels that may go.
        cost: Multiply-adds that one channel less saves, by site.
        total: Multiply-adds of the whole model.
        budget: The share to keep.

    Raises:
        UserError: If it can't; the lowest that can is named, if there is one.
    """
    if not 0 < budget < 1:
        raise UserError(f'--budget {budget:g} is not between 0 and 1: it is the share of the '
                        'multiply-adds to keep')
    lowest = lowest_share(sites, cost, total)
    if lowest >= 1:
        raise UserError('these kinds save nothing in this model: without their channels all '
                        'multiply-adds remain, so choose others with --kinds')
    if budget < lowest:
        raise UserError(
            f'--budget {budget:g} is out of reach: with one channel left wherever some may go, '
            f'{lowest:.3f} of the multiply-adds remain, so choose from {_rounded_up(lowest):g} to '
            'less than 1')


def prune(sites: Sequence[Site], cost: Mapping[str, int], total: int, *, budget: float, steps: int,
          ranking: Callable[[Mapping[str, Tensor]], Ranking], done: Sequence[Removal] = ()
          ) -> Iterator[Removal]:
    """Remove the least important channels step by step.

    Each step removes an equal part of the multiply-adds that have to go, and passes its mark by
    less than one channel. Every site keeps one channel, so that the network stays connected.

    Args:
        sites: The channels that may go.
        cost: Multiply-adds that one channel less saves, by site.
        total: Multiply-adds of the whole model.
        budget: The share to keep.
        steps: Number of steps.
        ranking: Ranks the channels that the masks leave.
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
        mark = total * (1 - (1 - budget) * (step + 1) / steps)
        ranked = ranking(kept)
        removed: dict[str, list[int]] = {}
        for site, channel in _least_first(sites, kept, ranked.importance):
            if macs <= mark:
                break
            if kept[site.name].sum() > 1:
                kept[site.name][channel] = 0
                removed.setdefault(site.name, []).append(channel)
                macs -= cost[site.name]
        yield Removal(removed, macs, ranked.loss)


def replay(sites: Sequence[Site], steps: Sequence[Removal]) -> dict[str, Tensor]:
    """The masks, (count,) of 0 and 1 by site, after some steps."""
    kept = {site.name: torch.ones(site.count) for site in sites}
    for step in steps:
        for name, channels in step.removed.items():
            kept[name][channels] = 0
    return kept


def _least_first(sites: Sequence[Site], kept: Mapping[str, Tensor],
                 importance: Mapping[str, Tensor]) -> list[tuple[Site, int]]:
    """The channels that are there, least important first; of equals, the network's first."""
    ranked = [(float(importance[site.name][channel]), place, int(channel), site)
              for place, site in enumerate(sites)
              for channel in kept[site.name].nonzero().flatten()]
    return [(site, channel) for _, _, channel, site in sorted(ranked, key=lambda one: one[:3])]


def _rounded_up(share: float) -> float:
    scale = 1000
    while int(share * scale + 1) >= scale:  # more digits for shares that would become 1
        scale *= 10
    return int(share * scale + 1) / scale
