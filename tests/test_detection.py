"""A detector finds what it was shown, in pixels of the image as it came; torchvision, transformers and the COCO
evaluator are the oracles."""
import os
import subprocess
import sys

import numpy as np
import pytest
import tl_notebooks # noqa: F401  first: it guards torchvision
import torch
from conftest import ROOT
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from tl_notebooks.models.folder import Model, save_model
from tl_notebooks.data.boxes import read_boxes
from tl_notebooks.data.learned import looks_of
from tl_notebooks.core import InputError, hash_state, write_json
from tl_notebooks.learn.detection import (ARCHS, EMA, GIVEN, BoxDL, BoxSet, box_dls, boxes_dl, box_transforms,
                                          detection_learner, onto_image, letterbox)
from tl_notebooks.expand.boxes import grown_net
from tl_notebooks.learn.backbones import load_box_model
from tl_notebooks.data.samples import make_scenes


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    was = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Eighteen small junctions"
    return read_boxes(make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=18, size=160), min_per_class=1)


def test_images_of_no_data_set_are_batches_too(scenes):
    "As fastai's `dls.test_dl` gives them: paths and images, whose boxes are those of the validation batches"
    learn = detection_learner(scenes, weights='random', size=96, precision='fp32', seed=0, cache=False)
    files = scenes.files('valid')
    dl = learn.dls.test_dl([files[0], str(files[1]), Image.open(files[2]), *files[3:]])
    found, known = learn.get_boxes(dl=dl, score=.01), learn.get_boxes(score=.01)
    assert len(found) == len(known) > 2 and sum(len(f['boxes']) for f in known)
    for a,b in zip(found, known):
        for k in b: assert np.array_equal(a[k], b[k])
    with pytest.raises(InputError, match='nowhere.png'): learn.get_boxes(dl=learn.dls.test_dl(['nowhere.png']))


@pytest.fixture(scope='module')
def blocks(tmp_path_factory):
    "Wide and tall images with red and blue blocks on grey noise; where they are is known"
    root, r, coco = tmp_path_factory.mktemp('blocks'), np.random.default_rng(0), dict(images=[], annotations=[],
            categories=[dict(id=1, name='red'), dict(id=2, name='blue')])
    for split,n in (('train', 24), ('valid', 8)):
        (root/split).mkdir()
        for i in range(n):
            w, h = ((200, 140), (120, 180))[i % 2]
            im = Image.fromarray(r.integers(90, 150, (h, w, 3), dtype=np.uint8))
            coco['images'].append(dict(id=len(coco['images']), file_name=f'{split}/{i}.png', width=w, height=h))
            for k, (x, y) in enumerate(((r.integers(0, w//2 - 50), r.integers(0, h//2 - 30)),
                                        (r.integers(w//2, w - 50), r.integers(h//2, h - 50)))):
                s = [int(v) for v in r.integers(28, 50, 2)]
                ImageDraw.Draw(im).rectangle((x, y, x + s[0] - 1, y + s[1] - 1),
                                             fill=((220, 30, 30), (30, 60, 220))[(i + k) % 2])
                coco['annotations'].append(dict(id=len(coco['annotations']), image_id=coco['images'][-1]['id'],
                                                category_id=1 + (i + k) % 2, bbox=[int(x), int(y), *s], iscrowd=0))
            im.save(root/split/f'{i}.png')
    write_json(root/'boxes.json', coco)
    return read_boxes(root, test_pct=0.)


def quiet(learn, epochs, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, *args, **kwargs)
    return [float(l) for l in learn.recorder.losses]


def map50(data, found, split='valid'):
    "By torchmetrics, which knows nothing of squares"
    from torchmetrics.detection import MeanAveragePrecision
    m = MeanAveragePrecision(backend='faster_coco_eval')
    tensors = lambda d, keys: {k: torch.as_tensor(np.array(d[k])) for k in keys}
    m.update([tensors(f, ('boxes', 'scores', 'labels')) for f in found],
             [tensors(t, ('boxes', 'labels')) for t in data.targets(split)])
    return float(m.compute()['map_50'])


# Learning, end to end

@pytest.mark.parametrize('arch,resize', [('fcos', 'pad'), ('fcos', 'squish'), ('retinanet', 'pad'),
                                         ('ssdlite', 'squish')])
def test_blocks_are_found_where_they_are(blocks, arch, resize):
    """Wide and tall images, a frozen body from the cache: a shifted, swapped or unscaled box anywhere on the way
    would ruin the score"""
    learn = detection_learner(blocks, arch, size=128, bs=6, resize=resize, views=3, channels=32, ema=.9)
    learn.freeze()
    # its towers of four layers want a smaller rate
    quiet(learn, 40 if arch == 'ssdlite' else 16, 1e-3 if arch == 'retinanet' else 1e-2)
    found = learn.get_boxes(score=.02)
    assert all((f['boxes'] <= [w, h, w, h]).all() for f,(w,h) in zip(found, learn.dls.valid.dataset.shapes))
    assert map50(blocks, found) > .8, map50(blocks, found)
    shifted = [f | {'boxes': f['boxes'] + 25} for f in found]
    assert map50(blocks, shifted) < .3 # the test can fail


# Repetition

SEEN = """
import sys, tl_notebooks, torch
torch.set_num_threads(1)
from tl_notebooks.data.boxes import read_boxes
from tl_notebooks.core import hash_state
from tl_notebooks.learn.detection import detection_learner
learn = detection_learner(read_boxes(sys.argv[1], min_per_class=1), size=96, bs=4, views=2, channels=32, seed=3)
learn.freeze_to(-2)
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-3)
print(hash_state(learn.model.state_dict()))
"""


def test_same_seed_same_bits_in_another_process_from_its_own_cache(scenes, tmp_path):
    learn = detection_learner(scenes, size=96, bs=4, views=2, channels=32, seed=3)
    learn.freeze_to(-2); quiet(learn, 2, 1e-3)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': '9', 'TL_NOTEBOOKS_CACHE': str(tmp_path),
           'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', SEEN, scenes.root], capture_output=True, text=True, env=env,
                          timeout=240)
    assert done.stdout.strip() == hash_state(learn.model.state_dict()), done.stderr[-2000:]
    other = detection_learner(scenes, size=96, bs=4, views=2, channels=32, seed=4)
    other.freeze_to(-2); quiet(other, 2, 1e-3)
    assert hash_state(other.model.state_dict()) != done.stdout.strip()


@pytest.mark.parametrize('thaw', [1, 3])
def test_the_cache_changes_nothing_but_the_time(scenes, thaw):
    losses = []
    for cache in (True, False):
        learn = detection_learner(scenes, size=96, bs=4, views=2, channels=32, cache=cache, ema=0)
        learn.freeze_to(-thaw)
        before = hash_state(learn.model.body.steps[:learn.model.body.frozen_steps()].state_dict())
        losses.append(quiet(learn, 3, 1e-3))
        assert hash_state(learn.model.body.steps[:learn.model.body.frozen_steps()].state_dict()) == before
        assert bool(learn.frozen_prefix.report) == cache
    np.testing.assert_allclose(*losses, rtol=2e-3)


def test_another_transform_or_seed_does_not_meet_old_rows(scenes):
    def rows(**kwargs):
        learn = detection_learner(scenes, size=96, bs=4, channels=32, **{'views': 2, **kwargs}); learn.precompute()
        return {*learn.frozen_prefix.stores}
    base = rows() # one store of plain images, training and validation, and one of variations
    assert len(base) == 2 and rows() == base
    for other in (dict(augment=box_transforms(96, zoom=(.9, 1.1))), dict(seed=1)):
        assert len(rows(**other) & base) == 1, other
    assert not rows(resize='pad') & base


def test_cached_batches_have_the_boxes_of_their_variation_and_a_new_annotation_at_once(scenes):
    learn = detection_learner(scenes, size=96, bs=4, views=3, channels=32); learn.freeze()
    frozen, dl = learn.frozen_prefix, learn.dls.train
    ds = dl.dataset
    ds.targets[0] = (ds.targets[0][0] + 1, ds.targets[0][1])
    cached, = frozen.opened(dl, [frozen.frozen_groups()], 3)
    for epoch in range(3):
        ds.epoch = epoch; own = [t for _,*t in dl]
        ds.epoch = epoch; kept = [t for _,*t in cached]
        assert ds.epoch == epoch + 1 and len(own) == len(kept)
        assert all(a.equal(b) for x,y in zip(own, kept) for a,b in zip(x, y))
    assert ds.apart


# Parts

def test_placing_there_and_back():
    r = np.random.default_rng(1)
    for resize in ('squish', 'pad'):
        for _ in range(50):
            w, h = r.integers(20, 3000, 2)
            b = np.sort(r.uniform(0, 1, (5, 2, 2)), 1).reshape(5, 4)*[w, h, w, h]
            a = letterbox(w, h, 416, resize)
            inside = b*np.tile(a[:2], 2) + np.tile(a[2:], 2)
            assert (inside >= 0).all() and (inside <= 416).all()
            np.testing.assert_allclose(onto_image(inside, a, w, h), b, atol=1e-6)


def test_a_picture_without_boxes_and_a_last_short_batch(scenes):
    ds = BoxSet(scenes, 'train', 96)
    ds.targets[0] = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batches = [*BoxDL(ds, 5)]
    assert sum(len(b[0]) for b in batches) == len(ds) and (batches[0][2][0] == -1).all()


def test_ema_is_the_recursion(scenes):
    learn = detection_learner(scenes, size=64, bs=4, views=2, channels=32, convs=1, ema=0)
    learn.freeze()
    from fastai.callback.core import Callback
    class Watch(Callback):
        order = 11
        def after_step(self): seen.append(p.detach().double().clone())
    p = learn.model.head.head.classification_head.cls_logits.weight
    seen, mean = [], p.detach().double().clone()
    learn.add_cbs([Watch(), EMA(.6)]); quiet(learn, 2, 1e-2)
    for n,w in enumerate(seen, 1): d = min(.6, (1 + n)/(10 + n)); mean = d*mean + (1 - d)*w
    torch.testing.assert_close(p.detach().double(), mean, rtol=1e-4, atol=1e-6)


def test_bf16_and_discriminative_rates(scenes):
    learn = detection_learner(scenes, size=64, bs=4, views=2, channels=32, precision='bf16')
    learn.freeze_to(-2)
    losses = quiet(learn, 3, slice(1e-4, 5e-3))
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    rates = [h['lr'] for h in learn.opt.hypers]
    assert rates == sorted(rates) and rates[0] < rates[-1]
    assert {s.dtype for s in learn.frozen_prefix.stores.values()} == {torch.bfloat16}


@pytest.mark.parametrize('what,message', [(dict(arch='fcoss'), 'not known'), (dict(size=100), 'multiples of 32'),
                                          (dict(precision='fp16'), 'accepted: auto, fp32, bf16'),
                                          (dict(resize='crop'), 'squish, pad'),
                                          (dict(arch='ssdlite320_mobilenet_v3_large'),
                                           'accepted: fcos, retinanet, ssdlite, fcos_resnet50_fpn'),
                                           (dict(backbone='vit_tiny_patch16_224', weights='random'), 'strides')])
def test_what_cannot_be_is_refused(scenes, what, message):
    with pytest.raises(InputError, match=message): detection_learner(scenes, **{'size': 64, **what})


# Model folders

@pytest.mark.parametrize('arch', ARCHS)
def test_a_model_folder_gives_the_same_answers(scenes, tmp_path, arch):
    learn = detection_learner(scenes, arch, size=64, bs=4, channels=32)
    save_model(tmp_path/'m', learn.model, learn.info, scenes.classes)
    again = Model(tmp_path/'m')
    assert again.manifest[
            'task'] == 'boxes' and again.classes == scenes.classes and again.manifest['preprocessing']['arch'] == arch
    x = learn.dls.one_batch()[0]
    a, b = learn.model.eval()(x), again.net(x)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_detector_learns_evaluates_and_is_saved_as_other_learners_do(scenes, tmp_path):
    "Its figure is that of COCO's evaluator, and the folder keeps it and the threshold"
    from tl_notebooks.all import box_learner, expand, load_model
    learn = box_learner(scenes, size=64, bs=4, views=2, channels=32, convs=1)
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, base_lr=1e-3)
        head, found = learn.calibrate(), learn.evaluate()
    assert learn.evaluated is found and next(iter(found.metrics)) == 'map50'
    assert found.metrics['map50'].value == pytest.approx(coco_ap50(found.truth, found.found, scenes.classes), abs=1e-6)
    model = load_model(learn.save_model(tmp_path/'m'))
    assert model.manifest['head']['threshold'] == head['threshold']
    assert model.manifest['metrics']['map50']['value'] == found.metrics['map50'].value
    for p,f in zip(model.predict(scenes.files('test'), threshold=.02), found.found): # double boxes of one thing go
        assert np.abs(p.found['scores'][:, None] - f['scores']).min(1).max(initial=0) < 1e-4
    assert model.learned().count(looks_of(scenes.files('train'))).all()
    alone, other = ([len(p.found['scores']) for p in model.predict(scenes.files('test')*2, bs=2, threshold=t)]
                    for t in (.02, .3))
    both = zip(*(model.predict(scenes.files('test')*2, bs=2, threshold=t) for t in (.02, .3)))
    assert [(len(a.found['scores']), len(b.found['scores'])) for a,b in both] == [*zip(alone, other)]
    with pytest.raises(InputError, match='`rename` is not for'):
        expand(tmp_path/'m', out=tmp_path/'x', rename={'car': 'a'})


def coco_ap50(truths, preds, classes):
    "AP50 as COCO's own evaluator has it"
    from faster_coco_eval import COCO, COCOeval_faster
    boxes = lambda d: [[x, y, X - x, Y - y] for x,y,X,Y in np.asarray(d['boxes'], float).reshape(-1, 4).tolist()]
    rows = lambda ds: [dict(id=1000*i + k + 1, image_id=i + 1, category_id=int(l) + 1, bbox=b, area=b[2]*b[3],
                            iscrowd=0)
                       for i,d in enumerate(ds) for k,(b,l) in enumerate(zip(boxes(d), d['labels']))]
    said = [r | dict(score=float(s)) for r,s in zip(rows(preds), (s for p in preds for s in p['scores']))]
    gt = COCO()
    gt.dataset = dict(images=[dict(id=i + 1) for i in range(len(truths))], annotations=rows(truths),
                      categories=[dict(id=k + 1, name=c) for k,c in enumerate(classes)])
    gt.createIndex()
    ev = COCOeval_faster(gt, gt.loadRes(said), 'bbox', print_function=lambda *a: None)
    ev.evaluate(); ev.accumulate(); ev.summarize()
    return ev.stats[1]


def test_a_model_is_asked_with_pictures_made_square_as_it_was_trained(scenes, tmp_path):
    "A detector from before the manifest said so was trained with bilinear ones"
    from tl_notebooks.models.folder import write_manifest
    learn = detection_learner(scenes, size=64, bs=4, channels=32)
    m = Model(save_model(tmp_path/'m', learn.model, learn.info, scenes.classes))
    assert m.task.reading == dict(size=64, resize='squish', interpolation='bicubic')
    file = scenes.files('train')[0]
    assert torch.equal(m.task.take(file), learn.dls.train.dataset.picture(0))
    manifest = {k: v for k,v in m.manifest.items() if k != 'folder'}
    del manifest['preprocessing']['interpolation']
    write_manifest(tmp_path/'m', manifest)
    old = Model(tmp_path/'m')
    assert old.task.reading['interpolation'] == 'bilinear' and not torch.equal(old.task.take(file), m.task.take(file))
    write_manifest(tmp_path/'m', manifest | {'preprocessing': {**manifest['preprocessing'],
                                                               'interpolation': 'magic'}})
    with pytest.raises(InputError, match="'magic'; this version reads bicubic, bilinear"): Model(tmp_path/'m')


# Detectors of torchvision, as they come

@pytest.mark.parametrize('arch', GIVEN)
def test_a_detector_of_torchvision_goes_on_from_its_file(scenes, tmp_path, arch):
    """A file like COCO's gives all but the class head; the frozen body is computed once; the model folder gives the
    same answers, and its rows grow"""
    from torchvision.models import resnet50
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    torch.manual_seed(0)
    theirs = load_box_model(arch, 'random', 91)[0]
    theirs.backbone = _resnet_fpn_extractor(resnet50(norm_layer=FrozenBatchNorm2d), 5, returned_layers=[2, 3, 4],
                                            extra_blocks=LastLevelP6P7(256, 256))
    for m in theirs.modules():
        if isinstance(m, FrozenBatchNorm2d): m.weight.fill_(.4); m.running_var.uniform_(.5, 2)
    torch.save(theirs.state_dict(), tmp_path/'coco.pth')
    learn = detection_learner(scenes, arch, weights=str(tmp_path/'coco.pth'), size=64, bs=4, views=1, seed=0)
    assert learn.info['fresh'] and all('cls_logits' in k
                                       for k in learn.info['fresh']) and learn.info[
            'library'] == 'torchvision' and (learn.info['channels'], learn.info['convs']) == (256, 4)
    x, net = learn.dls.valid.one_batch()[0], learn.model.eval()
    theirs.eval()
    if arch.startswith('retinanet'): # its file is from the time when the norms had no epsilon
        for m in theirs.backbone.modules():
            if isinstance(m, FrozenBatchNorm2d): m.eps = 0.
    with torch.no_grad():
        mine, want = net(
                x)['bbox_regression'], theirs.head([*theirs.backbone(net.normalised(x)).values()])['bbox_regression']
    torch.testing.assert_close(mine, want, rtol=1e-3, atol=1e-4*float(want.abs().max()))
    learn.freeze()
    body = hash_state(net.body.state_dict())
    losses = quiet(learn, 4, 1e-3)
    assert np.mean(losses[-4:]) < np.mean(
            losses[:4]) and hash_state(
            net.body.state_dict()) == body and learn.frozen_prefix.report[0]['computed'] == len(scenes.subset('train'))
    save_model(tmp_path/'m', net, learn.info, scenes.classes)
    again = Model(tmp_path/'m')
    with torch.no_grad(): out, same = net.eval()(x), again.net(x)
    assert all(torch.equal(out[k], same[k]) for k in out)
    with torch.no_grad(): more = grown_net(again, [*scenes.classes, 'tram'])(x)['cls_logits']
    assert torch.equal(more[..., :len(scenes.classes)], out['cls_logits']) and more.shape[-1] == len(scenes.classes) + 1


# Detectors of transformers

def tiny(kind):
    "A random checkpoint, as small as its architecture allows"
    from transformers import DetrConfig, DFineConfig, HGNetV2Config, ResNetConfig, RTDetrResNetConfig, RTDetrV2Config
    resnet = dict(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1]*4, layer_type='basic')
    shared = dict(encoder_hidden_dim=32, encoder_ffn_dim=32, d_model=32, decoder_in_channels=[32]*3, decoder_ffn_dim=32,
                  num_queries=12, decoder_layers=2,
                  encoder_attention_heads=2, decoder_attention_heads=2, num_denoising=4, anchor_image_size=None)
    three = ['stage2', 'stage3', 'stage4']
    if kind == 'rt_detr_v2':
        return RTDetrV2Config(backbone_config=RTDetrResNetConfig(**resnet, out_features=three),
                              encoder_in_channels=[16, 24, 32], **shared)
    if kind == 'd_fine':
        return DFineConfig(backbone_config=HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 24, 32], stage_mid_channels=[8]*4,
        stage_out_channels=[16, 24, 32, 40], stage_num_blocks=[1]*4,
        stage_numb_of_layers=[1]*4, hidden_sizes=[16, 24, 32, 40], depths=[1]*4, embedding_size=8, out_features=three),
        encoder_in_channels=[24, 32, 40], **shared)
    return DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                      backbone_config=ResNetConfig(**resnet, out_features=['stage4']), d_model=32,
                      encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
                      encoder_attention_heads=2, decoder_attention_heads=2, num_queries=12)


@pytest.mark.parametrize('kind', ['rt_detr_v2', 'd_fine', 'detr'])
def test_a_detector_of_transformers_from_a_folder(scenes, tmp_path, kind):
    from transformers import AutoModelForObjectDetection, DetrImageProcessor, RTDetrImageProcessor
    torch.manual_seed(0)
    AutoModelForObjectDetection.from_config(tiny(kind)).save_pretrained(tmp_path/'tiny')
    learn = detection_learner(scenes, str(tmp_path/'tiny'), size=64, bs=4, views=2, seed=0)
    learn.freeze()
    body = hash_state({k: v for k,v in learn.model.state_dict().items() if '.backbone.' in k})
    with learn.no_bar(): before = learn.validate()[0]
    quiet(learn, 4, 2e-3)
    with learn.no_bar(): assert learn.validate()[0] < before
    assert hash_state({k: v for k,v in learn.model.state_dict().items() if '.backbone.' in k}) == body
    x, net = learn.dls.valid.one_batch()[0], learn.model.eval()
    net.score_thresh = 0.
    with torch.no_grad(): out, ref = net(x), net.model(pixel_values=net.normalised(x))
    processor = DetrImageProcessor() if kind == 'detr' else RTDetrImageProcessor()
    for mine, theirs in zip(net.detect(out), processor.post_process_object_detection(ref, threshold=0.,
            target_sizes=[(64, 64)]*len(x))):
        n = len(theirs['scores']) # DETR's takes the best class of each query, ours the best pairs
        top = theirs['scores'].argmax()
        torch.testing.assert_close(mine['scores'][0], theirs['scores'][top])
        assert mine['labels'][0] == theirs['labels'][top]
        torch.testing.assert_close(mine['boxes'][0], theirs['boxes'][top].clamp(0, 64), rtol=1e-4, atol=1e-3)
        if kind != 'detr':
            torch.testing.assert_close(mine['scores'][:n],
                                       theirs['scores'].sort(descending=True).values[:len(mine['scores'])])
    save_model(tmp_path/'m', net, learn.info, scenes.classes)
    assert (tmp_path/'m'/'config.json').is_file(
            ) and 'tiny' not in (tmp_path/'m'/'manifest.json').read_text().replace('"name": "tiny"',
            '').replace('"model": "tiny"', '')
    with torch.no_grad(): torch.testing.assert_close(Model(tmp_path/'m').net(x)['logits'], out['logits'])
    assert len(learn.get_boxes(dl=boxes_dl(scenes, 'test', learn.dls.valid))) == len(scenes.subset('test'))
    assert load_file(tmp_path/'m'/'weights.safetensors').keys() == net.state_dict().keys()
