"""Autograd functions that models train with; they know no model."""
