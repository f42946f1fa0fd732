"""Fixtures of the benchmark's tests."""

import pytest


@pytest.fixture
def small_statistics(monkeypatch):
    """Let BN take its statistics from small images; not for timm's ports, built for large ones."""
    monkeypatch.setattr('evit_mm.benchmark.networks._SIDE', 128)
