"""Times of all kinds add up to the total, in every form and mode."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from evit_mm.analysis import runtime
from evit_mm.analysis.operations import ADD, COMPUTE, COPY, KINDS, NORM, OTHER, SOFTMAX
from evit_mm.analysis.runtime import (
    Profile,
    Step,
    analyze_runtime,
    average,
    build_step,
    profile_step,
    summarize,
)
from evit_mm.errors import UserError

CPU = torch.device('cpu')


def event(name, own, parent=None, kernels=()):
    """Return an event of a profile with the attributes that `Profile` reads; in microseconds."""
    return SimpleNamespace(
        name=name, self_cpu_time_total=own, cpu_parent=parent, device_type=DeviceType.CPU,
        kernels=[SimpleNamespace(name=kernel, duration=time) for kernel, time in kernels])


def kernel(name, time, *, annotation=False):
    return SimpleNamespace(name=name, device_type=DeviceType.CUDA, self_cpu_time_total=0,
                           is_user_annotation=annotation,
                           time_range=SimpleNamespace(elapsed_us=lambda: time))


def hand_made_events():
    convolution = event('aten::conv2d', 1)
    return [convolution, event('aten::mkldnn_convolution', 39, convolution),
            event('aten::empty', 2, convolution), event('aten::copy_', 10),
            event('aten::add_', 8), event('aten::native_batch_norm', 20), event('aten::relu', 15),
            event('aten::max_pool2d', 5)]


def test_hand_made_profile():
    found = Profile.from_events(hand_made_events())
    assert found.kinds == pytest.approx({COMPUTE: .042, COPY: .010, ADD: .008, NORM: .020,
                                         SOFTMAX: .015, OTHER: .005})
    assert found.total == pytest.approx(.1) and sum(found.shares.values()) == pytest.approx(1)
    assert found.memory_bound() == pytest.approx(.38)
    assert found.memory_bound(with_softmax=True) == pytest.approx(.53)
    item = summarize(found)
    assert item['largest_of_other'] == [{'operation': 'aten::max_pool2d', 'ms': .005}]
    assert item['operations'][0] == {'operation': 'aten::mkldnn_convolution', 'kind': COMPUTE,
                                     'ms': .039}


def test_kernels_have_the_kind_of_the_operation_that_launched_them():
    softmax = event('aten::softmax', 100)
    events = [softmax, event('aten::_softmax', 50, softmax, [('void softmax_warp<...>', 30)]),
              event('aten::empty', 7), kernel('void softmax_warp<...>', 30),
              kernel('triton_poi_fused_add_0', 20), kernel('## a range ##', 99, annotation=True)]
    found = Profile.from_events(events, on_device=True)
    assert found.total == pytest.approx(.05)
    assert {kind: time for kind, time in found.kinds.items() if time} == pytest.approx(
        {SOFTMAX: .03, ADD: .02})


def test_middle_half_is_averaged():
    times = [100, 1, 4, 2]  # of which 2 and 4 are the middle
    found = average([Profile({(COPY, 'aten::copy_'): time}, time) for time in times])
    assert found.total == 3 and found.kinds[COPY] == 3
    assert average([Profile({(COPY, 'aten::copy_'): 5}, 5)]).total == 5


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', ['m0', 'timm://swin_tiny_patch4_window7_224',
                                  'timm://deit_tiny_patch16_224', 'torchvision://resnet50'])
def test_kinds_add_up_to_the_total(name, train):
    """The sum equals the profiler's own; almost nothing is left to 'other'."""
    step = build_step(name, torch.randn(2, 3, 64, 64), train=train)
    step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        step()
    found = Profile.from_events(profiler.events())
    total = profiler.key_averages().self_cpu_time_total / 1e3
    assert sum(found.kinds.values()) == pytest.approx(total, rel=0.01)
    assert found.total == pytest.approx(total, rel=0.01)
    assert sum(found.shares.values()) == pytest.approx(1)
    # Operations that are not in the table have no visible share.
    pooling = sum(time for (kind, name), time in found.times.items()
                  if kind == OTHER and 'pool' in name.lower())
    assert (found.kinds[OTHER] - pooling) / total < 0.05
    assert found.kinds[COMPUTE] > 0 and found.kinds[NORM] > 0 and found.kinds[COPY] > 0


@pytest.mark.parametrize('config, train', [
    ('retinanet_evit_m0_coco', True), ('upernet_evit_m0_ade20k', True),
    ('mask_rcnn_evit_m0_coco', False),
    pytest.param('mask_rcnn_evit_m0_coco', True, marks=pytest.mark.slow),
    pytest.param('retinanet_evit_m0_coco', False, marks=pytest.mark.slow),
    pytest.param('upernet_evit_m0_ade20k', False, marks=pytest.mark.slow)])
def test_whole_models(repository, config, train):
    """In training, gradients reach the backbone and a head."""
    step = build_step(str(repository / 'configs' / f'{config}.py'), torch.randn(2, 3, 64, 64),
                      train=train)
    step()
    found = profile_step(step, CPU)
    assert found.kinds[COMPUTE] > 0
    # Pooling and interpolation are small, but not the RoIAlign of Mask R-CNN; the Python of folded
    # convolutions is not either, next to images of 64x64.
    known = sum(time for (kind, name), time in found.times.items()
                if kind == OTHER and ('roi_align' in name or '_ConvFrozenBN' in name))
    assert not [name for kind, name in found.times if kind == OTHER and 'Fold' in name]
    assert (found.kinds[OTHER] - known) / found.total < 0.15
    if train:
        reached = {name.split('.')[0] for name, parameter in step.model.named_parameters()
                   if parameter.grad is not None and parameter.grad.count_nonzero()}
        assert 'backbone' in reached and {'bbox_head', 'roi_head', 'decode_head'} & reached


class Toy(nn.Module):
    """Model with nested outputs, one of which has no gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, images):
        out = self.layer(images)
        return {'maps': [out, (out * 2,)], 'count': 3, 'largest': out.argmax()}


def test_training_step_uses_every_output():
    images, model = torch.randn(1, 3, 4, 4), Toy()
    Step(model, images, train=True)()
    found = model.layer.bias.grad.clone()
    model.zero_grad()
    out = model.layer(images)
    (out.square().mean() + (2 * out).square().mean()).backward()
    torch.testing.assert_close(found, model.layer.bias.grad)
    Step(model, images, train=False)()
    assert not model.training


def test_model_without_gradients_is_reported(tmp_path, monkeypatch):
    step = Step(nn.ReLU(), torch.randn(1, 3, 4, 4), train=True)
    monkeypatch.setattr(runtime, 'build_step', lambda *_, **__: step)
    with pytest.raises(UserError, match="m0 can't run on .* in training: .*has a gradient"):
        analyze(tmp_path, 'm0', mode='train')


def test_deploy_form_has_no_normalisation():
    found = profile_step(build_step('m0:deploy', torch.randn(1, 3, 64, 64)), CPU)
    assert found.kinds[NORM] == 0 and found.kinds[COMPUTE] > 0


def test_fused_attention_can_be_taken_apart():
    images = torch.randn(1, 3, 64, 64)
    shares = [profile_step(build_step('timm://deit_tiny_patch16_224', images,
                                      fused_attention=fused), CPU).times
              for fused in (True, False)]
    softmax = [(SOFTMAX, 'aten::_softmax') in times for times in shares]
    assert softmax == [False, True]
    assert any('scaled_dot_product' in name for _, name in shares[0])


def analyze(tmp_path, *models, **keywords):
    return analyze_runtime(models, repeats=1, out=tmp_path, **keywords)


def test_models_side_by_side(tmp_path, capsys):
    found = analyze(tmp_path, 'm0', 'timm://deit_tiny_patch16_224', shape=(64, 96))
    printed = capsys.readouterr().out
    assert list(found) == ['m0', 'timm://deit_tiny_patch16_224']
    content = json.loads((tmp_path / 'runtime.json').read_text())
    assert content['items'] == found and content['settings']['shape'] == [64, 96]
    assert (tmp_path / 'runtime.png').stat().st_size > 10_000
    for name, item in found.items():
        assert sum(item['shares'].values()) == pytest.approx(1)
        assert sum(item['kinds_ms'].values()) == pytest.approx(item['profiler_ms'], rel=0.01)
        row = next(line for line in printed.splitlines() if line.startswith(f'| {name} '))
        cells = [float(cell) for cell in row.split('|')[3:-1]]
        assert sum(cells[:len(KINDS)]) == pytest.approx(100, abs=0.4)  # six roundings
        assert cells[-2] == pytest.approx(100 * item['memory_bound'], abs=0.06)
        assert f'other of {name}:' in printed


def test_training_adds_up_to_the_total(tmp_path, monkeypatch):
    profilers = []

    def recorded(**options):
        profilers.append(profile(**options))
        return profilers[-1]

    monkeypatch.setattr(runtime, 'profile', recorded)
    item = analyze(tmp_path, 'm0', mode='train', batch=2, shape=(64, 64))['m0']
    (profiler,) = profilers
    total = profiler.key_averages().self_cpu_time_total / 1e3
    assert sum(item['kinds_ms'].values()) == pytest.approx(total, rel=0.01)
    assert any('backward' in entry['operation'].lower() for entry in item['operations'])


def test_interruption_keeps_the_first_model(tmp_path, monkeypatch):
    measure, measured = runtime._measure, []

    def interrupted(name, *arguments):
        measured.append(name)
        if measured == ['m0', 'm1']:
            raise KeyboardInterrupt
        return measure(name, *arguments)

    monkeypatch.setattr(runtime, '_measure', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, 'm0', 'm1', shape=(64, 64))
    first = json.loads((tmp_path / 'runtime.json').read_text())['items']
    assert list(first) == ['m0']
    analyze(tmp_path, 'm0', 'm1', shape=(64, 64))
    assert measured == ['m0', 'm1', 'm1']
    items = json.loads((tmp_path / 'runtime.json').read_text())['items']
    assert list(items) == ['m0', 'm1'] and items['m0'] == first['m0']


def test_second_run_reuses_results(tmp_path, monkeypatch):
    first = analyze(tmp_path, 'm0', shape=(64, 64))
    monkeypatch.setattr('evit_mm.analysis.runtime.build_step', None)  # nothing to build
    assert analyze(tmp_path, 'm0', shape=(64, 64)) == first
    with pytest.raises(UserError, match='mode: inference in the file, train in this run'):
        analyze(tmp_path, 'm0', shape=(64, 64), mode='train')


@pytest.mark.parametrize('match, models, keywords', [
    ('no such model', ['m9'], {}),
    ('m4:fast', ['m0', 'm4:fast'], {}),
    ('has no deploy form', ['torchvision://resnet50:deploy'], {}),
    ("deploy form can't be trained", ['m0:deploy'], dict(mode='train')),
    ('--shape must be positive', ['m0'], dict(shape=(0, 64))),
    ('--batch must be positive', ['m0'], dict(batch=0)),
    ('--device quantum', ['m0'], dict(device='quantum')),
    ("has no such argument", ['m0'], dict(options={'size': 3})),
    ("can't run on", ['m0'], dict(mode='train', shape=(64, 64), batch=1)),
    ('needs more memory than', ['m0'], dict(batch=10 ** 9)),
])
def test_mistakes(tmp_path, match, models, keywords):
    with pytest.raises(UserError, match=match):
        analyze(tmp_path, *models, **keywords)


def test_results_before_a_failure_are_kept(tmp_path):
    with pytest.raises(UserError, match='no such .*absent.py'):
        analyze(tmp_path, 'm0', 'absent.py', shape=(64, 64))
    assert list(json.loads((tmp_path / 'runtime.json').read_text())['items']) == ['m0']


def test_command_line(tmp_path, monkeypatch, command):
    """Every flag arrives as the keyword of the same name."""
    received = []
    monkeypatch.setattr(runtime, 'analyze_runtime',
                        lambda *args, **keywords: received.append((args, keywords)))
    command('runtime', 'm0', 'm1:deploy', '--mode', 'train', '--shape', 64, 96, '--batch', 3,
            '--repeats', 4, '--unfused', '--options', 'norm_eval=True', '--out', tmp_path,
            '--overwrite', '--device', 'cuda', '--threads', 3, '--seed', 5)
    assert received == [((['m0', 'm1:deploy'],), dict(
        mode='train', shape=[64, 96], batch=3, repeats=4, unfused=True,
        options={'norm_eval': True}, out=tmp_path, overwrite=True, device='cuda', threads=3,
        seed=5))]
