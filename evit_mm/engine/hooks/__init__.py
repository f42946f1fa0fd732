"""Hooks around a run, one file each."""

from .mean_loss import MeanLossHook

__all__ = ['MeanLossHook']
