"""Members of equal speed are reported and written; most tests use an artificial clock."""

import json
from functools import partial

import pytest
import torch
from mmengine.config import Config

from evit_mm.analysis import attention_share
from evit_mm.analysis.attention_share import (
    analyze_attention_share,
    train_one_step,
    write_member,
)
from evit_mm.analysis.matching import Match, match_speed
from evit_mm.benchmark.timing import Timings
from evit_mm.errors import ConfigError, UserError
from evit_mm.models import EfficientViT


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock: times are multiply-adds. Returns the repeats and names it timed."""
    timed = []

    def take_turns(works, given, stopwatch, *, repeats, **_):
        timed.append((repeats, list(works)[1:]))
        macs = {name: float(attention_share.count_macs(work, None)['step'])
                for name, work in works.items()}
        return {name: Timings({'step': [time] * repeats}) for name, time in macs.items()}

    monkeypatch.setattr(attention_share, 'take_turns', take_turns)
    monkeypatch.setattr(attention_share._Search, 'cost', cost)
    return timed


def cost(search, widths, count=attention_share._Search.cost, known={}):  # noqa: B006
    """Count the multiply-adds of widths once for all tests, as it takes half of their time."""
    key = (repr(search.member.describe(widths)), search.conditions.images.shape)
    if key not in known:
        known[key] = count(search, widths)
    return known[key]


def analyze(tmp_path, family='m0', **keywords):
    return analyze_attention_share(
        family, **{'shape': (64, 64), 'repeats': 2, 'batch': 2, 'out': tmp_path, **keywords})


def test_members_of_efficientvit(tmp_path, clock, capsys):
    found = analyze(tmp_path, shares=(0.27, 0, 0.28))
    printed = capsys.readouterr().out
    assert list(found) == ['0.00', '0.27']  # sorted; 0.28 has the layers of 0.27
    assert (2, ['0.00']) in clock and (6, ['0.00']) in clock  # quick and careful
    assert clock[-1] == (6, ['0.00', '0.27'])  # all of them once more
    assert clock.count(clock[-1]) == 1
    content = json.loads((tmp_path / 'proportion.json').read_text())
    assert content['items'] == found and content['settings']['reference'] == 'm0'
    assert found['0.27']['widths'] == [64, 128, 192] and found['0.27']['speed'] == 1
    for key, item in found.items():
        assert item['within_tolerance'] and abs(item['speed'] - 1) <= 0.02
        assert item['speed_quartiles'] == [item['speed']] * 2
        assert item['repeat']['speed'] == item['speed'] and item['repeat']['within_tolerance']
        # By this clock, half the multiply-adds are twice the speed.
        assert item['speed'] == pytest.approx(found['0.27']['macs'] / item['macs'])
        assert 0 < item['memory_bound'] < item['memory_bound_with_softmax_and_activation'] < 1
        assert f'| {item["attention_layers"]} of {item["layers"]} ' in printed
        arch = Config.fromfile(tmp_path / f'arch_share_{key}.py').arch
        backbone = EfficientViT(arch)
        assert list(backbone.arch.embed_dims) == item['widths']
        assert sum(p.numel() for p in backbone.parameters()) == item['parameters']
    assert (tmp_path / 'proportion.png').stat().st_size > 10_000
    before = len(clock)
    again = analyze(tmp_path, shares=(0,))
    assert again == {'0.00': found['0.00']}
    assert len(clock) == before  # reused


@pytest.mark.slow
def test_deit_like_models(tmp_path, clock):
    found = analyze(tmp_path, 'deit', shares=(0.5, 1), shape=(32, 32))
    assert found['0.50']['widths'] == [192, 64, 768] and found['0.50']['layers'] == 24
    assert found['1.00']['built_from']['layers'] == 'A' * 24
    assert all(item['within_tolerance'] for item in found.values())
    assert not list(tmp_path.glob('arch_share_*'))


@pytest.mark.slow
def test_real_clock(tmp_path):
    """With a wide tolerance, because two rounds on a busy machine are not precise."""
    found = analyze(tmp_path, shares=(0.27,), tolerance=0.9)
    assert found['0.27']['speed'] > 0 and found['0.27']['tries'] == 1


def test_missed_speed_is_reported(tmp_path, clock, monkeypatch, capsys):
    def search(ladder, units, speed, *_, **__):
        return Match(ladder[0], speed(ladder[0], careful=True), 7, False)

    monkeypatch.setattr(attention_share, 'match_speed', search)
    found = analyze(tmp_path, shares=(0.4,))
    printed = capsys.readouterr().out
    assert f'{found["0.40"]["speed"]:.3f} (!)' in printed
    assert '(!) share 0.40: the best of 7 widths' in printed


def test_speed_that_does_not_repeat_is_reported(tmp_path, clock, monkeypatch, capsys):
    by_cost = attention_share.take_turns

    def take_turns(works, *arguments, **options):
        turns = by_cost(works, *arguments, **options)
        turns['0.00'].steps['step'] = [1.03 * time for time in turns['0.00'].steps['step']]
        return turns

    searched = analyze(tmp_path, shares=(0, 0.4))
    for item in searched.values():
        del item['repeat']
    path = tmp_path / 'proportion.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'items': searched}))
    monkeypatch.setattr(attention_share, 'take_turns', take_turns)
    capsys.readouterr()
    found = analyze(tmp_path, shares=(0, 0.4))
    printed = capsys.readouterr().out
    repeated = {key: item['repeat'] for key, item in found.items()}
    assert repeated['0.00']['speed'] == pytest.approx(searched['0.00']['speed'] / 1.03)
    assert [item['within_tolerance'] for item in repeated.values()] == [False, True]
    before = len(clock)
    analyze(tmp_path, shares=(0, 0.4))
    assert len(clock) == before + 1  # measured once more, but not searched
    assert f'| {searched["0.00"]["speed"]:.3f} | {repeated["0.00"]["speed"]:.3f} (!) |' in printed
    assert '(!) share 0.00: its speed did not repeat' in printed


def test_interruption_keeps_results(tmp_path, clock, monkeypatch):
    profiled = []

    def interrupted(*arguments):
        profiled.append(arguments)
        if len(profiled) > 2:  # the second member
            raise KeyboardInterrupt
        return original(*arguments)

    original = attention_share.profile_step
    monkeypatch.setattr(attention_share, 'profile_step', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, shares=(0, 0.4))
    assert list(json.loads((tmp_path / 'proportion.json').read_text())['items']) == ['0.00']
    before = len(clock)
    monkeypatch.setattr(attention_share, 'profile_step', original)
    found = analyze(tmp_path, shares=(0, 0.4))
    # The searches were complete, so both are only measured once more.
    assert list(found) == ['0.00', '0.40'] and clock[before:] == [(6, ['0.00', '0.40'])]


def test_interrupted_search_continues(tmp_path, clock, monkeypatch):
    keywords = dict(shares=(0.4,), tolerance=0.001)
    monkeypatch.setattr(attention_share, 'match_speed', partial(match_speed, max_tries=4))
    whole = analyze(tmp_path / 'whole', **keywords)
    needed = len(clock)
    assert [repeats for repeats, _ in clock] == [2, 2, 2, 2, 6, 6]  # careful, and once more
    timed = attention_share.take_turns

    def interrupted(*positional, **options):
        if len(clock) == needed + 2:
            raise KeyboardInterrupt
        return timed(*positional, **options)

    monkeypatch.setattr(attention_share, 'take_turns', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, **keywords)
    monkeypatch.setattr(attention_share, 'take_turns', timed)
    content = json.loads((tmp_path / 'proportion.json').read_text())
    assert len(content['partial']['0.40']) == 2 and not content['items']
    found = analyze(tmp_path, **keywords)
    assert len(clock) == 2 * needed  # no measurement is repeated
    for key in ('widths', 'speed', 'tries'):
        assert found['0.40'][key] == whole['0.40'][key]
    assert 'partial' not in json.loads((tmp_path / 'proportion.json').read_text())


def test_failure_after_the_search_loses_nothing(tmp_path, clock, monkeypatch, capsys):
    def fails(*_):
        raise UserError('no')

    timed = attention_share.take_turns
    monkeypatch.setattr(attention_share, 'train_one_step', fails)
    with pytest.raises(UserError, match='no'):
        analyze(tmp_path, shares=(0.27,))
    path = tmp_path / 'arch_share_0.27.py'
    before, text = len(clock), path.read_text()
    with pytest.raises(UserError, match='no'):  # fails again
        analyze(tmp_path, shares=(0.27,))
    assert len(clock) == before
    path.unlink()
    (tmp_path / 'arch_share_0.99.py').touch()
    monkeypatch.undo()
    capsys.readouterr()
    with monkeypatch.context() as again:
        again.setattr(attention_share, 'take_turns', timed)
        analyze(tmp_path, shares=(0.27,))
    assert path.read_text() == text and clock[before:] == [(6, ['0.27'])]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f'written: {tmp_path / "proportion.json"}, {tmp_path / "proportion.png"} and {path}')


@pytest.mark.parametrize('config', [
    pytest.param('mask_rcnn_evit_m0_coco', marks=pytest.mark.slow), 'upernet_evit_m0_ade20k'])
def test_config_with_a_batch_of_one_small_image(repository, tmp_path, clock, config):
    analyze(tmp_path, shares=(0.27,), shape=(32, 32), batch=1,
            config=repository / 'configs' / f'{config}.py')
    assert (tmp_path / 'arch_share_0.27.py').exists()
    assert {path.suffix for path in tmp_path.iterdir()} == {'.py', '.json', '.png'}


@pytest.mark.slow
def test_reference_can_be_a_detector(repository, tmp_path, clock):
    reference = repository / 'configs' / 'mask_rcnn_evit_m0_coco.py'
    found = analyze(tmp_path, shares=(0.27,), shape=(32, 32), reference=str(reference),
                    tolerance=0.999)
    assert found['0.27']['speed'] > 0


def test_config_that_cannot_be_trained_is_reported_before_the_search(repository, tmp_path, clock):
    config = tmp_path / 'broken.py'
    config.write_text(f"_base_ = {str(repository / 'configs' / 'retinanet_evit_m0_coco.py')!r}\n"
                      'model = dict(bbox_head=dict(in_channels=7))\n')
    with pytest.raises(UserError, match="broken.py can't be trained with the member of share 0.27"):
        analyze(tmp_path, shares=(0.27,), config=config)
    assert not clock


RESULT = {'share': 0.25, 'attention_layers': 6, 'layers': 24, 'built_from': {
    'embed_dims': [32, 64, 96], 'depths': [1, 1, 2], 'num_heads': [4, 4, 4],
    'kernel_sizes': [3, 3, 3, 3]}}


@pytest.mark.parametrize('config, channels', [
    ('retinanet_evit_m4_coco', {'neck': [32, 64, 96]}),
    ('upernet_evit_m0_ade20k', {'decode_head': [16, 32, 64, 96], 'auxiliary_head': 32}),
])
def test_written_configs_can_be_trained(repository, tmp_path, config, channels):
    path = tmp_path / 'arch_share_0.25.py'
    write_member(path, RESULT, 'as fast as m4', str(repository / 'configs' / f'{config}.py'))
    model = Config.fromfile(path).model
    assert model.backbone.arch.embed_dims == [32, 64, 96] and model.backbone.init_cfg is None
    assert {part: model[part].in_channels for part in channels} == channels
    assert train_one_step(path, torch.randn(2, 3, 64, 64)) > 0
    assert '25% attention layers (6 of 24), as fast as m4' in path.read_text()


def test_lists_of_heads_and_necks_that_take_some_feature_maps(repository, tmp_path):
    base = str(repository / 'configs' / 'upernet_evit_m0_ade20k.py')
    config, path = tmp_path / 'config.py', tmp_path / 'arch.py'
    config.write_text(f'''_base_ = {base!r}
head = dict(type='FCNHead', channels=16, num_convs=1, num_classes=150, norm_cfg=dict(type='BN'))
model = dict(
    decode_head=dict(_delete_=True, in_channels=[64, 192], in_index=[1, 3],
                     input_transform='resize_concat', **head),
    auxiliary_head=[dict(in_channels=128, in_index=2, **head), dict(in_channels=192, **head)])
''')
    write_member(path, RESULT, '', str(config))
    model = Config.fromfile(path).model
    assert model.decode_head.in_channels == [32, 96]
    assert [head.in_channels for head in model.auxiliary_head] == [64, 96]
    assert train_one_step(path, torch.randn(2, 3, 64, 64)) > 0
    config.write_text(f'''_base_ = {str(repository / 'configs' / 'retinanet_evit_m0_coco.py')!r}
model = dict(neck=[
    dict(type='FPN', in_channels=[64, 128, 192], out_channels=256, num_outs=5),
    dict(type='BFP', in_channels=256, num_levels=5, refine_level=2, refine_type='conv')])
''')
    write_member(path, RESULT, '', str(config))
    neck = Config.fromfile(path).model.neck
    assert [part.in_channels for part in neck] == [[32, 64, 96], 256]


def test_other_configs_are_refused(tmp_path):
    config = tmp_path / 'resnet.py'
    config.write_text("model = dict(type='X', backbone=dict(type='ResNet'))")
    with pytest.raises(ConfigError, match='is not an EfficientViT'):
        write_member(tmp_path / 'arch.py', RESULT, '', str(config))


@pytest.mark.parametrize('match, keywords', [
    ('--family m9 is unknown', dict(family='m9')),
    ('between 0 and 1', dict(shares=(27,))),
    ('--tolerance must be between 0 and 1', dict(tolerance=2)),
    ('--shape must be positive', dict(shape=(0, 64))),
    ('no such model', dict(reference='m9')),
    ('--family deit has none', dict(family='deit', config='x.py')),
    ('no such .*absent.py', dict(config='absent.py')),
    (r"vit_tiny_patch16_224 can't run on \(2, 3, 8, 8\) in inference",
     dict(reference='timm://vit_tiny_patch16_224', shape=(8, 8))),
])
def test_mistakes_are_reported_before_the_work(tmp_path, clock, match, keywords):
    with pytest.raises(UserError, match=match):
        analyze(tmp_path, **keywords)
    assert not clock
