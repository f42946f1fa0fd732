"""Head similarity: exact on maps made by hand, and on the command line."""

import argparse
import json
import os
from math import sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm.analysis import head_similarity as heads
from evit_mm.analysis.attention_maps import capture_maps
from evit_mm.analysis.head_similarity import head_similarity, pairwise_cosines
from evit_mm.analysis.images import (
    Preprocessing,
    evenly_spaced,
    files_fingerprint,
    list_images,
    read_image,
)
from evit_mm.cli.analyze.heads import add_heads_parser
from evit_mm.errors import UserError
from evit_mm.models import ARCHS, EfficientViT
from evit_mm.models.attention import CascadedGroupAttention

IDENTITY = torch.eye(2)
UNIFORM = torch.full((2, 2), 0.5)
SWAP = IDENTITY.flip(0)


@pytest.mark.parametrize('maps,expected', [
    ([UNIFORM, UNIFORM], [[1, 1], [1, 1]]),
    ([IDENTITY, SWAP], [[1, 0], [0, 1]]),
    ([IDENTITY, SWAP, IDENTITY], [[1, 0, 1], [0, 1, 0], [1, 0, 1]]),
    ([IDENTITY, UNIFORM], [[1, 1 / sqrt(2)], [1 / sqrt(2), 1]]),
])
def test_cosines_by_hand(maps, expected):
    found = pairwise_cosines(torch.stack(maps)[None])
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_cosines_leave_queries_out():
    maps = torch.stack([torch.tensor([[1., 0], [1, 0]]), torch.tensor([[1., 0], [0, 1]])])[None]
    assert pairwise_cosines(maps)[0, 0, 1].item() == pytest.approx(0.5)
    assert pairwise_cosines(maps, torch.tensor([[True, False]]))[0, 0, 1].item() == 1
    assert pairwise_cosines(maps, torch.tensor([[False, True]]))[0, 0, 1].item() == 0


def attention_of_biases(biases):
    """Heads whose maps are the softmax of bias tables of 2x2 windows, whatever the input."""
    count = len(biases)
    attention = CascadedGroupAttention(8 * count, count, 8, 2, (3,) * count,
                                       norm_cfg=dict(type='BN')).eval()
    with torch.no_grad():
        for qkv in attention.qkv:
            qkv.norm.weight.zero_()
        attention.attention_biases.copy_(torch.tensor(biases))
    return attention


# A token of a 2x2 window attends to itself alone, or to the one in the opposite corner alone.
SELF, OPPOSITE = [200., 0, 0, 0], [0, 0, 0, 200.]


def test_one_pair_of_three_heads():
    block, = head_similarity(attention_of_biases([SELF, OPPOSITE, SELF]),
                             [torch.randn(3, 24, 4, 6), torch.randn(1, 24, 2, 2)])
    assert block.maximum_per_head == (1, 0, 1)
    assert block.maximum == pytest.approx(2 / 3) and block.mean == pytest.approx(1 / 3)
    assert (block.heads, block.tokens, block.windows) == (3, 4, 3 * 6 + 1)


@pytest.mark.parametrize('biases,expected', [([SELF, SELF], 1), ([SELF, OPPOSITE], 0)])
def test_identical_and_orthogonal_heads(biases, expected):
    block, = head_similarity(attention_of_biases(biases), [torch.randn(2, 16, 4, 4)])
    assert block.maximum == block.mean == expected


def test_averages_do_not_depend_on_batches():
    model = randomised(EfficientViT('m2'))
    images = torch.randn(3, 3, 96, 130)
    together = head_similarity(model, [images])
    apart = head_similarity(model, images.split(1))
    assert len(together) == 6 and len({round(block.maximum, 3) for block in together}) > 1
    for one, other in zip(together, apart, strict=True):
        assert 0 < one.mean <= one.maximum < 0.999
        assert one.maximum == pytest.approx(other.maximum, rel=1e-4)
        assert one.mean == pytest.approx(other.mean, rel=1e-4)
        assert (one.block, one.windows) == (other.block, other.windows)


def test_padded_queries_do_not_count():
    """A map of 4x4 tokens in a window of 7x7: 16 queries count, all 49 keys."""
    model = randomised(EfficientViT('m0', out_indices=(0,)), gain=2)
    images, found = torch.randn(1, 3, 64, 64), []
    with capture_maps(model, found.append), torch.no_grad():
        model(images)
    rows = [7 * y + x for y in range(4) for x in range(4)]
    own = pairwise_cosines(found[0].maps[:, :, rows])[0].fill_diagonal_(0)
    block, = head_similarity(model, [images])
    assert block.maximum == pytest.approx(own.amax(1).mean().item(), rel=1e-4)
    assert block.mean == pytest.approx(own.sum().item() / 12, rel=1e-4)
    everything = pairwise_cosines(found[0].maps)[0].fill_diagonal_(0)
    assert block.mean != pytest.approx(everything.sum().item() / 12, rel=1e-2)


def test_the_mean_is_over_windows():
    """Of a batch of two images it is the mean of both images' own figures."""
    model = randomised(EfficientViT('m0', out_indices=(0,)))
    images = torch.randn(2, 3, 224, 224)
    both, = head_similarity(model, [images])
    alone = [head_similarity(model, [image[None]])[0] for image in images]
    assert both.windows == 8
    assert both.maximum == pytest.approx(sum(block.maximum for block in alone) / 2, rel=1e-4)


def randomised(model, gain=0.5):
    """Weights under which no branch is zero; a deep model with much gain is chaotic."""
    for name, tensor in model.state_dict().items():
        if name.endswith('running_var') or (tensor.dim() == 1 and name.endswith('weight')):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() > 1 and tensor.is_floating_point():
            tensor.normal_(0, gain * tensor[0].numel() ** -0.5)
    return model.eval()


def test_timms_port_has_our_similarity():
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    theirs = randomised(timm.create_model('efficientvit_m1'))
    ours = EfficientViT('m1', window_sizes=(7, 7, 4)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    images = torch.randn(1, 3, 224, 224)
    for one, other in zip(head_similarity(ours, [images]), head_similarity(theirs, [images]),
                          strict=True):
        assert one.maximum == pytest.approx(other.maximum, rel=1e-4)
        assert one.mean == pytest.approx(other.mean, rel=1e-4)
        assert (one.heads, one.windows, one.tokens) == (other.heads, other.windows, other.tokens)


def test_the_class_token_is_kept_or_dropped():
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = timm.create_model('deit_tiny_patch16_224', depth=1, img_size=64).eval()
    torch.nn.init.normal_(model.blocks[0].attn.qkv.weight, std=0.5)
    images = torch.randn(2, 3, 64, 64)
    kept, = head_similarity(model, [images])
    dropped, = head_similarity(model, [images], class_token=False)
    assert (kept.tokens, dropped.tokens) == (17, 16)
    assert kept.maximum != pytest.approx(dropped.maximum, rel=1e-3)


def test_preprocessing_is_torchvisions():
    from torchvision import transforms

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (75, 110, 3), np.uint8))
    expected = transforms.Compose([
        transforms.Resize(64, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(56),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])(image)
    actual = Preprocessing((56, 56))(image)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert str(Preprocessing()).startswith('bicubic to cover 256x256, cropped to 224x224, rgb')
    flipped = Preprocessing((56, 56), channels='bgr', mean=(0, 0, 0), std=(1, 1, 1))(image)
    plain = Preprocessing((56, 56), mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert torch.equal(flipped, plain.flip(0))


@pytest.mark.parametrize('size', [(30, 500), (500, 30), (48, 80), (1, 1)])
def test_any_image_covers_any_shape(size):
    image = Image.new('RGB', size, (255, 255, 255))
    pixels = Preprocessing((48, 80), crop=1.0, mean=(0, 0, 0), std=(255, 255, 255))(image)
    assert pixels.shape == (3, 48, 80) and pixels.min() == 1  # no border of black


def test_images_of_a_folder(tmp_path):
    for name in ('b/two.JPEG', 'a/one.png', 'b/c/three.jpg'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('L', (8, 6), 7).save(path)
    (tmp_path / 'a' / 'notes.txt').touch()
    found = list_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        'a/one.png', 'b/c/three.jpg', 'b/two.JPEG']
    assert read_image(found[0]).getpixel((0, 0)) == (7, 7, 7)
    assert evenly_spaced(list('abcdefg'), 3) == ['a', 'c', 'e']
    assert evenly_spaced(found, 9) == found


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(random.integers(0, 255, (70, 90, 3), np.uint8)).save(
            folder / f'{index}.png')
    return folder


def run(tmp_path, *arguments):
    parser = argparse.ArgumentParser()
    add_heads_parser(parser.add_subparsers())
    options = parser.parse_args(['heads', *map(str, arguments), '--out', str(tmp_path / 'out')])
    options.action(options)
    return json.loads((tmp_path / 'out' / 'heads.json').read_text())


def test_the_command_line(tmp_path, images, capsys):
    found = run(tmp_path, 'm0', 'm1', '--images', images, '--num-images', 2, '--shape', 64, 96)
    assert found['settings']['num_images'] == 2 and found['settings']['of_images'] == 3
    assert 'Cosine of two heads' in found['settings']['convention']
    item = found['items']['m0']
    assert item['images'] == 2 and item['weights'] == 'random, seed 0'
    assert [block['heads'] for block in item['blocks']] == [4] * 6
    assert item['maximum'] == pytest.approx(sum(b['maximum'] for b in item['blocks']) / 6)
    assert (tmp_path / 'out' / 'heads.png').stat().st_size > 5000
    printed = capsys.readouterr().out
    assert '2 of 3 images' in printed and 'cropped to 64x96' in printed
    assert 'weights random, seed 0' in printed and 'Cosine of two heads' in printed
    assert max(map(len, printed.splitlines())) < 200
    assert printed.count('| stages.0.blocks.0 ') == 2 and printed.count('| all ') == 2


def test_a_repeated_run_goes_on(tmp_path, images, monkeypatch):
    arguments = ('m0', 'm1', '--images', images, '--shape', 32, 32)
    whole, calls = heads.head_similarity, []

    def interrupted(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*given, **named)

    monkeypatch.setattr(heads, 'head_similarity', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    kept = json.loads((tmp_path / 'out' / 'heads.json').read_text())['items']
    assert list(kept) == ['m0']
    found = run(tmp_path, *arguments)['items']
    assert len(calls) == 3 and found['m0'] == kept['m0'] and list(found) == ['m0', 'm1']
    with pytest.raises(UserError, match='class_token'):
        run(tmp_path, *arguments, '--class-token', 'drop')


def test_an_interrupted_model_goes_on(tmp_path, images, monkeypatch):
    """It finds what a run without an interruption does, and reads no image twice."""
    arguments = ('m2', '--images', images, '--shape', 64, 96, '--batch', 1)
    whole = run(tmp_path / 'whole', *arguments)['items']
    monkeypatch.setattr(heads, '_SAVED_EVERY', 1)
    plain, read = heads.read_image, []

    def interrupted(path):
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(heads, 'read_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    found = json.loads((tmp_path / 'out' / 'heads.json').read_text())
    assert not found['items'] and found['partial']['m2']['images'] == 2
    found = run(tmp_path, *arguments)
    assert found['items'] == whole and 'partial' not in found
    assert read == ['0.png', '1.png', '2.png', '2.png']


def test_an_interrupted_model_does_not_go_on_with_other_images(tmp_path, images, monkeypatch):
    """Nor with one that was edited, whose name and size stay; those that were not chosen may."""
    arguments = ('m0', '--images', images, '--shape', 32, 32, '--batch', 1, '--num-images', 2)
    monkeypatch.setattr(heads, '_SAVED_EVERY', 1)
    plain = heads.read_image

    def interrupted(path):
        if path.name == '1.png':
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(heads, 'read_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *arguments)
    monkeypatch.setattr(heads, 'read_image', plain)
    state = (images / '0.png').stat()
    os.utime(images / '0.png', ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    with pytest.raises(UserError, match=f'what is in {images} is not what it was when .*heads.js'):
        run(tmp_path, *arguments)
    os.utime(images / '0.png', ns=(state.st_atime_ns, state.st_mtime_ns))
    os.utime(images / '2.png')
    assert run(tmp_path, *arguments)['items']['m0']['images'] == 2
    (images / '0.png').rename(images / '00.png')
    with pytest.raises(UserError, match='is not what it was'):
        run(tmp_path, *arguments)
    assert run(tmp_path, *arguments, '--overwrite')['items']


def test_fingerprints_of_files(tmp_path):
    """They change with name, size, time and order of the files."""
    paths = [tmp_path / 'a', tmp_path / 'b']
    for path in paths:
        path.write_bytes(path.name.encode())
        os.utime(path, ns=(0, 10))
    found = [files_fingerprint(paths), files_fingerprint(paths[::-1]), files_fingerprint(paths[:1])]
    os.utime(paths[0], ns=(0, 11))
    found.append(files_fingerprint(paths))
    paths[0].write_bytes(b'aa')
    os.utime(paths[0], ns=(0, 10))
    found.append(files_fingerprint(paths))
    paths[0].unlink()
    found.append(files_fingerprint(paths))
    assert len(set(found)) == 6
    paths[0].write_bytes(b'x')
    os.utime(paths[0], ns=(0, 10))
    assert files_fingerprint(paths) == found[0]


def test_a_mistake_blocks_no_further_run(tmp_path, images):
    with pytest.raises(UserError):
        run(tmp_path, 'm9', '--images', images, '--num-images', 1)
    assert run(tmp_path, 'm0', '--images', images, '--num-images', 2, '--shape', 32, 32)['items']


def test_another_checkpoint_in_the_same_file_is_refused(tmp_path, images, capsys):
    arguments = ('m0', '--images', images, '--shape', 32, 32, '--checkpoint', tmp_path / 'm0.pth')
    model = randomised(EfficientViT('m0'))
    torch.save(model.state_dict(), tmp_path / 'm0.pth')
    size = (tmp_path / 'm0.pth').stat().st_size
    first = run(tmp_path, *arguments)['items']
    capsys.readouterr()
    assert run(tmp_path, *arguments)['items'] == first
    assert '1 of 1 result is from an earlier run of ' in capsys.readouterr().out
    torch.save(randomised(model).state_dict(), tmp_path / 'm0.pth')
    assert (tmp_path / 'm0.pth').stat().st_size == size
    with pytest.raises(UserError, match='m0.pth is not what it was'):
        run(tmp_path, *arguments)
    assert run(tmp_path, *arguments, '--overwrite')['items'] != first


def test_random_weights_are_the_seeds_whatever_came_before(tmp_path, images):
    arguments = ('--images', images, '--shape', 64, 64, '--overwrite')
    alone = run(tmp_path, 'm1', *arguments)['items']['m1']
    second = run(tmp_path, 'm0', 'm1', *arguments)['items']['m1']
    other = run(tmp_path, 'm1', *arguments, '--seed', 1)['items']['m1']
    assert alone == second and alone['blocks'] != other['blocks']


def test_blocks_of_one_head_are_left_out_of_means(tmp_path, images, capsys):
    config = tmp_path / 'own.py'
    config.write_text("arch = dict(embed_dims=[16] * 3, depths=[1] * 3, num_heads=[1, 2, 1])\n"
                      "model = dict(type='EfficientViT', arch=arch)\n")
    item, = run(tmp_path, config, '--images', images, '--shape', 64, 64)['items'].values()
    single, double, last = item['blocks']
    assert single['maximum'] is single['mean'] is last['maximum'] is None
    assert item['maximum'] == double['maximum'] and item['mean'] == double['mean']
    row = next(line for line in capsys.readouterr().out.splitlines() if 'stages.0' in line)
    assert [cell.strip() for cell in row.split('|')[3:-1]] == ['1', '1', '49', '', '']


def test_a_detector_with_its_checkpoint(tmp_path, images, repository):
    from evit_mm.benchmark.model_factory import build_subject

    config = repository / 'configs' / 'retinanet_evit_m0_shapes.py'
    detector = build_subject(str(config))
    randomised(detector.backbone)
    torch.save({'state_dict': detector.state_dict()}, tmp_path / 'detector.pth')
    torch.save(detector.backbone.state_dict(), tmp_path / 'backbone.pth')
    arguments = ('--images', images, '--shape', 64, 64, '--overwrite')
    whole = run(tmp_path, config, *arguments, '--checkpoint', tmp_path / 'detector.pth')['items']
    alone = run(tmp_path, 'm0', *arguments, '--weights', tmp_path / 'backbone.pth')['items']
    item = whole[str(config)]
    assert item['weights'].endswith('detector.pth')
    assert 'bilinear to cover 64x64' in item['preprocessing'] and 'rgb' in item['preprocessing']
    assert [block['block'] for block in item['blocks']] == [
        block['block'] for block in alone['m0']['blocks']]
    batch = torch.stack([Preprocessing((64, 64), 1.0, 'bilinear')(read_image(path))
                         for path in list_images(images)])
    for block, expected in zip(item['blocks'], head_similarity(detector.backbone, [batch]),
                               strict=True):
        assert block['maximum'] == pytest.approx(expected.maximum, rel=1e-4)
    with pytest.raises(UserError, match='backbone alone'):
        run(tmp_path, config, *arguments, '--checkpoint', tmp_path / 'backbone.pth')


def test_timm_with_a_file(tmp_path, images):
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = timm.create_model('deit_tiny_patch16_224', depth=1, img_size=64)
    torch.save(model.state_dict(), tmp_path / 'deit.pth')
    arguments = ('timm://deit_tiny_patch16_224', '--images', images, '--cfg-options', 'depth=1',
                 'img_size=64', '--shape', 64, 64, '--overwrite', '--checkpoint')
    item, = run(tmp_path, *arguments, tmp_path / 'deit.pth')['items'].values()
    assert [block['heads'] for block in item['blocks']] == [3]
    torch.save(EfficientViT('m0').state_dict(), tmp_path / 'm0.pth')
    with pytest.raises(UserError, match='does not fit timm://deit_tiny_patch16_224'):
        run(tmp_path, *arguments, tmp_path / 'm0.pth')


def test_real_images_and_a_data_set(tmp_path, repository, coco_mini):
    arguments = ('m0', '--shape', 64, 64, '--num-images', 8, '--overwrite')
    found = run(tmp_path, *arguments, '--images', coco_mini)
    assert found['settings']['of_images'] == 64
    assert all(0 < block['mean'] <= 1 for block in found['items']['m0']['blocks'])
    found = run(tmp_path, *arguments, '--data-root', coco_mini, '--dataset',
                repository / 'configs' / 'retinanet_evit_m0_coco.py')
    assert found['settings']['of_images'] == 16 and found['items']['m0']['images'] == 8


SWIN, DEIT = 'timm://swin_tiny_patch4_window7_224', 'timm://deit_tiny_patch16_224'

# Heads of each block, as the papers have them.
HEADS = {**{name: [heads for depth, heads in zip(arch.depths, arch.num_heads, strict=True)
                   for _ in range(depth)] for name, arch in ARCHS.items()},
         SWIN: [3] * 2 + [6] * 2 + [12] * 6 + [24] * 2, DEIT: [3] * 12}


@pytest.mark.parametrize('name', HEADS)
def test_random_weights_on_real_images(tmp_path, coco_mini, name):
    if name in (SWIN, DEIT):
        pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    found = run(tmp_path, name, '--images', coco_mini, '--num-images', 2)
    item = found['items'][name]
    assert found['settings']['of_images'] == 64 and item['images'] == 2
    assert 'cropped to 224x224' in item['preprocessing']
    assert [block['heads'] for block in item['blocks']] == HEADS[name]
    for block in item['blocks']:
        assert len(block['maximum_per_head']) == block['heads']
        assert 0 <= block['mean'] <= block['maximum'] <= 1  # no entry of a map is negative
    assert {block['tokens'] for block in item['blocks']} == {197 if name == DEIT else 49}
    # Small initial weights make every map nearly even, and so all heads alike.
    assert 0.9 < item['mean'] <= item['maximum']


def test_mistakes_are_told(tmp_path, images):
    broken, empty, part = tmp_path / 'broken', tmp_path / 'empty', tmp_path / 'part'
    for folder in (broken, empty, part):
        folder.mkdir()
    (broken / 'x.png').write_bytes(b'no image')
    (tmp_path / 'nothing.py').write_text('test_dataloader = dict(dataset=dict())')
    whole = (images / '0.png').read_bytes()
    (part / 'y.png').write_bytes(whole[:len(whole) // 2])
    for match, arguments in {
        'no such folder': ('m0', '--images', tmp_path / 'absent'),
        'there is no image': ('m0', '--images', empty),
        r'broken/x.png can\'t be read': ('m0', '--images', broken),
        r'part/y.png can\'t be read': ('m0', '--images', part),
        '--num-images must be positive': ('m0', '--images', images, '--num-images', 0),
        '--shape must be positive': ('m0', '--images', images, '--shape', 0, 5),
        'one MODEL, but 2': ('m0', 'm1', '--images', images, '--checkpoint', 'x.pth'),
        '--data-root moves': ('m0', '--images', images, '--data-root', tmp_path),
        'ResNet has no attention blocks': ('torchvision://resnet50', '--images', images),
        'no such config': ('m0', '--dataset', tmp_path / 'absent.py'),
        'no images are found': ('m0', '--dataset', tmp_path / 'nothing.py'),
    }.items():
        with pytest.raises(UserError, match=match):
            run(tmp_path, *arguments, '--overwrite')


@pytest.mark.parametrize('error, match', [
    (RuntimeError('[enforce fail] DefaultCPUAllocator: can\'t allocate memory: you tried'),
     'too little memory for 8 images of 64x64 at once'),
    (IndexError('of another kind'), 'm0 can\'t take images of 64x64: pass another --shape .*kind')])
def test_models_that_cannot_run_are_told(tmp_path, images, monkeypatch, error, match):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(heads, 'head_similarity', fails)
    with pytest.raises(UserError, match=match):
        run(tmp_path, 'm0', '--images', images, '--shape', 64, 64)


def test_a_size_that_timm_refuses_is_told(tmp_path, images):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    with pytest.raises(UserError, match='can\'t take images of 64x64.*img_size'):
        run(tmp_path, 'timm://deit_tiny_patch16_224', '--images', images, '--shape', 64, 64,
            '--cfg-options', 'depth=1')


@pytest.mark.parametrize('names', [
    ['timm://swin_tiny_patch4_window7_224', 'timm://deit_tiny_patch16_224'],
    ['m0'], [f'm{index}' for index in range(6)],
    ['timm://swin_base_patch4_window7_224.ms_in22k_ft_in1k', 'timm://swin_base_patch4_window12_384',
     'configs/mask_rcnn_evit_m4_coco.py', 'm4']], ids=len)
def test_nothing_is_cut_off(tmp_path, monkeypatch, names):
    from evit_mm.benchmark import figures

    seen = []

    def measured(figure, path):
        figure.canvas.draw()
        boxes = [figure.legends[0].get_window_extent(),
                 *(label.get_window_extent() for label in figure.axes[0].get_xticklabels())]
        seen.append((figure.bbox, boxes))

    monkeypatch.setattr(figures, 'save', measured)
    heads._draw({name: {'blocks': [{'maximum': 0.5}] * 24} for name in names}, tmp_path / 'x.png')
    (whole, (legend, *ticks)), = seen
    assert whole.x0 <= legend.x0 and legend.x1 <= whole.x1 and legend.y1 <= whole.y1
    assert all(left.x1 < right.x0 for left, right in zip(ticks, ticks[1:], strict=False))


def test_lines_can_be_told_apart(tmp_path, monkeypatch):
    """Of eight models no two share colour, style and marker, and none is yellow, as on white."""
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, 'plot', lambda *given, **look: (drawn.append(look),
                                                              plot(*given, **look))[1])
    heads._draw({f'm{index}': {'blocks': [{'maximum': 0.5}] * 3} for index in range(8)},
                tmp_path / 'heads.png')
    looks = {(look['color'], look['linestyle'], look['marker']) for look in drawn}
    assert len(looks) == 8 and len({style for _, style, _ in looks}) == 4
    assert '#F0E442' not in {colour for colour, _, _ in looks}
