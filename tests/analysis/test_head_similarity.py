"""Head similarity: exact on hand-made maps, and of whole models on images."""

import json
import os
from math import sqrt

import numpy as np
import pytest
import torch
from PIL import Image

from evit_mm.analysis import head_similarity as heads
from evit_mm.analysis.attention_maps import capture_maps
from evit_mm.analysis.head_similarity import analyze_heads, head_similarity, pairwise_cosines
from evit_mm.analysis.images import (
    Preprocessing,
    evenly_spaced,
    files_fingerprint,
    list_images,
    read_image,
)
from evit_mm.arch import ARCHS
from evit_mm.benchmark import figures
from evit_mm.benchmark.model_factory import build_model
from evit_mm.errors import UserError
from evit_mm.models import EfficientViT
from evit_mm.models.attention import CascadedGroupAttention

SWIN, DEIT = 'timm://swin_tiny_patch4_window7_224', 'timm://deit_tiny_patch16_224'
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


def test_cosines_without_some_queries():
    maps = torch.stack([torch.tensor([[1., 0], [1, 0]]), torch.tensor([[1., 0], [0, 1]])])[None]
    assert pairwise_cosines(maps)[0, 0, 1].item() == pytest.approx(0.5)
    assert pairwise_cosines(maps, torch.tensor([[True, False]]))[0, 0, 1].item() == 1
    assert pairwise_cosines(maps, torch.tensor([[False, True]]))[0, 0, 1].item() == 0


def attention_of_biases(biases):
    """Return an attention whose maps are the softmax of its bias tables, for any input."""
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


def test_averages_do_not_depend_on_batches(randomized):
    model = randomized(EfficientViT('m2'))
    images = torch.randn(3, 3, 96, 130)
    together = head_similarity(model, [images])
    apart = head_similarity(model, images.split(1))
    assert len(together) == 6 and len({round(block.maximum, 3) for block in together}) > 1
    for one, other in zip(together, apart, strict=True):
        assert 0 < one.mean <= one.maximum < 0.999
        assert one.maximum == pytest.approx(other.maximum, rel=1e-4)
        assert one.mean == pytest.approx(other.mean, rel=1e-4)
        assert (one.block, one.windows) == (other.block, other.windows)


def test_padded_queries_do_not_count(randomized):
    """In a feature map of 4x4 in a window of 7x7, 16 queries and all 49 keys count."""
    model = randomized(EfficientViT('m0', out_indices=(0,)), gain=2)
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


def test_mean_is_over_windows(randomized):
    """The result of two images is the mean of the results of each."""
    model = randomized(EfficientViT('m0', out_indices=(0,)))
    images = torch.randn(2, 3, 224, 224)
    both, = head_similarity(model, [images])
    alone = [head_similarity(model, [image[None]])[0] for image in images]
    assert both.windows == 8
    assert both.maximum == pytest.approx(sum(block.maximum for block in alone) / 2, rel=1e-4)


def test_timms_efficientvit_has_our_similarity(randomized):
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    theirs = randomized(timm.create_model('efficientvit_m1'))
    ours = EfficientViT('m1', window_sizes=(7, 7, 4)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    images = torch.randn(1, 3, 224, 224)
    for one, other in zip(head_similarity(ours, [images]), head_similarity(theirs, [images]),
                          strict=True):
        assert one.maximum == pytest.approx(other.maximum, rel=1e-4)
        assert one.mean == pytest.approx(other.mean, rel=1e-4)
        assert (one.heads, one.windows, one.tokens) == (other.heads, other.windows, other.tokens)


def test_class_token_is_kept_or_dropped():
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = timm.create_model('deit_tiny_patch16_224', depth=1, img_size=64).eval()
    torch.nn.init.normal_(model.blocks[0].attn.qkv.weight, std=0.5)
    images = torch.randn(2, 3, 64, 64)
    kept, = head_similarity(model, [images])
    dropped, = head_similarity(model, [images], class_token=False)
    assert (kept.tokens, dropped.tokens) == (17, 16)
    assert kept.maximum != pytest.approx(dropped.maximum, rel=1e-3)


def test_preprocessing_equals_torchvision():
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
    assert pixels.shape == (3, 48, 80) and pixels.min() == 1  # no black border


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


def analyze(tmp_path, *models, **keywords):
    """Run the analysis, and return the content of its file."""
    out = tmp_path / 'out'
    items = analyze_heads([str(model) for model in models], out=out, **keywords)
    content = json.loads((out / 'heads.json').read_text())
    assert items == {str(model): content['items'][str(model)] for model in models}
    return content


def test_results_are_printed_drawn_and_written(tmp_path, images, capsys, command):
    command('heads', 'm0', 'm1', '--images', images, '--num-images', 2, '--shape', 64, 96,
            '--out', tmp_path / 'out')
    found = json.loads((tmp_path / 'out' / 'heads.json').read_text())
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


def test_repeated_run_continues(tmp_path, images, monkeypatch):
    keywords = dict(images=images, shape=(32, 32))
    whole, calls = heads.head_similarity, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(heads, 'head_similarity', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, 'm0', 'm1', **keywords)
    kept = json.loads((tmp_path / 'out' / 'heads.json').read_text())['items']
    assert list(kept) == ['m0']
    found = analyze(tmp_path, 'm0', 'm1', **keywords)['items']
    assert len(calls) == 3 and found['m0'] == kept['m0'] and list(found) == ['m0', 'm1']
    with pytest.raises(UserError, match='class_token'):
        analyze(tmp_path, 'm0', 'm1', class_token='drop', **keywords)


def test_interrupted_model_continues(tmp_path, images, monkeypatch):
    """Results equal those of an uninterrupted run, and no image is read twice."""
    keywords = dict(images=images, shape=(64, 96), batch=1)
    whole = analyze(tmp_path / 'whole', 'm2', **keywords)['items']
    monkeypatch.setattr(heads, '_SAVE_INTERVAL', 1)
    plain, read = heads.read_image, []

    def interrupted(path):
        read.append(path.name)
        if len(read) == 3:
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(heads, 'read_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, 'm2', **keywords)
    found = json.loads((tmp_path / 'out' / 'heads.json').read_text())
    assert not found['items'] and found['partial']['m2']['images'] == 2
    found = analyze(tmp_path, 'm2', **keywords)
    assert found['items'] == whole and 'partial' not in found
    assert read == ['0.png', '1.png', '2.png', '2.png']


def test_interrupted_model_does_not_continue_with_other_images(tmp_path, images, monkeypatch):
    """Editing an image of the same name and size is refused, unless it was not selected."""
    keywords = dict(images=images, shape=(32, 32), batch=1, num_images=2)
    monkeypatch.setattr(heads, '_SAVE_INTERVAL', 1)
    plain = heads.read_image

    def interrupted(path):
        if path.name == '1.png':
            raise KeyboardInterrupt
        return plain(path)

    monkeypatch.setattr(heads, 'read_image', interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(tmp_path, 'm0', **keywords)
    monkeypatch.setattr(heads, 'read_image', plain)
    state = (images / '0.png').stat()
    os.utime(images / '0.png', ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000_000))
    with pytest.raises(UserError, match=f'the image folder {images} has changed since .*heads'):
        analyze(tmp_path, 'm0', **keywords)
    os.utime(images / '0.png', ns=(state.st_atime_ns, state.st_mtime_ns))
    os.utime(images / '2.png')
    assert analyze(tmp_path, 'm0', **keywords)['items']['m0']['images'] == 2
    (images / '0.png').rename(images / '00.png')
    with pytest.raises(UserError, match='has changed since'):
        analyze(tmp_path, 'm0', **keywords)
    assert analyze(tmp_path, 'm0', overwrite=True, **keywords)['items']


def test_fingerprints_of_files(tmp_path):
    """They depend on names, sizes, times and order of the files."""
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


def test_mistake_does_not_block_another_run(tmp_path, images):
    with pytest.raises(UserError):
        analyze(tmp_path, 'm9', images=images, num_images=1)
    assert analyze(tmp_path, 'm0', images=images, num_images=2, shape=(32, 32))['items']


def test_replaced_checkpoint_is_refused(tmp_path, images, capsys, randomized):
    keywords = dict(images=images, shape=(32, 32), checkpoint=tmp_path / 'm0.pth')
    model = randomized(EfficientViT('m0'))
    torch.save(model.state_dict(), tmp_path / 'm0.pth')
    size = (tmp_path / 'm0.pth').stat().st_size
    first = analyze(tmp_path, 'm0', **keywords)['items']
    capsys.readouterr()
    assert analyze(tmp_path, 'm0', **keywords)['items'] == first
    assert 'reusing 1 of 1 results of an earlier run' in capsys.readouterr().out
    torch.save(randomized(model).state_dict(), tmp_path / 'm0.pth')
    assert (tmp_path / 'm0.pth').stat().st_size == size
    with pytest.raises(UserError, match='m0.pth has changed since'):
        analyze(tmp_path, 'm0', **keywords)
    assert analyze(tmp_path, 'm0', overwrite=True, **keywords)['items'] != first


def test_random_weights_depend_on_the_seed_alone(tmp_path, images):
    keywords = dict(images=images, shape=(64, 64), overwrite=True)
    alone = analyze(tmp_path, 'm1', **keywords)['items']['m1']
    second = analyze(tmp_path, 'm0', 'm1', **keywords)['items']['m1']
    other = analyze(tmp_path, 'm1', seed=1, **keywords)['items']['m1']
    assert alone == second and alone['blocks'] != other['blocks']


def test_blocks_with_one_head_are_left_out_of_means(tmp_path, images, capsys):
    config = tmp_path / 'own.py'
    config.write_text("arch = dict(embed_dims=[16] * 3, depths=[1] * 3, num_heads=[1, 2, 1])\n"
                      "model = dict(type='EfficientViT', arch=arch)\n")
    item, = analyze(tmp_path, config, images=images, shape=(64, 64))['items'].values()
    single, double, last = item['blocks']
    assert single['maximum'] is single['mean'] is last['maximum'] is None
    assert item['maximum'] == double['maximum'] and item['mean'] == double['mean']
    row = next(line for line in capsys.readouterr().out.splitlines() if 'stages.0' in line)
    assert [cell.strip() for cell in row.split('|')[3:-1]] == ['1', '1', '49', '', '']


def test_detector_with_its_checkpoint(tmp_path, images, small_detector, randomized):
    detector = build_model(str(small_detector))
    randomized(detector.backbone)
    torch.save({'state_dict': detector.state_dict()}, tmp_path / 'detector.pth')
    torch.save(detector.backbone.state_dict(), tmp_path / 'backbone.pth')
    keywords = dict(images=images, shape=(64, 64), overwrite=True)
    item, = analyze(tmp_path, small_detector, checkpoint=tmp_path / 'detector.pth',
                    **keywords)['items'].values()
    assert item['weights'].endswith('detector.pth')
    assert 'bilinear to cover 64x64' in item['preprocessing'] and 'rgb' in item['preprocessing']
    assert [block['block'] for block in item['blocks']] == [
        f'stages.{stage}.blocks.0' for stage in range(3)]
    batch = torch.stack([Preprocessing((64, 64), 1.0, 'bilinear')(read_image(path))
                         for path in list_images(images)])
    for block, expected in zip(item['blocks'], head_similarity(detector.backbone, [batch]),
                               strict=True):
        assert block['maximum'] == pytest.approx(expected.maximum, rel=1e-4)
    with pytest.raises(UserError, match='only a backbone'):
        analyze(tmp_path, small_detector, checkpoint=tmp_path / 'backbone.pth', **keywords)


def test_timm_with_a_file(tmp_path, images):
    timm = pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    model = timm.create_model('deit_tiny_patch16_224', depth=1, img_size=64)
    torch.save(model.state_dict(), tmp_path / 'deit.pth')
    keywords = dict(images=images, cfg_options=dict(depth=1, img_size=64), shape=(64, 64),
                    overwrite=True)
    item, = analyze(tmp_path, DEIT, checkpoint=tmp_path / 'deit.pth', **keywords)['items'].values()
    assert [block['heads'] for block in item['blocks']] == [3]
    torch.save(EfficientViT('m0').state_dict(), tmp_path / 'm0.pth')
    with pytest.raises(UserError, match='does not fit timm://deit_tiny_patch16_224'):
        analyze(tmp_path, DEIT, checkpoint=tmp_path / 'm0.pth', **keywords)


def test_real_images_and_a_dataset(tmp_path, repository, coco_mini):
    keywords = dict(shape=(64, 64), num_images=8, overwrite=True)
    found = analyze(tmp_path, 'm0', images=coco_mini, **keywords)
    assert found['settings']['of_images'] == 64
    assert all(0 < block['mean'] <= 1 for block in found['items']['m0']['blocks'])
    found = analyze(tmp_path, 'm0', data_root=coco_mini, **keywords,
                    dataset=repository / 'configs' / 'retinanet_evit_m0_coco.py')
    assert found['settings']['of_images'] == 16 and found['items']['m0']['images'] == 8


# Heads of each block, from the papers.
HEADS = {**{name: [heads for depth, heads in zip(arch.depths, arch.num_heads, strict=True)
                   for _ in range(depth)] for name, arch in ARCHS.items()},
         SWIN: [3] * 2 + [6] * 2 + [12] * 6 + [24] * 2, DEIT: [3] * 12}


@pytest.mark.parametrize('name', HEADS)
def test_random_weights_on_real_images(tmp_path, coco_mini, name):
    if name in (SWIN, DEIT):
        pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    found = analyze(tmp_path, name, images=coco_mini, num_images=2)
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


def test_mistakes(tmp_path, images):
    broken, empty, part = tmp_path / 'broken', tmp_path / 'empty', tmp_path / 'part'
    for folder in (broken, empty, part):
        folder.mkdir()
    (broken / 'x.png').write_bytes(b'no image')
    (tmp_path / 'nothing.py').write_text('test_dataloader = dict(dataset=dict())')
    whole = (images / '0.png').read_bytes()
    (part / 'y.png').write_bytes(whole[:len(whole) // 2])
    for match, models, keywords in [
        ('no such folder: .*absent', ['m0'], dict(images=tmp_path / 'absent')),
        ('no images in .*empty', ['m0'], dict(images=empty)),
        ("can't read the image .*broken/x.png", ['m0'], dict(images=broken)),
        ("can't read the image .*part/y.png", ['m0'], dict(images=part)),
        ('--num-images must be positive', ['m0'], dict(images=images, num_images=0)),
        ('--shape must be positive', ['m0'], dict(images=images, shape=(0, 5))),
        ('one model, but there are 2', ['m0', 'm1'], dict(images=images, checkpoint='x.pth')),
        ('--data-root needs --dataset', ['m0'], dict(images=images, data_root=tmp_path)),
        ('either --images or --dataset', ['m0'], {}),
        ('ResNet has no attention blocks', ['torchvision://resnet50'], dict(images=images)),
        ('no such .*absent.py', ['m0'], dict(dataset=tmp_path / 'absent.py')),
        ('has no images', ['m0'], dict(dataset=tmp_path / 'nothing.py')),
    ]:
        with pytest.raises(UserError, match=match):
            analyze(tmp_path, *models, overwrite=True, **keywords)


@pytest.mark.parametrize('error, match', [
    (RuntimeError('[enforce fail] DefaultCPUAllocator: can\'t allocate memory: you tried'),
     'too little memory for 8 images of 64x64 at once'),
    (IndexError('of another kind'), 'm0 can\'t take images of 64x64: pass another --shape .*kind')])
def test_models_that_cannot_run(tmp_path, images, monkeypatch, error, match):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(heads, 'head_similarity', fails)
    with pytest.raises(UserError, match=match):
        analyze(tmp_path, 'm0', images=images, shape=(64, 64))


def test_size_that_timm_refuses(tmp_path, images):
    pytest.importorskip('timm', reason='needs timm, from the extra [dev]')
    with pytest.raises(UserError, match='can\'t take images of 64x64.*img_size'):
        analyze(tmp_path, DEIT, images=images, shape=(64, 64), cfg_options=dict(depth=1))


@pytest.mark.parametrize('names', [
    ['timm://swin_tiny_patch4_window7_224', 'timm://deit_tiny_patch16_224'],
    ['m0'], [f'm{index}' for index in range(6)],
    ['timm://swin_base_patch4_window7_224.ms_in22k_ft_in1k', 'timm://swin_base_patch4_window12_384',
     'configs/mask_rcnn_evit_m4_coco.py', 'm4']], ids=len)
def test_figure_is_complete(tmp_path, monkeypatch, names):
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


def test_lines_of_eight_models_differ(tmp_path, monkeypatch):
    """No two share colour, style and marker, and none is yellow."""
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, 'plot', lambda *args, **look: (drawn.append(look),
                                                             plot(*args, **look))[1])
    heads._draw({f'm{index}': {'blocks': [{'maximum': 0.5}] * 3} for index in range(8)},
                tmp_path / 'heads.png')
    looks = {(look['color'], look['linestyle'], look['marker']) for look in drawn}
    assert len(looks) == 8 and len({style for _, style, _ in looks}) == 4
    assert '#F0E442' not in {colour for colour, _, _ in looks}
