"""Box figures are those of COCO's evaluator, also in every resampled set; suppression is torchvision's; what a slice
finds lies where it is."""

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO, COCOeval_faster

from tl_notebooks.judge.box_scores import (IOUS, MAX_BOXES, SIZES, average_precision, box_confusion, box_scores,
                                           choose_threshold, compare_boxes, compare_scores, crossfit_thresholds,
                                           match_boxes, pr_curves)
from tl_notebooks.core import nms

CLASSES = ['car', 'pedestrian', 'cyclist', 'tram'] # no tram is ever drawn


def made(seed, n=40, noise=6, crowds=True, scores=60):
    """Images of 300 × 200 with objects of all sizes, and predictions that move, miss, double, confuse and make up;
    scores often tie"""
    r = np.random.default_rng(seed)
    truths, preds = [], []
    for _ in range(n):
        k = int(r.integers(0, 9))
        corner, side = r.uniform(0, 150, (k, 2)), np.exp(r.uniform(np.log(6), np.log(150), (k, 2)))
        boxes, labels = np.concatenate([corner, corner + side], 1), r.integers(0, 3, k)
        truths.append(dict(boxes=boxes, labels=labels, crowd=(r.random(k) < .1) & crowds))
        some = np.repeat(np.arange(k), r.integers(0, 4, k))
        guess = boxes[some] + r.normal(0, noise, (len(some), 4))*r.choice([.05, .3, 1], (len(some), 1))
        extra = r.uniform(0, 150, (int(r.integers(0, 5)), 2))
        guess = np.concatenate([guess, np.concatenate([extra, extra + r.uniform(3, 90, extra.shape)], 1)])
        guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2] + 1)
        said = np.concatenate([np.where(r.random(len(some)) < .85, labels[some], r.integers(0, 3, len(some))),
                               r.integers(0, 3, len(extra))])
        preds.append(dict(boxes=guess, labels=said, scores=r.integers(1, scores, len(said))/scores))
    return truths, preds


def coco(truths, preds, n_classes=len(CLASSES)):
    "(sizes, overlaps, classes) average precision from COCO's own lists, without torchmetrics"
    xywh = lambda b: [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]
    gt, dt = COCO(), COCO()
    gt.dataset = dict(images=[dict(id=i) for i in range(len(truths))],
                      categories=[dict(id=k, name=str(k)) for k in range(n_classes)], annotations=[
        dict(id=1, image_id=i, category_id=int(l), bbox=xywh(b), area=xywh(b)[2]*xywh(b)[3], iscrowd=int(c))
        for i,t in enumerate(truths) for b,l,c in zip(t['boxes'], t['labels'], t['crowd'])])
    for n,a in enumerate(gt.dataset['annotations'], 1): a['id'] = n
    gt.createIndex()
    results = [dict(image_id=i, category_id=int(l), bbox=xywh(b), score=float(s)) for i,p in enumerate(preds) for b,l,
               s in zip(p['boxes'], p['labels'], p['scores'])]
    ev = COCOeval_faster(gt, gt.loadRes(results), 'bbox', print_function=lambda *a: None)
    ev.evaluate(); ev.accumulate()
    p = ev.eval['precision'][..., -1]
    ev.summarize()
    return np.where(p < 0, np.nan, p).mean(1).transpose(2, 0, 1), ev.stats


@pytest.fixture(scope='module', params=range(6))
def case(request):
    return made(request.param, noise=3 + 2*request.param, crowds=request.param != 1,
                scores=[9, 60, 10**6][request.param % 3])


def same(a, b, eps=1e-9):
    a, b = np.asarray(a, float), np.asarray(b, float)
    assert (np.isnan(a) == np.isnan(b)).all()
    np.testing.assert_allclose(np.nan_to_num(a), np.nan_to_num(b), atol=eps, rtol=0)


def test_figures_are_the_evaluators(case):
    ap, stats = coco(*case)
    s = box_scores(*case, CLASSES, draws=20)
    names = ['map', 'map50', 'map75', 'map_small', 'map_medium', 'map_large']
    same([s.metrics[k].value for k in names], stats[:6], 1e-6)
    for k,c in enumerate(CLASSES[:3]): assert s.metrics[f'map50/{c}'].value == pytest.approx(ap[0, 0, k], abs=1e-9)
    assert not [k for k in s.metrics if k.endswith('/tram')] # nothing to find, no figure
    assert all(m.low <= m.value <= m.high for m in s.metrics.values())


def test_matching_once_gives_the_same(case):
    matches = match_boxes(*case, len(CLASSES))
    same(np.stack([average_precision(m)[0] for m in matches], 2), coco(*case)[0])


def test_every_resampled_set_is_what_the_evaluator_says_of_it(case):
    """The images of a set are really put together, as often as they were drawn, and given to the evaluator.

    Scores do not tie here within an image: of two copies of it, the evaluator then takes the first one's boxes before
    the second one's.
    """
    truths, preds = case
    preds = [{**p, 'scores': p['scores'] + np.random.default_rng(i).random(len(p['scores']))*1e-6} for i,
             p in enumerate(preds)]
    n = len(truths)
    w = np.random.default_rng(1).multinomial(n, np.full(n, 1/n), size=4)
    ours = np.stack([average_precision(m, w) for m in match_boxes(truths, preds, len(CLASSES))], 3)
    for row,got in zip(w, ours):
        again = np.repeat(np.arange(n), row)
        same(got, coco([truths[i] for i in again], [preds[i] for i in again])[0])


def test_more_than_a_hundred_boxes_of_a_class():
    truths, preds = made(3, n=3)
    r = np.random.default_rng(0)
    many = r.uniform(0, 200, (3*MAX_BOXES, 2))
    preds[0] = dict(boxes=np.concatenate([many, many + r.uniform(5, 40, many.shape)], 1), scores=r.random(len(many)),
                    labels=np.zeros(len(many), int))
    same(np.stack([average_precision(m)[0] for m in match_boxes(truths, preds, 4)], 2), coco(truths, preds)[0])


def test_order_of_boxes_does_not_matter():
    truths, preds = made(4, scores=10**9)
    r = np.random.default_rng(0)
    mixed = []
    for p in preds: o = r.permutation(len(p['scores'])); mixed.append({k: v[o] for k,v in p.items()})
    assert box_scores(truths, preds, CLASSES, draws=30).metrics == box_scores(truths, mixed, CLASSES, draws=30).metrics


def test_an_interval_lies_around_its_figure():
    truths, preds = made(5, n=300)
    s = box_scores(truths, preds, CLASSES, draws=300)
    assert s.metrics['map50'].low < s.metrics['map50'].value < s.metrics['map50'].high


def test_intervals_hold_what_they_promise():
    "Of small sets drawn from one source, about 19 in 20 intervals hold the source's figure"
    truths, preds = made(6, n=800, crowds=False)
    source = box_scores(truths, preds, CLASSES, draws=0).metrics['map50'].value
    r, held = np.random.default_rng(0), 0
    for _ in range(40):
        some = r.choice(len(truths), 40, replace=False)
        i = box_scores([truths[j] for j in some], [preds[j] for j in some], CLASSES, draws=100).metrics['map50']
        held += i.low <= source <= i.high
    assert 33 <= held <= 40


def test_curves_and_threshold_against_counting():
    """At every threshold, precision and recall are those of the boxes that are left, counted anew; the best F1 is the
    best of them"""
    truths, preds = made(7, crowds=False)
    cut = lambda t: [{k: v[p['scores'] >= t] for k,v in p.items()} for p in preds]
    def counted(t, k):
        m = match_boxes(truths, cut(t), 3)[k]
        return m.hit[0, 0].sum()/max(len(m.scores), 1), m.hit[0, 0].sum()/m.truths[0].sum()
    curves = pr_curves(match_boxes(truths, preds, 4), CLASSES)
    assert list(curves) == CLASSES[:3]
    for k,c in enumerate(curves.values()):
        for i in range(0, len(c.thresholds), 7):
            assert (c.precision[i], c.recall[i]) == pytest.approx(counted(c.thresholds[i], k))
    t = choose_threshold(truths, preds, CLASSES)
    def f1(t):
        m = match_boxes(truths, cut(t), 3)
        hits, said, there = (sum(v) for v in zip(*((x.hit[0, 0].sum(), len(x.scores), x.truths[0].sum()) for x in m)))
        return 2*hits/(said + there)
    assert f1(t) >= max(f1(v) for v in np.linspace(.02, .98, 49)) - 1e-12


def test_confusion_counts_everything_once():
    truths, preds = made(8)
    there = sum((~t['crowd']).sum() for t in truths)
    c = compare_boxes(truths, preds, CLASSES, .4)
    m = box_confusion(c, truths, preds, len(CLASSES))
    assert m[:-1].sum() == there and m[-1, -1] == 0
    hits = sum(x.hit[0, 0][x.scores >= .4].sum() for x in match_boxes([{**t, 'crowd': t['crowd'] & False}
            for t in truths], preds, 4))
    same_without_crowd = box_confusion(compare_boxes([{**t, 'crowd': t['crowd'] & False} for t in truths], preds,
                                                     CLASSES, .4), truths, preds, 4)
    assert np.trace(same_without_crowd) == hits
    assert same_without_crowd[:, :-1].sum() == sum((p['scores'] >= .4).sum() for p in preds)


# --- suppression

def by_definition(boxes, scores, threshold):
    """torchvision's definition, word by word: "iteratively removes lower scoring boxes which have an IoU greater than
    `iou_threshold`
    with another (higher scoring) box". Equal scores in the order in which they stand; 0/0 of two points is above no
    threshold."""
    order = sorted(range(len(boxes)), key=lambda i: -scores[i]) # Python's sort is stable
    kept = []
    for i in order:
        x1, y1, x2, y2 = boxes[i]
        for j in kept:
            u1, v1, u2, v2 = boxes[j]
            inter = np.float32(max(min(x2, u2) - max(x1, u1), 0))*np.float32(max(min(y2, v2) - max(y1, v1), 0))
            union = (x2 - x1)*(y2 - y1) + (u2 - u1)*(v2 - v1) - inter
            if union != 0 and np.float32(inter)/np.float32(union) > np.float32(threshold): break
        else: kept.append(i)
    return kept


def nms_case(seed):
    """Nothing, one box, ties in place and score, boxes without area, corners the wrong way round never, thresholds of
    every kind"""
    r = np.random.default_rng(seed)
    n = int(r.choice([0, 1, 2, r.integers(3, 40)], p=[.03, .05, .1, .82]))
    if r.random() < .5: corner, side = r.integers(0, 12, (n, 2)), r.integers(0, 7, (n, 2))
    else: corner, side = r.uniform(0, 60, (n, 2)), np.abs(r.normal(12, 9, (n, 2)))*(r.random((n, 2)) > .05)
    scores = r.integers(0, 6, n)/5 if r.random() < .5 else r.random(n)
    return np.concatenate([corner, corner + side], 1).astype('float32'), scores.astype('float32'), r.integers(0, 4,
            n), float(r.choice([0, .25, .45, .5, .7, 1, r.random()]))


def test_suppression_is_the_published_one_in_a_thousand_cases():
    "One class, and by class as `batched_nms` has it (torchvision shifts the classes apart, or takes them one by one)"
    from torchvision.ops import batched_nms
    tied = 0
    for seed in range(1000):
        boxes, scores, labels, t = nms_case(seed)
        b, s = torch.from_numpy(boxes), torch.from_numpy(scores)
        assert nms(b, s, t).tolist() == by_definition(boxes, scores, t), f'case {seed}'
        # by class
        each = sorted(i for k in range(4) for i in np.flatnonzero(labels == k)[by_definition(boxes[labels == k],
                scores[labels == k], t)])
        # shifting rounds other boxes, and then a tie at the threshold may fall either way
        whole = (boxes == boxes.round()).all()
        if whole: assert sorted(batched_nms(b, s, torch.from_numpy(labels), t).tolist()) == each, f'case {seed}'
        tied += len(scores) > len(set(scores.tolist()))
    assert tied > 300


def test_suppression_is_the_compiled_one():
    from tl_notebooks import core
    import torchvision  # noqa: F401
    if core.guard_torchvision() != 'working':
        pytest.skip('torchvision\'s compiled operator does not load beside this torch')
    for seed in range(1000):
        boxes, scores, _, t = nms_case(seed)
        # the compiled one does not promise an order of equal scores
        scores = scores + np.arange(len(scores), dtype='float32')[::-1]*1e-5
        b, s = torch.from_numpy(boxes), torch.from_numpy(scores)
        assert nms(b, s, t).tolist() == torch.ops.torchvision.nms(b, s, t).tolist(), f'case {seed}'


# Copies of one image, and thresholds without their own images

def test_three_copies_of_every_picture_are_no_more_evidence_than_one():
    "Figures, intervals and their n are those of the images once; taken for more, copies nearly halve the intervals"
    truths, preds = made(3, n=24, scores=10**6) # ties would be ordered otherwise
    fewer = [{k: v[::2] for k,v in p.items()} for p in preds]
    def thrice(dicts): return [d for d in dicts for _ in range(3)]
    family = thrice([f'source {i:02}' for i in range(24)])
    once = box_scores(truths, preds, CLASSES, draws=300)
    kept = box_scores(thrice(truths), thrice(preds), CLASSES, draws=300, groups=family)
    for k,i in once.metrics.items():
        same([*kept.metrics[k].as_json().values()], [*i.as_json().values()])
    naive = box_scores(thrice(truths), thrice(preds), CLASSES, draws=300)
    for k in ('map50', 'map', 'map50/car'):
        assert naive.metrics[k].high - naive.metrics[k].low < .75*(once.metrics[k].high - once.metrics[k].low)
    of_once = compare_scores(box_scores(truths, fewer, CLASSES, draws=0), once, draws=300)
    less = box_scores(thrice(truths), thrice(fewer), CLASSES, draws=0, groups=family)
    of_kept = compare_scores(less, kept, draws=300)
    same([*of_kept.as_json().values()], [*of_once.as_json().values()])


def test_a_threshold_does_not_know_the_pictures_that_it_judges():
    "Whatever the truth of a family's images is, their own threshold stays; those of others follow it"
    truths, preds = made(5, n=20)
    groups = [i//2 for i in range(20)]
    was, moved = crossfit_thresholds(truths, preds, CLASSES, groups=groups), 0
    assert len({*was}) > 1
    empty = dict(boxes=np.zeros((0, 4)), labels=np.zeros(0, int))
    for g in range(10):
        own = np.array(groups) == g
        now = crossfit_thresholds([empty if o else t for t,o in zip(truths, own)], preds, CLASSES, groups=groups)
        assert (now[own] == was[own]).all()
        moved += (now != was).sum()
    assert moved


def test_a_threshold_flatters_the_pictures_that_it_was_chosen_on():
    "Few images and scores of pure chance: F1 at its best on the same images, and honest without them"
    def f1(truths, preds, at):
        c = [compare_boxes([t], [p], CLASSES, float(a))[0] for t,p,a in zip(truths, preds, at)]
        hits, said = sum(len(x.hits) for x in c), sum(len(x.hits) + len(x.confused) + len(x.false_alarms) for x in c)
        return 2*hits/max(1, said + sum(len(t['labels']) for t in truths))
    same, fair, other = [], [], []
    for seed in range(30):
        truths, preds = made(100 + seed, n=6, crowds=False)
        more = made(900 + seed, n=40, crowds=False)
        t = choose_threshold(truths, preds, CLASSES)
        same.append(f1(truths, preds, [t]*6)); other.append(f1(*more, [t]*40))
        fair.append(f1(truths, preds, crossfit_thresholds(truths, preds, CLASSES)))
    assert np.mean(fair) < np.mean(same) and abs(np.mean(fair) - np.mean(other)) < abs(np.mean(same) - np.mean(other))
