"""What models cost: parameters, arithmetic and time, part by part."""

from .cost import PartCost, measure

__all__ = ['PartCost', 'measure']
