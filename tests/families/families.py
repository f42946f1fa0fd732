"""The families of MMDetection and MMSegmentation, and what is special in some of them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.utils import get_installed_path

PACKAGES = ('mmdet', 'mmseg')


@dataclass(frozen=True)
class Special:
    """What a family needs beyond the general rules.

    Attributes:
        config: The config that represents the family, without ``.py``; by default the one with the
            shortest name among those with a ResNet-50.
        backbone: Dotted name of the backbone.
        changes: Values of the model's config by dotted name, before the backbone is replaced.
        adapted: Dotted names of parts behind the neck that receive the backbone's maps, too.
        channels: Channels of the backbone's maps, where it can't be built.
        strides: Strides of the maps that EfficientViT shall return, where they are not those.
        after: Values by dotted name, set when the backbone has been replaced.
        reason: Why all of this is needed.
        size: Height and width of the images.
    """

    reason: str
    config: str | None = None
    backbone: str = 'backbone'
    changes: dict[str, Any] = field(default_factory=dict)
    adapted: Sequence[str] = ()
    channels: Sequence[int] | None = None
    strides: Sequence[int] | None = None
    after: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def _with_name(config: str) -> Special:
    return Special('', config)


_CORNERS = Special(
    'the head needs one map at stride 4: CenterNet\'s neck makes it from stride 32',
    channels=[256], strides=[32],
    changes={'neck': dict(type='CTResNetNeck', in_channels=256, num_deconv_filters=(256, 256, 256),
                          num_deconv_kernels=(4, 4, 4), use_dcn=False),
             'bbox_head.num_feat_levels': 1})
_MANY_QUERIES = Special('a larger image, because the encoder has to have more tokens than queries',
                        size=(256, 256))
_VIT = Special('the present backbone needs images of its own size',
               channels=[768] * 4, strides=[16] * 4)

SPECIAL = {
    'mmdet/bytetrack': Special(
        'the tracker\'s detector, which is trained on images',
        'yolox_x_8xb4-amp-80e_crowdhuman-mot17halftrain_test-mot17halfval'),
    'mmdet/cascade_rpn': _with_name('cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco'),
    'mmdet/centripetalnet': _CORNERS,
    'mmdet/convnext': Special('the present backbone needs mmpretrain',
                              channels=[96, 192, 384, 768], strides=[4, 8, 16, 32]),
    'mmdet/cornernet': _CORNERS,
    'mmdet/ddq': _MANY_QUERIES,
    'mmdet/dino': _MANY_QUERIES,
    'mmdet/guided_anchoring': _with_name('ga-faster-rcnn_r50_fpn_1x_coco'),
    'mmdet/hrnet': _with_name('faster-rcnn_hrnetv2p-w18-1x_coco'),
    'mmdet/lad': Special('needs the package scikit-learn; the teacher\'s weights are not needed',
                         changes={'teacher_ckpt': None}),
    'mmdet/ld': Special(
        'the teacher is named by a path, and its weights are not needed',
        changes={'teacher_ckpt': None, 'teacher_config': 'gfl/gfl_r50_fpn_1x_coco.py'}),
    'mmdet/nas_fcos': Special('torch refuses the eps=0 of the present backbone\'s BN',
                              changes={'backbone.norm_cfg.eps': 1e-5}),
    'mmdet/paa': Special('needs the package scikit-learn'),
    'mmdet/pvt': _with_name('retinanet_pvtv2-b0_fpn_1x_coco'),
    'mmdet/queryinst': Special(
        'boxes are clipped, because those of random weights leave the image',
        changes={f'roi_head.bbox_head.{i}.bbox_coder.clip_border': True for i in range(6)}),
    'mmdet/rtmdet': _with_name('rtmdet_s_8xb32-300e_coco'),
    'mmdet/soft_teacher': Special('teacher and student have the same backbone',
                                  backbone='detector.backbone'),
    'mmdet/sort': Special('the tracker\'s detector, which is trained on images',
                          'faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval'),
    'mmdet/ssd': Special(
        'the neck passes the backbone\'s maps on, with their channels',
        changes={'neck.out_channels': (32, 64, 512, 256, 256, 256),
                 'neck.l2_norm_scale': None,
                 'bbox_head.in_channels': (32, 64, 512, 256, 256, 256)},
        size=(300, 300)),
    'mmdet/strongsort': Special('the tracker\'s detector, which is trained on images'),
    'mmdet/timm_example': Special('the present backbone needs mmpretrain',
                                  channels=[256, 512, 1024, 2048], strides=[4, 8, 16, 32]),
    'mmdet/v3det': _MANY_QUERIES,
    'mmdet/yolox': _with_name('yolox_s_8xb8-300e_coco'),
    'mmseg/beit': _VIT,
    'mmseg/bisenetv1': Special(
        'the replaced ResNet is inside of the backbone; what joins its maps is narrower',
        'bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024', backbone='backbone.backbone_cfg',
        # The map at stride 16 is as wide as the two that are joined.
        after={'backbone.context_channels': (32, 64, 128),
               'backbone.spatial_channels': (64, 64, 64, 32),
               'auxiliary_head.0.in_channels': 32, 'auxiliary_head.1.in_channels': 32}),
    'mmseg/cgnet': Special('a head without convolutions is as wide as its input',
                           after={'decode_head.channels': 64}),
    'mmseg/convnext': Special('the present backbone needs mmpretrain',
                              channels=[128, 256, 512, 1024], strides=[4, 8, 16, 32]),
    'mmseg/fastfcn': Special('an auxiliary head behind the neck gets the backbone\'s map',
                             adapted=['auxiliary_head']),
    'mmseg/mae': _VIT,
    'mmseg/mobilenet_v3': Special('a larger image, because the head pools over 49 pixels of a map',
                                  size=(800, 800)),
    'mmseg/poolformer': Special('the present backbone needs mmpretrain',
                                'fpn_poolformer_s12_8xb4-40k_ade20k-512x512',
                                channels=[64, 128, 320, 512], strides=[4, 8, 16, 32]),
    'mmseg/segmenter': _with_name('segmenter_vit-t_mask_8xb1-160k_ade20k-512x512'),
    'mmseg/setr': _with_name('setr_vit-l_pup_8xb2-160k_ade20k-512x512'),
    'mmseg/stdc': Special(
        'the replaced network is inside of the backbone', backbone='backbone.backbone_cfg',
        after={'backbone.last_in_channels': (128, 64),
               'backbone.ffm_cfg.in_channels': 32 + 128, 'auxiliary_head.2.in_channels': 32}),
    'mmseg/swin': _with_name('swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512'),
}

_VIDEOS = 'learns from videos, not from images'
_LANGUAGE = 'a model of images and text: needs the package transformers and downloads BERT'
_BRANCHES = ('the head takes the branches of its own network, and others in training than in '
             'inference')
NOT_APPLICABLE = {
    'mmdet/common': 'datasets and schedules without models',
    'mmdet/deepsort': 'a tracker; its detector is that of sort',
    'mmdet/detectors': 'its convolutions, and the stages that take the neck\'s outputs, are inside '
                       'of a ResNet',
    'mmdet/glip': _LANGUAGE,
    'mmdet/grounding_dino': _LANGUAGE,
    'mmdet/mask2former_vis': _VIDEOS,
    'mmdet/masktrack_rcnn': _VIDEOS,
    'mmdet/mm_grounding_dino': _LANGUAGE,
    'mmdet/misc': 'models of Detectron2, which need that package',
    'mmdet/ocsort': 'a tracker; its detector is that of bytetrack',
    'mmdet/qdtrack': _VIDEOS,
    'mmdet/reid': 'no detector: tells whether two pictures show the same person; needs mmpretrain',
    'mmdet/tridentnet': 'the backbone is the model: three branches of a ResNet with shared weights',
    'mmseg/ddrnet': _BRANCHES,
    'mmseg/dpt': 'the head takes the tokens of a plain ViT, its class token included',
    'mmseg/icnet': 'the backbone takes a ResNet apart, and runs its stages at three image sizes',
    'mmseg/pidnet': _BRANCHES,
    'mmseg/san': 'a model of images and text: its backbone is CLIP\'s image encoder',
    'mmseg/vpd': 'estimates depth; its backbone is Stable Diffusion',
}

# Known errors, as patterns of their messages, and what to tell about them.
FAILURES: dict[str, tuple[str, str]] = {
    'mmdet/ssd': ('no attribute \'loss_cls\'', 'a mistake of MMDetection with any backbone, its '
                  'issue 11780'),
    'mmseg/cgnet': ('index 255 is out of bounds',
                    'a mistake of MMSegmentation with any backbone: its cross-entropy fails at '
                    'ignored pixels where classes have weights'),
    'mmdet/boxinst': ('skimage is not installed', 'needs the package scikit-image; works with it'),
}


def folder(package: str) -> Path:
    """Return the folder of a package's configs."""
    return Path(get_installed_path(package)) / '.mim' / 'configs'


def families(package: str) -> list[str]:
    """Return the names of all families of a package, as ``mmdet/atss``."""
    return [f'{package}/{path.name}' for path in sorted(folder(package).iterdir())
            if path.is_dir() and path.name != '_base_']


def config_of(family: str) -> Path:
    """Return the config that represents a family."""
    package, _, name = family.partition('/')
    special = SPECIAL.get(family)
    if special is not None and special.config:
        return folder(package) / name / f'{special.config}.py'
    paths = [path for path in (folder(package) / name).glob('*.py')
             if not path.stem.endswith('_tta')]
    return min(paths, key=lambda path: (
        not re.search('r50', path.stem), len(path.stem), path.stem))
