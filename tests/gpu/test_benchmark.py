"""Graphs, clocks and memory of the benchmark on the device."""

import pytest
import torch
from random_models import SMALLEST

from evit_mm.benchmark import benchmark, benchmark_gpu
from evit_mm.benchmark.forms import Form, largest_difference, prepare
from evit_mm.benchmark.memory import peak_bytes
from evit_mm.benchmark.networks import build_networks
from evit_mm.benchmark.suite import Case
from evit_mm.benchmark.timing import Stopwatch

pytestmark = pytest.mark.cuda


def test_peak_memory(device):
    def run():
        temporary = torch.empty(8 << 20, dtype=torch.uint8, device=device)
        del temporary
        return torch.empty(4 << 20, dtype=torch.uint8, device=device)

    before = torch.empty(3 << 20, dtype=torch.uint8, device=device)
    assert peak_bytes(run, device) == pytest.approx(8 << 20, rel=0.01)
    del before


def test_the_clock_waits_for_the_work(device):
    """Twenty products take longer than one, although launching them takes no time on CUDA."""
    x = torch.randn(768, 768, device=device)
    stopwatch = Stopwatch(device)
    times = []
    for _ in range(5):
        stopwatch.start()
        y = x @ x
        stopwatch.mark()
        for _ in range(20):
            y = x @ y
        stopwatch.mark()
        times.append(stopwatch.read())
    one, twenty = (sorted(column)[2] for column in zip(*times, strict=True))
    assert 0 < one < twenty


def test_rows(device):
    rows = benchmark(['m0'], device=device.type, shapes=[(128, 160)], batch=2, repeats=2,
                     dtypes=['fp32', 'bf16', *['fp16'] * (device.type == 'cuda')],
                     layouts=['contiguous', 'channels-last'],
                     cuda_graphs=device.type == 'cuda', with_neck=True)
    assert {row.form.graph for row in rows} == {False, device.type == 'cuda'}
    for row in rows:
        assert row.failure is None and row.timings.milliseconds > 0 and row.floor > 0, row
        assert row.form.graph or row.peak > 0
        assert (row.difference or 0) < (1e-4 if row.form.dtype == 'fp32' else 0.2), row


def test_training_rows(device):
    rows = benchmark(['m0'], mode='train', device=device.type, shapes=[(128, 160)], batch=2,
                     repeats=2, dtypes=['fp32', 'bf16'], cuda_graphs=device.type == 'cuda',
                     with_neck=True, forms=['eager', 'folded', 'efficient'])
    for row in rows:
        assert row.failure is None and row.timings.milliseconds > 0, row
        assert (row.difference or 0) < (1e-3 if row.form.dtype == 'fp32' else 0.1), row


def test_the_suite(device, tmp_path, monkeypatch):
    monkeypatch.setattr('evit_mm.benchmark.networks._SIDE', 128)
    rows = benchmark_gpu(out=tmp_path, device=device.type, repeats=2, cases=[
        Case(('m0',), (64, 64)), Case(('m0',), (64, 64), 2, 'train')])
    assert {row.form.graph for row in rows} == {False, device.type == 'cuda'}
    for row in rows:
        assert row.failure is None or row.peer, row
    table = (tmp_path / 'benchmark.md').read_text()
    assert ', graph |' in table.replace('  ', '') or device.type == 'cpu'
    assert 'driver' in table or device.type == 'cpu'


def test_compiled_graphs(cuda):
    network, = build_networks(['m0'], options=dict(arch=SMALLEST))
    image = torch.randn(2, 3, 128, 160, device=cuda)
    torch.compiler.reset()
    for mode in ('inference', 'train'):
        expected = prepare(network.model, Form(), image, mode=mode).results()
        for form in (Form('compiled'), Form('compiled', graph=True)):
            prepared = prepare(network.model, form, image, mode=mode)
            for _ in range(2):
                assert largest_difference(prepared.results(), expected) < 1e-3


def test_a_graph_computes_anew(cuda):
    """A replay reads the images that are in place then, and gives the eager results."""
    network, = build_networks(['m0'], with_head=True)
    image, other = torch.randn(2, 2, 3, 128, 160, device=cuda)
    for mode, names in (('inference', ('eager', 'deploy')), ('train', ('eager', 'folded'))):
        for name in names:
            eager = prepare(network.model, Form(name), image, mode=mode)
            graph = prepare(network.model, Form(name, graph=True), image, mode=mode)
            first = graph.results()
            assert largest_difference(first, eager.results()) < 1e-4
            graph.inputs.copy_(other)
            eager.inputs.copy_(other)
            second = graph.results()
            assert largest_difference(second, eager.results()) < 1e-4
            assert largest_difference(second, first) > 1e-3
            if mode == 'train':
                gradients = [{key: parameter.grad.cpu() for key, parameter
                              in prepared.model.named_parameters()}
                             for prepared in (graph, eager)]
                assert largest_difference(*gradients) < 1e-2
            image, other = torch.randn(2, 2, 3, 128, 160, device=cuda)
