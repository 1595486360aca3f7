"""A detector in an ONNX file: read as its family publishes it, adopted, trained on its maps, grown, and refused where
it does not fit."""
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from conftest import record, tl
from test_expand_boxes import certificate, drawn, said
from tl_notebooks.models.folder import Model
from tl_notebooks.learn.declarations import FAMILIES, Places, join_scores, read_boxes_of

SIDES, STRIDES = (6, 3), (8, 16)


def numbers(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_nanodet_is_decoded_as_published():
    "gfl_head.py and integral.py, in NumPy: centres of cells, softmax of each side, expectation, times the stride"
    raw, want = numbers(1, 45, 44), []
    for side,stride in zip(SIDES, STRIDES):
        ys, xs = np.meshgrid((np.arange(side) + .5)*stride, (np.arange(side) + .5)*stride, indexing='ij')
        for y,x in zip(ys.ravel(), xs.ravel()):
            e = np.exp(raw[0, len(want)].double().numpy().reshape(4, 11)); e /= e.sum(1, keepdims=True)
            l, t, r, b = e @ np.linspace(0, 10, 11)*stride
            want.append([x - l, y - t, x + r, y + b])
    d = FAMILIES['nanodet']
    np.testing.assert_allclose(read_boxes_of(d, raw, Places(d, SIDES, STRIDES))[0], want, atol=1e-3)


def test_yolox_is_decoded_as_published():
    "demo_utils.demo_postprocess of YOLOX, and the scores of its ONNX demo"
    out, grids, strides = numbers(1, 45, 8).numpy(), [], []
    for side,stride in zip(SIDES, STRIDES):
        xv, yv = np.meshgrid(np.arange(side), np.arange(side))
        grids.append(np.stack((xv, yv), 2).reshape(1, -1, 2)); strides.append(np.full((1, side*side, 1), stride))
    grids, strides = np.concatenate(grids, 1), np.concatenate(strides, 1)
    centre, size = (out[..., :2] + grids)*strides, np.exp(out[..., 2:4])*strides
    d, raw = FAMILIES['yolox'], torch.from_numpy(out)
    np.testing.assert_allclose(read_boxes_of(d, raw[..., :4], Places(d, SIDES, STRIDES)),
                               np.concatenate([centre - size/2, centre + size/2], -1), rtol=1e-4, atol=1e-3)
    sigmoid = lambda v: 1/(1 + np.exp(-v))
    np.testing.assert_allclose(join_scores(d, raw[..., 5:], raw[..., 4:5]).sigmoid(),
                               sigmoid(out[..., 5:])*sigmoid(out[..., 4:5]), atol=1e-5)


@pytest.mark.parametrize('family', ['fcos', 'retinanet'])
def test_torchvision_finds_the_same(family):
    "Its own postprocessing, without suppression and borders, on the same numbers"
    from tl_notebooks.learn.detection import ARCHS
    d, k = FAMILIES[family], 3
    at, a = Places(d, SIDES, STRIDES), FAMILIES[family].per_place
    raw, scores, own = (numbers(1, 45*a, n) for n in (4, k, 1))
    net = ARCHS[family](32, k, 48, 1, score_thresh=0., nms_thresh=1., detections_per_img=10**6, topk_candidates=10**6)
    half = at.strides[:,None]/2
    anchors = [at.anchors] if a > 1 else [torch.cat([at.points - half, at.points + half], 1)]
    out = dict(cls_logits=[scores], bbox_regression=[raw.relu() if family == 'fcos' else raw], bbox_ctrness=[own])
    want, = net.postprocess_detections(out, [anchors], [(10**6, 10**6)])
    got = join_scores(d, scores, own).sigmoid()[0]
    boxes = read_boxes_of(d, raw, at)[0].clamp(0)
    for kind in range(k):
        mine = want['labels'] == kind
        best = got[:,kind].argsort(descending=True)[:20]
        torch.testing.assert_close(want['scores'][mine][:20], got[best, kind], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(want['boxes'][mine][:20], boxes[best], atol=1e-2, rtol=1e-3)


class Tiny(nn.Module):
    "Kinds at strides 8 and 16, in three convolutions for each, as YOLOX has them; `only`: the only side it takes"
    def __init__(self, k, parts=('box', 'object', 'class'), only=0):
        super().__init__()
        self.fine, self.coarse, self.only = nn.Conv2d(3, 32, 8, 8), nn.Conv2d(32, 32, 2, 2), only
        n = {'box': 4, 'object': 1, 'class': k}
        self.tower = nn.ModuleList(nn.Conv2d(32, 32, 1) for _ in range(2))
        self.last = nn.ModuleList(nn.ModuleList(nn.Conv2d(32, n[p], 1) for p in parts) for _ in range(2))

    def forward(self, x):
        a = self.fine(x/255).relu()
        if self.only: a = a + torch.zeros(self.only//8, self.only//8)
        out = []
        for m,last in zip((a, self.coarse(a).relu()), self.last):
            one, two = (t(m).relu() for t in self.tower)
            parts = [c(one if k < 2 else two) for k,c in enumerate(last)]
            out.append(torch.cat([parts[0], *(p.sigmoid() for p in parts[1:])], 1).flatten(2))
        return torch.cat(out, 2).permute(0, 2, 1)


def exported(path, k=3, size=96, nan=False, **kwargs):
    torch.manual_seed(3); net = Tiny(k, **kwargs).eval()
    if nan: net.last[0][2].bias.data[:] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(net, (torch.zeros(1, 3, size, size),), path, dynamo=False)
    return net


def test_a_file_is_read_whatever_follows_its_maps(tmp_path):
    "Sigmoids, a concatenation and a transpose follow; two towers go in; boxes and scores are those of the output"
    from tl_notebooks.learn.onnx_detector import maps_net, read_detector
    net = exported(tmp_path/'x.onnx')
    about, parts = read_detector(tmp_path/'x.onnx', 'yolox', ['a', 'b', 'c'])
    x = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    own, _ = maps_net(about, parts, ['c', 'a'])
    with torch.no_grad(): out, want = own(x), net(x.flip(1).float())
    scores = want[..., 4:5]*want[..., 5:]
    torch.testing.assert_close(out['cls_logits'].sigmoid(), scores[..., [2, 0]], atol=2e-3, rtol=0)
    torch.testing.assert_close(out['bbox_regression'][:,:,0], want[..., :4], atol=2e-2, rtol=0)


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    "A detector file whose maps tell colours, and images with red squares, and others where only green ones are drawn"
    home = tmp_path_factory.mktemp('onnx')
    exported(home/'tiny.onnx')
    drawn(home/'old', 36, 0, ['red']); drawn(home/'new', 36, 1, ['green'])
    return home


def test_the_use_case_starts_from_a_file_and_says_what_it_was_worth_before(squares, tmp_path):
    done = tl('run', 'crossing', '--data', squares/'old', '--out', tmp_path, '-p',
              f"weights={squares/'tiny.onnx'}", '-p', 'arch=yolox', '-p', 'kinds=person,scarlet,car', '-p',
              'known=red:scarlet', '-p', 'epochs=3', '-p',
              'views=1', '-p', 'lr=0.005', '-p', 'threads=1', '-p', 'precision_wanted=0.7', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rec = record(folder := done.stdout.strip().splitlines()[-1])
    model = Model(folder)
    assert rec['thresholds'] == model.manifest['head']['thresholds'] and [*rec['thresholds']] == model.classes
    assert {*rec['rates']['red']} <= {'precision', 'recall'} and rec['best_epoch'] in range(4)
    found = [p.found['scores'] for p in model.predict([*(squares/'old').glob('*.png')])]
    assert min(map(min, filter(len, found)), default=1.) >= rec['thresholds']['red']
    assert rec['known'] == {'red': ['scarlet']} and rec['chosen'][0] == 'yolox'
    assert rec['model']['library'] == 'onnx-detector'
    assert rec['before']['map50']['n'] == rec['metrics']['map50']['n']
    assert rec['losses'][-1]['train'] < rec['losses'][0]['train'] and rec['valid_before'] >= 0
    assert rec['frozen'][0]['dtype'] == ['float16'] and 'cannot be trained' in rec['control_about']


def test_adopt_predict_and_grow(squares, tmp_path, capsys):
    "All kinds of the file are found; one more is learned from its own boxes, and no bit of the others' scores moves"
    code, out, err = said(capsys, 'adopt', squares/'tiny.onnx', '--arch', 'yolox', '--classes', 'red,blue,grey',
                          '--out', tmp_path/'model')
    assert code == 0 and out.strip() == str(tmp_path/'model') and 'greatest difference' in err
    code, out, err = said(capsys, 'predict', tmp_path/'model', squares/'old'/'0.png', '--threshold', '0', '--format',
                          'json')
    assert code == 0 and {b['category'] for b in json.loads(out)} <= {'red', 'blue', 'grey'}, err
    for mode in ('keep-scores', 'fine-tune'): # nothing old is drawn: neither touches its head
        code, out, err = said(capsys, 'expand', tmp_path/'model', '--data', squares/'new', '--old', squares/'old',
                              '--mode', mode, '--epochs', 40, '--lr', '0.02', '--out', tmp_path/mode)
        assert code == 0, err
        c = certificate(tmp_path/mode)
        assert c['greatest_change_of_an_old_logit'] == 0 and c['old_logits_bit_identical'] and c['body_bit_identical']
        assert c['new_accuracy']['value'] > .3, c['new_accuracy']


def test_a_new_kind_begins_from_a_row_of_the_file(squares, tmp_path, capsys):
    from tl_notebooks.expand.boxes import grown_net
    said(capsys, 'adopt', squares/'tiny.onnx', '--arch', 'yolox', '--classes', 'red,blue,grey', '--out', tmp_path/'m')
    model, x = Model(tmp_path/'m'), torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    def scores(**known):
        with torch.no_grad(): return grown_net(model, ['red', 'blue', 'grey', 'green'], **known)(x)['cls_logits']
    begun, fresh = scores(known='green:blue+grey'), scores()
    assert torch.equal(begun[..., 3], begun[..., 1:3].amax(-1)) and torch.equal(begun[..., :3], fresh[..., :3])
    assert not torch.equal(fresh[..., 3], begun[..., 3])
    expand = 'expand', tmp_path/'m', '--data', squares/'new', '--out', tmp_path/'x', '--epochs', 1, '--known'
    code, out, err = said(capsys, *expand, 'green:yellow')
    assert code == 2 and "'yellow' is no kind of the detector" in err and not (tmp_path/'x').exists()
    code, out, err = said(capsys, *expand, 'green:grey')
    assert code == 0 and certificate(tmp_path/'x')['training']['known'] == 'green:grey', err


@pytest.mark.parametrize('args, message', [
    (['--arch', 'yolox'], 'do not fit `yolox`: without 80 kinds and a score of the place'),
    (['--arch', 'nanodet', '--classes', 'a,b,c'], 'do not fit `nanodet`'),
    (['--arch', 'yolox', '--classes', 'a,b,c', '--resize', 'pad'], '--resize is not for detectors')])
def test_what_does_not_fit_is_said_and_nothing_is_written(squares, tmp_path, capsys, args, message):
    code, out, err = said(capsys, 'adopt', squares/'tiny.onnx', '--out', tmp_path/'x', *args)
    assert code == 2 and not out and message in err and not (tmp_path/'x').exists()


def test_a_file_of_one_size_says_so(tmp_path):
    from tl_notebooks.core import InputError
    from tl_notebooks.learn.onnx_detector import read_detector
    exported(tmp_path/'fixed.onnx', only=96)
    read_detector(tmp_path/'fixed.onnx', 'yolox', ['a', 'b', 'c'])
    with pytest.raises(InputError, match='takes no 2 images of 128 pixels'):
        read_detector(tmp_path/'fixed.onnx', 'yolox', ['a', 'b', 'c'], 128)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    from tl_notebooks.core import InputError
    from tl_notebooks.learn.onnx_detector import read_detector
    exported(tmp_path/'nan.onnx', nan=True)
    with pytest.raises(InputError, match='NaN or infinite'):
        read_detector(tmp_path/'nan.onnx', 'yolox', ['a', 'b', 'c'])
