"`Model(folder).predict` and `.features` for every task: what the frameworks' networks say of pixels normalised once."
import csv
import io

import numpy as np
import pytest
import tl_notebooks # noqa: F401  first: it guards torchvision
import torch
from PIL import Image
from tl_notebooks.models.folder import Model, save_model
from tl_notebooks.cli import main
from tl_notebooks.core import InputError

SIZE = 64
MEAN, STD = (.485, .456, .406), (.229, .224, .225)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "Square images of the network's size: nothing has to be scaled"
    folder, r = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for i in range(4):
        coarse = Image.fromarray(r.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder/f'{i}.png')
    return sorted(folder.glob('*.png'))


@pytest.fixture(scope='module')
def pixels(files): return torch.stack([torch.from_numpy(np.array(Image.open(f))).permute(2, 0, 1) for f in files])


def normalised(pixels):
    "By torchvision's functional transforms"
    from torchvision.transforms.functional import convert_image_dtype, normalize
    return normalize(convert_image_dtype(pixels, torch.float32), MEAN, STD)


@pytest.fixture(scope='module')
def dense(files, tmp_path_factory):
    "A detector on the pretrained EfficientNet-Lite0, as a model folder"
    from tl_notebooks.learn.detection import box_net, pyramid
    from tl_notebooks.learn.backbones import load_image_model
    info = load_image_model('efficientnet_lite0')[1]
    pre = dict(arch='fcos', size=SIZE, mean=list(MEAN), std=list(STD), channels=32, convs=1, precision='fp32',
               resize='squish')
    torch.manual_seed(0)
    net = box_net(dict(library='timm', model=info['model']), pre, 3)
    net.body = pyramid('efficientnet_lite0', size=SIZE)[0]
    return save_model(tmp_path_factory.mktemp('dense')/'model', net.eval(), info | pre, ['a', 'b', 'c'])


def test_features_of_a_detector_are_the_body_s_last_map_averaged(dense, files, pixels):
    "The oracle is timm's own feature extractor, with the weights as they are published"
    import timm
    from tl_notebooks.learn.backbones import find_entry, load_image_model
    ref = timm.create_model(find_entry('efficientnet_lite0').model, features_only=True, out_indices=(4,)).eval()
    ref.load_state_dict(load_image_model('efficientnet_lite0')[0].state_dict(), strict=False)
    with torch.no_grad(): want = ref(normalised(pixels))[0].mean((2, 3))
    got = Model(dense).features(files, bs=3)
    assert got.shape == (4, 320) and got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    assert Model(dense).features([]).shape == (0, 320)
    with pytest.raises(InputError, match='does not exist|cannot be read'):
        Model(dense).features([files[0].with_name('no.png')])


def test_boxes_of_a_whole_detector_are_torchvision_s(files, pixels, tmp_path):
    "torchvision's FCOS from pixels to boxes, normalisation included, against the same weights in a model folder"
    from torchvision.models import resnet50
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from tl_notebooks.learn.detection import pretrained_detector
    torch.manual_seed(0)
    body, last = resnet50(norm_layer=FrozenBatchNorm2d), LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=last)
    theirs = FCOS(backbone, 3, min_size=SIZE, max_size=SIZE, score_thresh=.01, nms_thresh=.6, detections_per_img=100)
    theirs.eval()
    for m in theirs.modules():
        if isinstance(m, FrozenBatchNorm2d): m.weight.fill_(.4); m.running_var.uniform_(.5, 2)
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=.05)
    theirs.head.regression_head.bbox_reg.bias.data.fill_(2.) # boxes with an extent, which an answer must have
    torch.save(theirs.state_dict(), tmp_path/'weights.pth')
    net, info = pretrained_detector('fcos_resnet50_fpn', str(tmp_path/'weights.pth'), 3, SIZE)
    assert not info['fresh']
    pre = dict(arch='fcos', size=SIZE, mean=info['mean'], std=info['std'], resize='squish', precision='fp32')
    model = Model(save_model(tmp_path/'model', net.eval(), info | pre, ['a', 'b', 'c']))
    with torch.no_grad(): want = theirs(list(pixels.float()/255))
    assert sum(len(w['scores']) for w in want) > 20
    found = list(model.predict(files, bs=3, threshold=.01))
    assert [p.path for p in found] == [str(f) for f in files]
    for p,w in zip(found, want):
        assert p.found['labels'].tolist() == w['labels'].tolist()
        np.testing.assert_allclose(p.found['scores'], w['scores'], rtol=1e-3)
        np.testing.assert_allclose(p.found['boxes'], w['boxes'], rtol=1e-3, atol=.01)


def test_an_image_model_s_features_and_probabilities_are_timm_s(files, pixels, tmp_path):
    "Average and maximum of its last map"
    import timm
    from tl_notebooks.learn.vision import image_net
    torch.manual_seed(0)
    ref = timm.create_model('resnet18', num_classes=0).eval()
    net, info = image_net('timm/resnet18', 2, 'random', SIZE, features='last')
    net.body.model.load_state_dict(ref.state_dict())
    model = Model(save_model(tmp_path/'model', net.eval(), info | dict(resize='squish', precision='fp32'), ['a', 'b']))
    assert (info['mean'], info['std']) == (list(MEAN), list(STD))
    with torch.no_grad():
        maps = ref.forward_features(normalised(pixels))
        want = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        probs = model.net.head(want).softmax(1)
    torch.testing.assert_close(model.features(files), want, rtol=1e-3, atol=1e-4)
    found = list(model.predict(files))
    torch.testing.assert_close(torch.tensor([[*p.probabilities.values()] for p in found]), probs, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match='`threshold` is about boxes'): model.predict(files, threshold=.5)


def test_what_a_detector_has_not_is_said_with_what_it_has(dense, files):
    model = Model(dense)
    one, labels = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), ['a']*4
    calls = (lambda: model.probabilities(one), lambda: model.learner(files, labels),
             lambda: model.take(files, labels, 1))
    for call in calls:
        with pytest.raises(InputError, match='is a detector.*Accepted: `predict`, for boxes'): call()
    wrong = (dict(threshold=2), 'from 0 to 1'), (dict(slice=3), 'at least 32'), (dict(bs=0), 'at least 1')
    for kwargs, says in wrong:
        with pytest.raises(InputError, match=says): model.predict(files, **kwargs) # at once, not at the first answer


def test_a_detector_of_queries_says_what_to_use_instead(files, tmp_path):
    transformers = pytest.importorskip('transformers')
    from tl_notebooks.learn.detection import detr_net
    body = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic',
                                     out_features=['stage2'])
    layers = dict(layers=1, ffn_dim=16, attention_heads=2)
    small = {f'{part}_{k}': v for part in ('encoder', 'decoder') for k,v in layers.items()}
    config = transformers.DetrConfig(backbone_config=body, use_timm_backbone=False, use_pretrained_backbone=False,
                                     d_model=16, num_queries=5, num_labels=3, **small)
    transformers.AutoModelForObjectDetection.from_config(config).save_pretrained(tmp_path/'tiny')
    net, info = detr_net(str(tmp_path/'tiny'), None, 3, SIZE)
    pre = dict(arch=net.arch, size=SIZE, mean=[0.]*3, std=[1.]*3, channels=0, convs=0, resize='squish',
               precision='fp32')
    model = Model(save_model(tmp_path/'model', net.eval(), info | pre, ['a', 'b', 'c']))
    with pytest.raises(InputError, match="'detr'.*Accepted: fcos, retinanet and ssdlite; or `predict`"):
        model.features(files)
    assert [len(p.found['scores']) for p in model.predict(files, threshold=0.)] == [15]*4 # five queries, three classes


def test_the_command_goes_through_the_same_door(dense, files, capsys):
    assert main(['predict', str(dense), *map(str, files), '--threshold', '0.011']) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = [(p.path, s) for p in Model(dense).predict(files, threshold=.011) for s in p.found['scores']]
    assert len(rows) and [r['path'] for r in rows] == [n for n,_ in found]
    np.testing.assert_allclose([float(r['score']) for r in rows], [s for _,s in found], atol=1e-6)
