"Intervals hold what they promise, and every figure agrees with statsmodels, SciPy, scikit-learn or torch."
import json

import numpy as np
import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score
from statsmodels.stats.contingency_tables import mcnemar as sm_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from tl_notebooks.core import InputError
from tl_notebooks.heads.calibrate import fit_temperature, nll
from tl_notebooks.judge.evidence import (accuracy, balanced_accuracy, ece, forgetting, interval, mcnemar,
                                         paired_difference, per_class_recall, reliability)


@pytest.mark.parametrize('k, n', [(0, 1), (1, 1), (0, 60), (60, 60), (59, 60), (3, 7), (354, 360), (5000, 10000)])
@pytest.mark.parametrize('level', [0.8, 0.95, 0.99])
def test_a_share_has_wilsons_interval(k, n, level):
    i = interval(k, n, level)
    np.testing.assert_allclose((i.low, i.high), proportion_confint(k, n, 1 - level, method='wilson'), atol=1e-12)
    assert 0 <= i.low <= i.value <= i.high <= 1


def test_wilson_covers_95_percent_on_average_and_never_far_less():
    n, ps = 40, np.linspace(0.03, 0.97, 95)
    ends = [interval(k, n) for k in range(n + 1)]
    cover = [sum(binom.pmf(k, n, p) for k, i in enumerate(ends) if i.low <= p <= i.high) for p in ps]
    assert 0.945 < np.mean(cover) < 0.96 and min(cover) > 0.85


@pytest.mark.parametrize('k, n', [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_refused(k, n):
    with pytest.raises(InputError): interval(k, n)


def labelled(seed, n=200, c=4):
    rng = np.random.default_rng(seed)
    y = rng.choice(c, n, p=[0.5, 0.3, 0.15, 0.05])
    return y, np.where(rng.random(n) < 0.75, y, rng.integers(0, c, n))


@pytest.mark.parametrize('seed', range(5))
def test_recalls_are_sklearns(seed):
    y, pred = labelled(seed)
    mine = per_class_recall(y, pred, list('abcd'))
    np.testing.assert_allclose([mine[c].value for c in 'abcd'], recall_score(y, pred, average=None))
    assert balanced_accuracy(y, pred, 4).value == pytest.approx(balanced_accuracy_score(y, pred))
    assert accuracy(y, pred).value == pytest.approx((y == pred).mean())


def test_balanced_accuracy_counts_only_classes_that_occur():
    assert balanced_accuracy([0, 0, 2], [0, 1, 2], 4).value == 0.75


def test_balanced_accuracy_with_no_error_is_still_uncertain():
    i = balanced_accuracy([0, 1]*10, [0, 1]*10, 2)
    assert i.high == 1 and 0.7 < i.low < 0.95


@pytest.mark.parametrize('recall', [(0.9, 0.8, 0.95), (0.99, 0.99, 0.99), (0.5, 0.3, 0.7)])
def test_balanced_accuracy_intervals_cover(recall):
    rng, sizes = np.random.default_rng(0), (60, 25, 10)
    y = np.repeat(np.arange(3), sizes)
    def covers():
        pred = np.where(rng.random(len(y)) < np.array(recall)[y], y, (y + 1) % 3)
        i = balanced_accuracy(y, pred, 3)
        return i.low <= np.mean(recall) <= i.high
    assert np.mean([covers() for _ in range(1000)]) > 0.925


def pair(e, f, g, h):
    "Right/wrong of two models from the four counts: both, only a, only b, neither"
    return np.repeat([True, True, False, False], (e, f, g, h)), np.repeat([True, False, True, False], (e, f, g, h))


TABLES = [(36, 12, 2, 0), (50, 3, 9, 8), (20, 0, 0, 5), (0, 7, 1, 0), (300, 20, 21, 19), (10, 0, 5, 0)]


@pytest.mark.parametrize('table', TABLES)
def test_mcnemar_is_statsmodels_exact_test(table):
    e, f, g, h = table
    theirs = sm_mcnemar([[e, f], [g, h]], exact=True).pvalue
    assert mcnemar(*pair(*table)) == pytest.approx(min(theirs, 1))


@pytest.mark.parametrize('table', TABLES)
def test_a_paired_difference_is_antisymmetric_and_holds_its_value(table):
    a, b = pair(*table)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == pytest.approx(a.mean() - b.mean())
    assert -1 <= there.low <= there.value <= there.high <= 1
    np.testing.assert_allclose((there.low, there.high), (-back.high, -back.low), atol=1e-12)


@pytest.mark.parametrize('table', [(30, 20, 15, 10),   # no correlation: 30·10 = 20·15
                                   (30, 20, 14, 10)])  # a little, which the continuity correction takes for none
def test_without_correlation_a_paired_difference_is_newcombes_for_independent_shares(table):
    a, b = pair(*table)
    i = paired_difference(a, b)
    theirs = confint_proportions_2indep(a.sum(), len(a), b.sum(), len(b), method='newcomb', compare='diff')
    np.testing.assert_allclose((i.low, i.high), theirs, atol=1e-9)


def test_a_paired_difference_is_the_published_one():
    i = paired_difference(*pair(36, 12, 2, 0))         # Newcombe 1998, Statist. Med. 17:2635, method 10
    np.testing.assert_allclose((i.value, i.low, i.high), (0.2, 0.0569, 0.3404), atol=5e-5)


def test_models_that_err_on_the_same_rows_are_compared_more_sharply():
    same, apart = (paired_difference(*pair(*t)) for t in ((70, 10, 5, 15), (60, 20, 15, 5)))   # equal shares in both
    assert same.value == pytest.approx(apart.value)
    assert same.high - same.low < 0.8*(apart.high - apart.low)


@pytest.mark.parametrize('p', [(0.80, 0.08, 0.04, 0.08), (0.90, 0.05, 0.03, 0.02), (0.3, 0.2, 0.2, 0.3)])
def test_paired_difference_intervals_cover(p):
    rng = np.random.default_rng(0)
    tables = rng.multinomial(80, p, size=1000)
    ends = [paired_difference(*pair(*t)) for t in tables]
    cover = np.mean([i.low <= p[1] - p[2] <= i.high for i in ends])
    assert 0.93 < cover < 0.995


@pytest.fixture(scope='module')
def predicted():
    "Logits that are twice as sure as they may be, and labels drawn from what they should be"
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4000, 5))*1.5
    p = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    y = (rng.random((4000, 1)) > p.cumsum(1)).sum(1).clip(max=4)
    return logits*2, y


def softmax(logits): return torch.from_numpy(logits).softmax(1).numpy()


def test_the_temperature_is_found_and_is_torchs(predicted):
    logits, y = predicted
    t = torch.ones(1, dtype=torch.float64, requires_grad=True)
    opt = torch.optim.LBFGS([t], max_iter=100, line_search_fn='strong_wolfe')
    def step():
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits)/t, torch.from_numpy(y)); loss.backward()
        return loss
    opt.step(step)
    assert fit_temperature(logits, y) == pytest.approx(t.item(), rel=1e-3)
    assert 1.85 < t.item() < 2.15


def test_log_loss_is_the_textbooks(predicted):
    logits, y = predicted
    assert nll(logits, y) == pytest.approx(log_loss(y, softmax(logits)))


def test_calibration_error_is_that_of_a_histogram(predicted):
    logits, y = predicted
    p = softmax(logits)
    conf, right = p.max(1), p.argmax(1) == y
    edges = np.linspace(0, 1, 11)
    count, gap = np.histogram(conf, edges)[0], np.histogram(conf, edges, weights=right*1. - conf)[0]
    assert ece(p, y) == pytest.approx(np.abs(gap).sum()/len(y))
    bins = reliability(p, y)
    assert bins.count.tolist() == count[count > 0].tolist()
    assert ((bins.low <= bins.accuracy) & (bins.accuracy <= bins.high)).all()
    assert ece(softmax(logits/2), y) < 0.03 < 0.1 < ece(p, y)   # calibrated at the right temperature, not before


def test_a_certain_prediction_falls_into_the_last_bin():
    assert reliability(np.eye(2), [0, 0]).count.tolist() == [2]


def test_forgetting_is_the_best_before_less_now():
    f = forgetting({'a': [0.9, 0.8], 'b': 0.5}, {'a': 0.7, 'b': 0.6, 'new': 1.})
    assert f['a'] == pytest.approx(0.2) and f['b'] == pytest.approx(-0.1) and set(f) == {'a', 'b'}
    with pytest.raises(InputError, match='b'): forgetting({'b': 0.5}, {'a': 1.})


def test_intervals_are_plain_json():
    y, pred = labelled(0)
    all_of = [accuracy(y, pred), balanced_accuracy(y, pred, 4), paired_difference(y == pred, y == 0),
              *per_class_recall(y, pred, list('abcd')).values()]
    for i in all_of:
        kept = json.loads(json.dumps(i.as_json(), allow_nan=False))
        assert kept['value'] == i.value and set(kept) == {'value', 'low', 'high', 'n'}
