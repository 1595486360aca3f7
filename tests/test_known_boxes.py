"A detector says of each box how far it is from what it learned; of known boxes, the asked share are called unknown."
import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, kstest
from sklearn.metrics import roc_auc_score

from test_expand_boxes import drawn
from tl_notebooks.cli import main
from tl_notebooks.core import InputError

LEAST = .03


def said(capsys, *args):
    code = main([*map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def rows_of(out): return list(csv.DictReader(io.StringIO(out)))


def overlap(a, b):
    "(n, m) of boxes (n, 4) and (m, 4), written out"
    inter = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2]), 0, None)
    area = [np.prod(v[:, 2:] - v[:, :2], 1) for v in (a, b)]
    return (i := inter.prod(2))/(area[0][:, None] + area[1][None] - i)


def test_features_of_boxes_are_means_over_what_lies_in_them():
    from torch.nn.functional import adaptive_avg_pool2d, interpolate
    from tl_notebooks.learn.detection import box_features
    fine, coarse = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8)
    # on the grid of cells of 4 pixels, and between
    boxes = [torch.tensor([[0., 0., 64., 64.], [8., 16., 24., 64.], [3., 5., 13., 55.]]),
             torch.tensor([[33., 0., 63., 2.]])]
    got = box_features([fine, coarse], boxes, 64)
    pixels = interpolate(fine, scale_factor=4, mode='nearest')
    want = [adaptive_avg_pool2d(pixels[n, :, int(y1):int(y2), int(x1):int(x2)], 1).flatten()
            for n,some in enumerate(boxes) for x1,y1,x2,y2 in some]
    assert torch.allclose(got, torch.stack(want), atol=1e-5)
    assert torch.allclose(got[1], fine[0, :, 4:16, 2:6].mean((1, 2)), atol=1e-5)
    odd = torch.tensor([[70., 3., 90., 3.], [-9., -9., 80., 80.]]) # thin, outside, beyond: never NaN
    assert torch.isfinite(box_features([fine], [odd, torch.zeros(0, 4)], 64)).all()
    assert box_features([fine], [torch.zeros(0, 4)]*2, 64).shape == (0, 3)


def test_p_values_of_known_boxes_are_uniform_and_strange_ones_are_low():
    from tl_notebooks.heads.unknown import Unknown
    r = np.random.default_rng(1)
    shape = r.standard_normal((24, 24))
    def made(n, c): return r.standard_normal((n, 24)) @ shape + 6*np.eye(24)[c] @ shape
    judge = Unknown([made(150, 0), made(80, 1)], np.concatenate([made(600, 0), made(300, 1)]), length=True)
    p = judge.p_values(np.concatenate([made(400, 0), made(200, 1)]))
    assert kstest(p, 'uniform').pvalue > .01
    low, high = binomtest(int((p <= .05).sum()), len(p)).proportion_ci(.99)
    assert low <= .05 <= high
    strange = judge.p_values(made(300, 2))
    assert roc_auc_score(np.r_[np.ones(300), np.zeros(600)], -np.r_[strange, p]) > .9


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.data.samples import make_scenes
    return read_boxes(make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=36, size=128), progress=False)


@pytest.fixture(scope='module')
def learner(scenes):
    "Trained for a moment: it finds some of the cars"
    import tl_notebooks.models.save  # noqa: F401
    from tl_notebooks.learn.detection import detection_learner
    learn = detection_learner(scenes, backbone='timm/resnet18', weights='random', size=128, channels=64, convs=1, bs=4,
                              views=1, augment=False, norm='train', ema=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(6, 3e-3)
    learn.head_info = dict(kind='trained', threshold=LEAST); learn.mark('head_info')
    return learn


@pytest.fixture(scope='module')
def model(learner, tmp_path_factory): return learner.save_model(tmp_path_factory.mktemp('known')/'model', {})


def test_the_folder_keeps_drawn_boxes_and_boxes_found_on_objects(model, learner, scenes):
    from tl_notebooks.models.folder import Model
    m = Model(model)
    s, held = m.statistics(), m.held_out()
    n = scenes.boxes[~(scenes.boxes.crowd | scenes.boxes.difficult)]
    n = n[(scenes.items.split == 'train').to_numpy()[n.image]].label.value_counts()
    assert s.counts.tolist() == [n[c] for c in scenes.classes] # all, as there are fewer than 200
    truth = scenes.targets('valid', crowd=False)
    each = [(overlap(f['boxes'], t['boxes']), t['labels'])
            for f,t in zip(learner.get_boxes(score=LEAST), truth) if len(f['boxes'])]
    on = [labels[o.argmax(1)[o.max(1) >= .5]] for o,labels in each if len(labels)]
    assert sorted(held.y) == sorted(np.concatenate(on)) and len(held.y) > 3
    assert held.features.shape == (len(held.y), s.d) and held.logits.shape == (len(held.y), 0)


def test_the_command_calls_boxes_unknown_and_nothing_else_changes(model, learner, scenes, capsys, tmp_path):
    from tl_notebooks.models.folder import Model
    files = scenes.files('test')[:2]
    code, plain, _ = said(capsys, 'predict', model, *files)
    assert code == 0 and plain.splitlines()[0] == 'path,label,score,x1,y1,x2,y2'
    plain = rows_of(plain)
    code, out, _ = said(capsys, 'predict', model, *files, '--unknown', .5, '--draw', tmp_path/'drawn')
    rows = rows_of(out)
    assert code == 0 and out.splitlines()[0] == 'path,label,score,x1,y1,x2,y2,class,p_known'
    assert len(rows) == len(plain) > 20
    told = [r['label'] == 'unknown' for r in rows]
    assert told == [float(r['p_known']) <= .5 for r in rows] and 0 < sum(told) < len(told)
    for a,b in zip(plain, rows):
        assert (a['label'], a['score'], a['path']) == (b['class'], b['score'], b['path'])
        assert b['label'] in ('unknown', b['class'])
    drawn_there = sorted((tmp_path/'drawn').iterdir())
    assert len(drawn_there) == 2
    assert said(capsys, 'predict', model, *files, '--draw', tmp_path/'plain')[0] == 0
    assert any(np.asarray(Image.open(p)).tobytes() != np.asarray(Image.open(tmp_path/'plain'/p.name)).tobytes()
               for p in drawn_there)
    results = json.loads(said(capsys, 'predict', model, *files, '--unknown', .5, '--format', 'json')[1])
    assert [(r['category'], r['class'], round(r['p_known'], 6)) for r in results] == [
        (r['label'], r['class'], float(r['p_known'])) for r in rows]
    one = Model(model).predict(str(files[0]), unknown=.5)
    assert np.allclose(one.found['p_known'], [float(r['p_known']) for r in rows[:len(one.found['labels'])]], atol=1e-6)
    assert 'p_known' not in Model(model).predict(str(files[0])).found


def test_what_cannot_tell_unknown_boxes_says_what_is_missing(model, learner, scenes, capsys, tmp_path):
    from tl_notebooks.models.folder import Model, save_model
    file = scenes.files('test')[0]
    older = save_model(tmp_path/'older', learner.model, learner.info, scenes.classes)
    for args,what in (((older, file, '--unknown', .05), 'holds no features of boxes'),
                      ((model, file, '--unknown', 1e-6), 'boxes to judge by'),
                      ((model, file, '--unknown', 2), 'accepted: a rate above 0'),
                      ((model, file, '--unknown', .5, '--slice', 64), 'one of the two'),
                      ((model, file, '--unknown', .5, '--counts', tmp_path/'c'), 'one of the two'),
                      ((model, file, '--coverage', .9), 'is a detector')):
        code, out, err = said(capsys, 'predict', *args)
        assert code == 2 and what in err and not out, args
    code, _, err = said(capsys, 'watch', model, '--data', file)
    assert code == 2 and 'tl predict --unknown' in err
    m = Model(model)
    m.net = SimpleNamespace(arch='detr')
    with pytest.raises(InputError, match="kind 'detr', which gives no maps"): m.need_unknown(.05)


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
    "A detector of red squares, trained for seconds, with its held-out boxes"
    import tl_notebooks.models.save  # noqa: F401
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.learn.detection import detection_learner
    home = tmp_path_factory.mktemp('squares')
    root = drawn(home/'old', 84, 0, ['red'])
    coco = json.loads((root/'labels.json').read_text())
    for i,im in enumerate(coco['images']): im['split'] = 'train' if i < 24 else 'valid' if i < 54 else 'test'
    (root/'labels.json').write_text(json.dumps(coco))
    data = read_boxes(root, progress=False)
    learn = detection_learner(data, backbone='timm/resnet18', weights='random', size=96, channels=64, convs=1, bs=6,
                              views=1, augment=False, norm='train', ema=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(10, 2e-3)
    learn.head_info = dict(kind='trained', threshold=.2); learn.mark('head_info')
    drawn(home/'new', 36, 1, ['green'])
    return learn.save_model(home/'model', {}), data


def test_known_objects_of_new_images_are_called_unknown_about_as_often_as_asked(squares):
    from tl_notebooks.models.folder import Model
    folder, data = squares
    p = []
    for found,t in zip(Model(folder).predict([*map(str, data.files('test'))], unknown=.1), data.targets('test')):
        f = found.found
        if len(f['boxes']): p += [*f['p_known'][overlap(f['boxes'], t['boxes']).max(1) >= .5]]
    assert len(p) >= 20
    low, high = binomtest(int((np.array(p) <= .1).sum()), len(p)).proportion_ci(.999)
    assert low <= .1 <= high


def test_a_child_with_the_same_body_knows_the_parents_boxes_and_its_own(squares, tmp_path):
    from tl_notebooks.expand.boxes import BoxTuning, childs_boxes, expand_boxes, grown_net
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.models.folder import Model
    folder, _ = squares
    new = read_boxes(folder.parent/'new', valid_pct=0., progress=False)
    done = expand_boxes(folder, new, tmp_path/'child', mode='keep-scores', tuning=BoxTuning(epochs=1, views=1))
    parent, child = Model(folder), Model(done.folder)
    assert torch.equal(*(next(m.net.body.parameters()) for m in (parent, child)))
    s, was = child.statistics(), parent.statistics()
    assert np.array_equal(s.rows[0], was.rows[0]) and s.counts.tolist() == [was.counts[0], len(new.files('train'))]
    held, old = child.held_out(), parent.held_out()
    assert {*map(bytes, old.features)} <= {*map(bytes, held.features)}
    assert child.need_unknown(.1).p_values(s.rows[1].astype('f4')).min() > .05 # what it learned now is no stranger
    net = grown_net(parent, child.classes)
    with torch.no_grad(): next(net.body.parameters()).mul_(1.01)
    s, held, note = childs_boxes(parent, net, new, child.classes, 'fine-tune')
    assert s is None and held is None and 'the body moved' in note
