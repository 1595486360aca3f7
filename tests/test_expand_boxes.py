"""A detector learns a new kind of object without losing those that nobody drew, and its certificate says what was
measured."""
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import page
from tl_notebooks.cli import main

COLORS = dict(red=(220, 30, 30), green=(30, 200, 60))


def drawn(folder, n, seed, classes):
    "Images in which red and green squares lie, and COCO annotations of some of them"
    r = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    coco = dict(images=[], annotations=[], categories=[dict(id=i, name=c) for i,c in enumerate(classes, 1)])
    for i in range(n):
        im = Image.fromarray(r.integers(90, 130, (96, 96, 3), 'uint8'))
        for k,c in enumerate(COLORS):
            s = int(r.integers(20, 34)); x, y = int(r.integers(0, 96 - s)), int(r.integers(0, 12)) + 50*((k + i) % 2)
            ImageDraw.Draw(im).rectangle([x, y, x + s - 1, y + s - 1], fill=COLORS[c])
            if c in classes:
                coco['annotations'].append(dict(id=len(coco['annotations']) + 1, image_id=i,
                                                category_id=classes.index(c) + 1, bbox=[x, y, s, s], iscrowd=0))
        im.save(folder/f'{i}.png')
        coco['images'].append(dict(id=i, file_name=f'{i}.png', width=96, height=96,
                                   split='test' if i % 3 == 2 else 'train'))
    (folder/'labels.json').write_text(json.dumps(coco))
    return folder


@pytest.fixture(scope='module')
def parent(tmp_path_factory):
    "A detector of red squares, trained for seconds, as a model folder"
    from tl_notebooks.models.folder import save_model
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.learn.detection import detection_learner
    home = tmp_path_factory.mktemp('squares')
    data = read_boxes(drawn(home/'old', 36, 0, ['red']), valid_pct=0., progress=False)
    learn = detection_learner(data, backbone='timm/resnet18', weights='random', size=96, channels=64, convs=1, bs=6,
                              views=1, augment=False, norm='train', ema=0.)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(8, 2e-3)
    drawn(home/'new', 36, 1, ['green'])
    return save_model(home/'model', learn.model, learn.info, data.classes, head=dict(kind='trained', threshold=.3))


def said(capsys, *args):
    code = main([*map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def certificate(folder): return json.loads((folder/'certificate.json').read_text())


def plain_fine_tuning(parent, epochs):
    "The same network, trained as if what nobody drew were background"
    from pathlib import Path
    from tl_notebooks.models.folder import Model
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.learn.detection import BoxLearner, box_dls
    from tl_notebooks.expand.boxes import numbered, grown_net
    m = Model(parent)
    net = grown_net(m, ['red', 'green'])
    data = numbered(read_boxes(parent.parent/'new', valid_pct=0., progress=False), ['red', 'green'])
    learn = BoxLearner(box_dls(data, 96, 6, views=1, augment=False), net, ema=0.,
                       info=m.manifest['backbone'] | m.manifest['preprocessing'], path=Path('.'))
    learn.freeze_to(-1)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-3)
    net.split_point = None
    return m, net


def test_old_kinds_stay_and_plain_fine_tuning_loses_them(parent, tmp_path, capsys):
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.expand.boxes import old_box_figures
    code, out, err = said(capsys, 'expand', parent, '--data', parent.parent/'new', '--old', parent.parent/'old',
                          '--epochs', 6, '--out', tmp_path/'grown')
    assert code == 0 and out.splitlines()[-1] == str(tmp_path/'grown'), err
    c = certificate(tmp_path/'grown')
    assert c['training']['drawn'] == ['green'] and c['training']['held'] == ['red'] and (c['judged_by']['old'],
            c['judged_by']['new']) == (12, 12)
    before, after = (c[f'old_accuracy_{k}']['value'] for k in ('before', 'after'))
    assert before > .8 and after > before - .25 and c['new_accuracy']['value'] > .5
    m, net = plain_fine_tuning(parent, 6)
    plain = old_box_figures(m, net, read_boxes(parent.parent/'old', valid_pct=0., progress=False), 'test',
                            ['red', 'green'], .3)
    assert plain['old_accuracy_after']['value'] < before - .5 # what the old kinds would have come to
    assert plain['greatest_change_of_an_old_logit'] > 2*c['greatest_change_of_an_old_logit']
    assert 'AP50' in (tmp_path/'grown'/'certificate.html').read_text()


def test_keep_scores_leaves_old_answers_alone(parent, tmp_path, capsys):
    code, out, err = said(capsys, 'expand', parent, '--data', parent.parent/'new', '--old', parent.parent/'old',
                          '--mode', 'keep-scores', '--epochs', 2,
                          '--out', tmp_path/'kept', '--max-old-drop', '0', '--max-logit-change', '1e-4')
    assert code == 0, err
    c = certificate(tmp_path/'kept')
    assert c['status'] == 'pass' and c['body_bit_identical'] and c['old_difference']['value'] == 0
    files = sorted((parent.parent/'old').glob('*.png'))[:4]
    was, now = (said(capsys, 'predict', model, *files, '--threshold', '.2')[1].splitlines()
                for model in (parent, tmp_path/'kept'))
    assert was and was == [r for r in now if ',green,' not in r]


def test_a_limit_that_is_not_met_is_exit_1_and_the_folder_is_there(parent, tmp_path, capsys):
    code, out, err = said(capsys, 'expand', parent, '--data', parent.parent/'new', '--mode', 'keep-scores', '--epochs',
                          1, '--out', tmp_path/'kept', '--max-old-drop', '0', '--min-new-accuracy', '1')
    assert code == 1 and (tmp_path/'kept'/'certificate.json').is_file()
    assert err.count('NOT MET') == 2 and 'nothing to judge it by' in err and 'old classes were not judged' in err


def test_pictures_that_were_learned_from_do_not_judge(parent, tmp_path):
    """A parent that keeps hashes: images it was trained on, as they were or encoded anew, are left out of what
    judges; their boxes go with them"""
    from tl_notebooks.models.folder import Model, save_model
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.judge.certificate import Limits
    from tl_notebooks.expand.boxes import BoxTuning, expand_boxes
    m, data = Model(parent), read_boxes(parent.parent/'old', valid_pct=0., progress=False)
    knows = save_model(tmp_path/'knows', m.net, m.manifest['backbone'] | m.manifest['preprocessing'], m.classes,
                       head=m.manifest['head'], learned=data)
    coco = json.loads((parent.parent/'old'/'labels.json').read_text())
    (tmp_path/'old').mkdir()
    for im in coco['images']: # all are tests now: 24 of the 36 were learned from
        picture = Image.open(parent.parent/'old'/im['file_name'])
        im['split'], im['file_name'] = 'test' if im['id'] else 'train', f"{im['id']}.{'jpg' if im['id'] % 2 else 'png'}"
        picture.save(tmp_path/'old'/im['file_name'])
    (tmp_path/'old'/'labels.json').write_text(json.dumps(coco))
    quick = BoxTuning(epochs=1, views=1)
    done = expand_boxes(knows, parent.parent/'new', tmp_path/'grown', 'keep-scores', tmp_path/'old',
                        limits=Limits(max_old_drop=1.), tuning=quick)
    j = done.certificate['judged_by']
    assert done.passed and (j['old'], j['left_out']['old']) == (12, {'what the parent learned from': 23})
    honest = {i for i in range(36) if i % 3 == 2}
    assert done.certificate['old_boxes'] == sum(a['image_id'] in honest for a in coco['annotations'])
    assert Model(done.folder).learned().complete and len(Model(done.folder).learned()) > len(Model(knows).learned())
    for im in coco['images']: im['split'] = 'test' if im['id'] % 3 == 1 else 'train'
    (tmp_path/'old'/'labels.json').write_text(json.dumps(coco))
    done = expand_boxes(knows, parent.parent/'new', tmp_path/'none', 'keep-scores', tmp_path/'old',
                        limits=Limits(max_old_drop=1.), tuning=quick)
    assert not done.passed and done.certificate['limits'][0]['value'] is None and any('not judged: all 12' in n
            for n in done.certificate['notes'])
    assert 'not judged: all 12 images were learned from' in page(done.folder/'certificate.html')


def test_requests_that_cannot_be_meant(parent, tmp_path, capsys):
    for more, says in ((['--data', parent.parent/'old'], 'which the model knows'), ([], 'nothing to do'),
                       (['--data', parent.parent/'new', '--remove', 'red'], 'not for detectors'),
                       (['--data', parent.parent/'new', '--mode', 'exact'], 'accepted for a detector'),
                       (['--data', tmp_path/'no'], 'does not exist')):
        code, out, err = said(capsys, 'expand', parent, *more, '--out', tmp_path/'x')
        assert (code, out) == (2, '') and says in err and not (tmp_path/'x').exists()


@pytest.mark.parametrize('arch', ['fcos', 'retinanet'])
def test_grown_rows_stand_where_the_old_ones_did(arch):
    """With several answers for each place (RetinaNet), rows of classes alternate with places; old probabilities must
    not move"""
    from types import SimpleNamespace
    from tl_notebooks.learn.detection import box_net
    from tl_notebooks.expand.boxes import grown_net
    pre = dict(arch=arch, size=128, mean=[.5]*3, std=[.5]*3, channels=64, convs=1, precision='fp32')
    torch.manual_seed(0)
    m = SimpleNamespace(net=box_net(dict(model='resnet18'), pre, 2).eval(),
                        manifest=dict(preprocessing=pre, backbone=dict(model='resnet18'), folder=''),
                        classes=['a', 'b'], device='cpu')
    for p in m.net.head.head.classification_head.cls_logits.parameters(): torch.nn.init.normal_(p, 0, .1)
    x = torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.inference_mode(): was, now = m.net(x)['cls_logits'], grown_net(m, ['a', 'b', 'c'])(x)['cls_logits']
    assert now.shape == (*was.shape[:2], 3) and torch.allclose(now[..., :2], was, atol=1e-4)


def test_what_a_message_about_annotations_offers_can_be_typed(parent, tmp_path, capsys):
    "Once the data is read, the refusal is about its classes, which is as far as this test goes"
    root = drawn(tmp_path/'new', 36, 1, ['red'])
    coco = json.loads((root/'labels.json').read_text())
    coco['annotations'][0]['bbox'][0] = -20
    (root/'labels.json').write_text(json.dumps(coco)); (root/'classes.txt').write_text('red\n')
    (root/'1.txt').write_text('0 .5 .5 .1 .1\n')
    say = ['expand', parent, '--data', root]
    code, _, err = said(capsys, *say)
    assert code == 2 and '`--format` of `tl expand`' in err
    code, _, err = said(capsys, *say, '--format', 'coco')
    assert code == 2 and '`--clip` of `tl expand`' in err
    code, _, err = said(capsys, *say, '--format', 'coco', '--clip')
    assert code == 2 and 'draws red, which the model knows' in err
    code, _, err = said(capsys, *say, '--annotations', 'labels.json', '--clip', '--exif', 'sideways')
    assert code == 2 and "`exif` is 'sideways'" in err
