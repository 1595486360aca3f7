"""A whole detector starts from the rows of the kinds it knows; transformers and torchvision say what it found
before."""
import numpy as np
import pytest
import tl_notebooks  # noqa: F401  first: it guards torchvision
import torch
import torchvision
from test_detection import tiny
from tl_notebooks.core import InputError
from tl_notebooks.data.boxes import read_boxes
from tl_notebooks.data.samples import make_scenes
from tl_notebooks.expand.boxes import grown_net
from tl_notebooks.learn.known_rows import known_detector
from tl_notebooks.learn.onnx_detector import box_learner
from tl_notebooks.models.folder import Model, save_model

KINDS = ['person', 'bicycle', 'car', 'bus', 'truck', 'dog']
KNOWN = 'car:car+truck+bus,pedestrian:person'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return read_boxes(make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=12, size=96), min_per_class=1)


def checkpoint(kind, folder, seed=0):
    "A random detector of six kinds that is sure of something, as transformers saves it"
    from transformers import AutoModelForObjectDetection
    config = tiny(kind)
    config.id2label, config.label2id = dict(enumerate(KINDS)), {k: i for i,k in enumerate(KINDS)}
    torch.manual_seed(seed)
    model = AutoModelForObjectDetection.from_config(config).eval()
    for n,p in model.named_parameters():
        if any(w in n for w in ('class_embed', 'score_head', 'labels_classifier')): torch.nn.init.normal_(p, 0, 1.)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize('kind', ['rt_detr_v2', 'd_fine', 'detr'])
def test_a_detector_of_transformers_finds_on_the_first_day_what_it_found_before(kind, tmp_path):
    from transformers import RTDetrImageProcessor
    model = checkpoint(kind, tmp_path/'tiny')
    net, info, match = known_detector(str(tmp_path/'tiny'), None, ['car', 'pedestrian'], KNOWN, size=64)
    assert match == dict(car=['car', 'truck', 'bus'], pedestrian=['person'])
    x = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    net.eval(); net.score_thresh, net.max_boxes = 0., 1000
    with torch.no_grad(): mine, out = net.detect(net(x)), model(pixel_values=net.normalised(x))
    if kind == 'detr': # its processor says the best kind of each place alone
        boxes = torchvision.ops.box_convert(out.pred_boxes*64, 'cxcywh', 'xyxy')
        theirs = [dict(scores=p[:,:-1].flatten(), labels=torch.arange(6).repeat(len(p)),
                       boxes=b.repeat_interleave(6, 0))
                  for p,b in zip(out.logits.softmax(-1), boxes)]
    else: theirs = RTDetrImageProcessor().post_process_object_detection(out, threshold=0., target_sizes=[(64, 64)]*2)
    place, seen = {0: 1, 2: 0, 3: 0, 4: 0}, 0 # COCO's row → our class
    for m,t in zip(mine, theirs):
        for score,label,box in zip(*(t[k] for k in ('scores', 'labels', 'boxes'))):
            if int(label) not in place: continue
            same = (m['labels'] == place[int(label)]) & ((m['boxes'] - box.clamp(0, 64)).abs().amax(1) < 1e-3)
            assert same.any() and m['scores'][same].max() >= score - 1e-6, (score, label)
            seen += bool(torch.isclose(m['scores'][same], score, atol=1e-6).any())
        assert len(m['labels']) == 2*out.logits.shape[1], 'every place answers once for each class'
    assert seen >= 4
    own = net.model.state_dict()
    assert all(torch.equal(v, own[k]) for k,v in model.state_dict().items())


@pytest.mark.parametrize('kind', ['rt_detr_v2', 'detr'])
def test_old_rows_keep_their_bits_beside_a_new_one_and_the_folder_learns_on(kind, scenes, tmp_path):
    model = checkpoint(kind, tmp_path/'tiny')
    learn = box_learner(scenes, str(tmp_path/'tiny'), size=64, bs=4, views=2, seed=0,
                        known=KNOWN + (',cyclist:' if 'cyclist' in scenes.classes else ''))
    fresh = [c for c in scenes.classes if not learn.match[c]]
    assert fresh and learn.match['car'] == ['car', 'truck', 'bus']
    own, n = learn.model.model.state_dict(), len(KINDS)
    for k,v in model.state_dict().items():
        same = torch.equal(v, own[k].cpu()) if v.shape == own[k].shape else torch.equal(v[:n], own[k][:n].cpu())
        assert same, k
        if v.shape != own[k].shape: assert torch.equal(v[n:], own[k][n + len(fresh):].cpu()) # no object
    with learn.no_bar(), learn.no_logging(): before = learn.validate()[0]; learn.fit_one_cycle(3, 2e-3)
    with learn.no_bar(): assert learn.validate()[0] < before
    save_model(tmp_path/'m', learn.model.eval(), learn.info, scenes.classes)
    x = learn.dls.valid.one_batch()[0]
    again = Model(tmp_path/'m').net
    with torch.no_grad(): a, b = (m.detect(m(x)) for m in (learn.model, again))
    assert all(torch.equal(i[k], j[k]) for i,j in zip(a, b) for k in i) and again.rows == learn.model.rows


@pytest.fixture(scope='module', params=['fcos_resnet50_fpn', 'retinanet_resnet50_fpn'])
def dense(request, tmp_path_factory):
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, weights=None, weights_backbone=None).eval()
    torch.nn.init.normal_(model.head.classification_head.cls_logits.weight, std=.05)
    path = tmp_path_factory.mktemp('dense')/'own.pth'
    torch.save(model.state_dict(), path)
    return request.param, model, path


@pytest.mark.parametrize('known', ['car:car,pedestrian:person', KNOWN])
def test_torchvisions_own_find_on_the_first_day_what_they_found_before(known, dense, tmp_path):
    name, model, path = dense
    net, info, match = known_detector(name, str(path), ['car', 'pedestrian', 'kite box'], known, size=64)
    cats = torchvision.models.get_model_weights(name).DEFAULT.meta['categories']
    a = 1 if name.startswith('fcos') else 9 # boxes that each place answers for
    own, was = (w.view(a, -1, *w.shape[1:]) for w in (m.classification_head.cls_logits.weight for m in (net.head.head,
                                                                                                        model.head)))
    at = [cats.index(k) for k in ('car', 'person')] if net.rows is None else sorted(
        cats.index(k) for k in ('car', 'bus', 'truck', 'person'))
    assert torch.equal(own[:, :len(at)], was[:, at]) and own.shape[1] == len(at) + 1 and net.n_classes == 3
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model.transform.min_size, model.transform.max_size, model.transform.size_divisible = (64,), 64, 1
    model.score_thresh, model.topk_candidates, model.detections_per_img = 0., 10**6, 10**6
    net.eval(); net.score_thresh, net.nms_thresh, net.max_boxes, net.head.topk_candidates = 0., 1., 10**6, 10**6
    model.nms_thresh = 1. # one box for each place, whatever class is beside it
    with torch.no_grad(): mine, = net.detect(net(x)); theirs, = model([*(x.float()/255)])
    for i,kinds in enumerate((match['car'], match['pedestrian'])):
        each = [theirs['scores'][theirs['labels'] == cats.index(k)] for k in kinds]
        best = torch.stack([s.sort(descending=True).values[:1] for s in each]).max()
        torch.testing.assert_close(mine['scores'][mine['labels'] == i].max(), best, rtol=1e-4, atol=1e-5)
        if len(kinds) == 1:
            mine_, theirs_ = (f['boxes'][f['labels'] == l] for f,l in ((mine, i), (theirs, cats.index(kinds[0]))))
            # each side sorted: equal scores may come in another order
            torch.testing.assert_close(mine_.sort(0).values, theirs_.sort(0).values, rtol=1e-3, atol=1e-2)
    info |= dict(arch=net.arch, size=64, precision='fp32', resize='squish', interpolation='bicubic')
    save_model(tmp_path/'m', net, info, ['car', 'pedestrian', 'kite box'])
    again = Model(tmp_path/'m')
    larger = grown_net(again, [*again.classes, 'tram'])
    with torch.no_grad(): before, after, loaded = (m.eval()(x)['cls_logits'] for m in (net, larger, again.net))
    assert torch.equal(loaded, before) and after.shape[-1] == 4
    torch.testing.assert_close(after[..., :3], before) # another number of rows may be rounded otherwise
    rows = [m.head.head.classification_head.cls_logits.weight.unflatten(0, (a, -1)) for m in (net, larger)]
    assert torch.equal(rows[1][:, :rows[0].shape[1]], rows[0])


def test_what_no_row_stands_for_is_said(tmp_path, scenes):
    checkpoint('detr', tmp_path/'tiny')
    assert known_detector(str(tmp_path/'tiny'), None, ['rocket'], size=64) is None
    with pytest.raises(InputError, match="'cars' is no kind of the detector. Did you mean 'car'"):
        known_detector(str(tmp_path/'tiny'), None, ['car'], 'car:cars', size=64)
    with pytest.raises(InputError, match='has 6 rows, but 2 kinds are named'):
        known_detector(str(tmp_path/'tiny'), None, ['car'], kinds=['a', 'b'], size=64)
    with pytest.raises(InputError, match='`known` and `kinds` are about detectors that know something'):
        box_learner(scenes, 'fcos', known='car:car')
    np.testing.assert_equal(known_detector(str(tmp_path/'tiny'), 'random', ['car'], size=64), None)
