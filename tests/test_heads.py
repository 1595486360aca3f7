"A solved head is scikit-learn's ridge, its left-out scores are real refits, and merged statistics are one joint fit."
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeCV
from ridge_oracle import choice, divided, left_out, scaled_ridge, targets
from sklearn.preprocessing import StandardScaler

from tl_notebooks.core import InputError
from tl_notebooks.heads.ridge import EACH, GRID, fit_scale, ridge_loo, scale_of
from tl_notebooks.heads.statistics import (ClassStatistics, fit_into, join_classes, keep_classes, merge_statistics,
                                           move_rows, solve_statistics, statistics_from, statistics_state)

SHAPES = [(24, 200), (200, 24), (40, 40), (41, 40)]   # n << d, n >> d, and both sides of n = d


def draw(n, d, c=3, seed=0):
    "Overlapping classes, features of unequal scale and offset"
    rng = np.random.default_rng(seed)
    y = np.arange(n) % c
    x = rng.normal(size=(n, d)) + 1.5*rng.normal(size=(c, d))[y]/np.sqrt(d)*4
    return x*rng.uniform(0.5, 3, d) + rng.normal(size=d)*5, y


@pytest.mark.parametrize('n, d', SHAPES)
def test_standardising_is_sklearns(n, d):
    x, _ = draw(n, d)
    np.testing.assert_allclose((x - scale_of(x)[0])/scale_of(x)[1], StandardScaler().fit_transform(x), atol=1e-10)


@pytest.mark.parametrize('n, d', SHAPES)
@pytest.mark.parametrize('seed', range(3))
def test_left_out_scores_are_ridge_cvs_and_the_choice_is_the_strongest_within_one_error_of_the_best(n, d, seed):
    x, y = draw(n, d, seed=seed)
    alphas = np.logspace(-1, 4, 11)
    head = ridge_loo(x, y, 3, alphas)
    alpha, scores = choice(x, y, 3, alphas)
    assert head.alpha == pytest.approx(alpha)
    np.testing.assert_allclose(head.loo_scores, scores, atol=1e-6)
    assert head.loo_accuracy == pytest.approx((head.loo_scores.argmax(1) == y).mean())


@pytest.mark.parametrize('n, d', SHAPES)
def test_the_head_scores_raw_features_as_the_pipeline_does(n, d):
    x, y = draw(n, d)
    head = ridge_loo(x, y, 3)
    new = draw(50, d, seed=9)[0]
    ridge, z = scaled_ridge(x, targets(y, 3), head.alpha, new)
    assert head.weight.shape == (3, d) and head.bias.shape == (3,)
    np.testing.assert_allclose(new @ head.weight.T + head.bias, ridge.predict(z), atol=1e-4)


@pytest.mark.parametrize('n, d', SHAPES)
@pytest.mark.parametrize('alpha', [0.5, 50.])
def test_left_out_scores_are_those_of_refits(n, d, alpha):
    x, y = draw(n, d)
    z, t, loo = divided(x), targets(y, 3), ridge_loo(x, y, 3, [alpha]).loo_scores
    for i in range(0, n, 7):
        rest = np.arange(n) != i
        np.testing.assert_allclose(loo[i], Ridge(alpha).fit(z[rest], t[rest]).predict(z[[i]])[0], atol=1e-7)


def test_left_out_scores_of_unbalanced_and_repeated_rows_are_those_of_refits():
    x, _ = draw(30, 60)
    y = np.r_[np.zeros(26, int), 1, 1, 2, 2]         # a class of two rows: its class has one left when one goes
    x[5] = x[4]
    z, t, loo = divided(x), targets(y, 3), ridge_loo(x, y, 3, [3.]).loo_scores
    for i in (4, 5, 26, 29):
        rest = np.arange(30) != i
        np.testing.assert_allclose(loo[i], Ridge(3.).fit(z[rest], t[rest]).predict(z[[i]])[0], atol=1e-7)


def test_left_out_accuracy_is_honest_on_real_digits():
    x, y = load_digits(return_X_y=True)               # some pixels are constant, some nearly
    order = np.random.default_rng(0).permutation(len(y))
    fit, new = order[:300], order[300:]
    head = ridge_loo(x[fit], y[fit], 10)
    right = ((x[new] @ head.weight.T + head.bias).argmax(1) == y[new]).mean()
    assert right > 0.85
    assert abs(head.loo_accuracy - right) < 0.05


def test_the_order_of_rows_and_the_unit_of_features_do_not_matter():
    x, y = draw(40, 70)
    head, order = ridge_loo(x, y, 3), np.random.default_rng(1).permutation(40)
    mixed = ridge_loo(x[order], y[order], 3)
    np.testing.assert_allclose(mixed.loo_scores, head.loo_scores[order], atol=1e-8)
    other = ridge_loo(x*1000 + 7, y, 3)
    assert other.alpha == pytest.approx(head.alpha)
    np.testing.assert_allclose(other.loo_scores, head.loo_scores, atol=1e-6)


def test_a_constant_feature_changes_nothing():
    x, y = draw(30, 50)
    head = ridge_loo(x, y, 3, [2.])
    more = ridge_loo(np.c_[x, np.full(30, 0.1, np.float32)], y, 3, [2.])
    assert np.isfinite(more.weight).all() and (more.weight[:,-1] == 0).all()
    np.testing.assert_allclose(more.loo_scores, head.loo_scores, atol=1e-8)


@pytest.mark.parametrize('dtype, tol', [(torch.float64, 1e-7), (torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_any_float_type_comes_in(dtype, tol):
    x, y = draw(40, 60)
    head = ridge_loo(torch.from_numpy(x).to(dtype), torch.from_numpy(y), 3, [5.])
    np.testing.assert_allclose(head.loo_scores, ridge_loo(x, y, 3, [5.]).loo_scores, atol=tol)


def test_the_scale_is_where_the_log_loss_is_least():
    x, y = draw(120, 20, seed=4)
    scores = ridge_loo(x, y, 3).loo_scores + np.random.default_rng(0).normal(size=(120, 3))*1.5
    best = fit_scale(scores, y)
    loss = lambda s: torch.nn.functional.cross_entropy(torch.from_numpy(s*scores), torch.from_numpy(y)).item()
    assert loss(best) < min(loss(best*0.8), loss(best*1.25), loss(1e-3))


def test_few_or_broken_rows_are_refused_by_name():
    x, y = draw(12, 5)
    x[[2, 7]] = np.nan
    for bad, said in [(lambda: ridge_loo(x, y, 3), '2 of 12'),
                      (lambda: ridge_loo(x[:1], y[:1], 3), 'class'),
                      (lambda: ridge_loo(np.ones((6, 2)) * np.arange(6)[:,None], np.zeros(6, int), 2), 'class'),
                      (lambda: ridge_loo(np.ones((6, 2)), np.zeros(5, int), 2), '(6, 2)')]:
        with pytest.raises(InputError) as e: bad()
        assert said in str(e.value)


@pytest.mark.parametrize('n, d', SHAPES)
def test_merged_statistics_are_the_joint_fit(n, d):
    x, y = draw(n, d, c=4)
    new = draw(30, d, seed=5)[0]
    joint, z = scaled_ridge(x, targets(y, 4), 7., new)
    parts = [ClassStatistics.from_features(x[m], y[m], k) for m, k in ((y < 2, 2), (y == 2, 3), (y == 3, 4))]
    for a, b, c in ((0, 1, 2), (2, 0, 1)):           # in whatever order the classes came
        head = solve_statistics(merge_statistics(merge_statistics(parts[a], parts[b]), parts[c]), 7.)
        np.testing.assert_allclose(new @ head.weight.T + head.bias, joint.predict(z), atol=1e-7)


def test_statistics_and_left_out_ridge_are_the_same_head():
    x, y = draw(40, 90)
    head = ridge_loo(x, y, 3)
    again = solve_statistics(ClassStatistics.from_features(x, y, 3), head.alpha)
    np.testing.assert_allclose(again.weight, head.weight, atol=1e-6)
    np.testing.assert_allclose(again.bias, head.bias, atol=1e-5)


def test_a_large_mean_costs_no_digits():
    x, y = draw(60, 10)
    far = x + 1e6                                     # plain sums of squares would lose 12 of 16 digits
    near, far = (solve_statistics(merge_statistics(ClassStatistics.from_features(v[:30], y[:30], 3),
                                                   ClassStatistics.from_features(v[30:], y[30:], 3)), 1.).weight
                                                   for v in (x, far))
    np.testing.assert_allclose(far, near, rtol=1e-6, atol=1e-8)


def test_statistics_survive_a_safetensors_file(tmp_path):
    from safetensors.torch import load_file, save_file
    x, y = draw(50, 80)
    s = ClassStatistics.from_features(x, y, 3)
    save_file(statistics_state(s), tmp_path/'statistics.safetensors')
    back = statistics_from(load_file(tmp_path/'statistics.safetensors'))
    assert back.n == 50 and (back.counts == s.counts).all()
    np.testing.assert_array_equal(solve_statistics(back, 5.).weight, solve_statistics(s, 5.).weight)


@pytest.mark.parametrize('n, d', SHAPES)
def test_any_history_of_changes_ends_at_the_head_of_the_final_rows(n, d):
    """Adding, removing, joining and correcting, many times and in any order, is a fit of scikit-learn's ridge to what
    is left"""
    rng = np.random.default_rng(n + d)
    x, y = draw(n, d, c=4)
    s, rows, labels = ClassStatistics.from_features(x, y, 4), x, y.copy()
    for step in range(12):
        k = len(s.counts)
        kind = rng.choice(['add', 'remove', 'join', 'move', 'pool'] if k > 3 else ['add', 'move'])
        if kind == 'add':
            place, new = int(rng.integers(k + 1)), draw(int(rng.integers(1, 30)), d,
                                                        seed=step + 9)[0] + rng.normal(size=d)
            s = merge_statistics(s, ClassStatistics.from_features(new, [0]*len(new), 1), [place])
            rows, labels = np.r_[rows, new], np.r_[labels, [place]*len(new)]
        elif kind == 'remove':
            gone = int(rng.integers(k)); keep = [c for c in rng.permutation(k) if c != gone]
            s = keep_classes(s, keep)
            rows, labels = rows[labels != gone], np.array([keep.index(c) for c in labels if c != gone])
        elif kind == 'join':
            a, b = rng.choice(k, 2, replace=False)
            s = join_classes(s, a, b)
            labels = np.where(labels == b, a, labels); labels -= labels > b
        elif kind == 'move':
            was = int(np.bincount(labels).argmax()); at = np.flatnonzero(labels == was)[:2]
            now = int(rng.choice([c for c in range(k) if c != was]))
            s = move_rows(s, rows[at], was, now)
            labels[at] = now
        elif rng.random() < .3: # once pooled, classes cannot be removed: only at the end of a history
            s = fit_into(s, s.nbytes//2); break
        assert (s.counts == np.bincount(labels, minlength=len(s.counts))).all()
    new, head = draw(30, d, seed=77)[0], solve_statistics(s, 7.)
    joint, z = scaled_ridge(rows, targets(labels, len(s.counts)), 7., new)
    np.testing.assert_allclose(new @ head.weight.T + head.bias, joint.predict(z), atol=1e-6)
    # with all rows at hand, the strength is the one of all rows, and so is the factor of confidence
    if s.common is None:
        whole, head = ridge_loo(rows, labels, len(s.counts)), solve_statistics(s)
        assert head.alpha == pytest.approx(whole.alpha) and head.scale == pytest.approx(whole.scale, rel=1e-4)


COPIES = [0, .01, .05, .2]


def photographs(seed, share, near):
    "Rows around class means in a space of few directions, fewer than there are features; some of them there twice"
    rng = np.random.default_rng(seed)
    n, d, k = int(rng.integers(60, 260)), int(rng.integers(300, 700)), int(rng.integers(3, 7))
    mix = rng.normal(size=(40, d))*rng.uniform(.2, 2, d)
    center = rng.normal(size=(k, 40))*rng.uniform(.3, .7)
    def rows(n):
        y = np.arange(n) % k; return (center[y] + rng.normal(size=(n, 40))) @ mix + .5*rng.normal(size=(n, d)) + 3, y
    (x, y), (tx, ty) = rows(n), rows(2000)
    at = rng.choice(n, max(int(share > 0), round(share*n)), replace=False)
    extra = x[at] + near*x.std(0)*rng.normal(size=(len(at), d))
    return np.r_[x, extra], np.r_[y, y[at]], tx, ty, k


def right(head, x, y): return ((x @ head.weight.T + head.bias).argmax(1) == y).mean()


def ways(x, y, k, rng):
    "Heads of the same rows that came to be in different ways"
    whole = ClassStatistics.from_features(x, y, k)
    yield 'probe', ridge_loo(x, y, k)
    yield 'expand', solve_statistics(whole)
    parts, grown = np.array_split(rng.permutation(len(y)), 10), None
    for p in parts:
        part = ClassStatistics.from_features(x[p], y[p], k)
        grown = part if grown is None else merge_statistics(grown, part)
    yield 'ten steps', solve_statistics(grown)
    more = ClassStatistics.from_features(x[:7] + 1, [0]*7, 1)
    yield 'remove', solve_statistics(keep_classes(merge_statistics(whole, more, [k]), range(k)))
    apart = np.where((y == 0) & (np.arange(len(y)) % 2 == 0), k, y)
    yield 'join', solve_statistics(join_classes(ClassStatistics.from_features(x, apart, k + 1), 0, k))
    wrong = y.copy(); at = np.flatnonzero(y == 0)[:3]; wrong[at] = 1
    yield 'correct', solve_statistics(move_rows(ClassStatistics.from_features(x, wrong, k), x[at], 1, 0))
    half = len(y)//2
    yield 'merge', solve_statistics(merge_statistics(*(ClassStatistics.from_features(x[p], y[p], k)
                                                       for p in (slice(half), slice(half, None)))))


@pytest.mark.parametrize('share', COPIES)
@pytest.mark.parametrize('near', [0, .02], ids=['copies', 'near-copies'])
def test_copies_of_rows_cost_nothing_against_scikit_learn(share, near):
    "Fifty small sets in all, in whatever way the head came to be"
    ours, theirs = {}, []
    for seed in range(6 if share else 7):
        x, y, tx, ty, k = photographs(seed, share, near)
        cv = RidgeCV(np.logspace(-3, 6, 28)).fit(x, targets(y, k))
        theirs.append((cv.predict(tx).argmax(1) == ty).mean())
        for name, head in ways(x, y, k, np.random.default_rng(seed)):
            ours.setdefault(name, []).append(right(head, tx, ty))
    for name, found in ours.items():
        assert np.mean(found) > np.mean(theirs) - .005, (name, np.mean(found), np.mean(theirs))


def test_one_copy_does_not_move_the_strength_far():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 5; x = rng.normal(size=(5, 1280))[y]*.3 + rng.normal(size=(400, 1280))
    alone = solve_statistics(ClassStatistics.from_features(x, y, 5)).alpha
    twice = solve_statistics(ClassStatistics.from_features(np.r_[x, x[:1]], np.r_[y, y[:1]], 5)).alpha
    assert .2 < twice/alone < 5


def test_many_rows_choose_by_a_sample_of_their_own_content():
    "In any order and in any number of steps, and about as all rows would"
    x, y = draw(3*EACH*2, 40, seed=3)
    whole = ridge_loo(x, y, 3)
    order = np.random.default_rng(1).permutation(len(y))
    parts = [ClassStatistics.from_features(x[p], y[p], 3) for p in np.array_split(order, 5)]
    grown = parts[0]
    for p in parts[1:]: grown = merge_statistics(grown, p)
    assert all(len(r) == EACH for r in grown.rows)
    head = solve_statistics(grown)
    assert head.alpha == pytest.approx(whole.alpha) and head.scale == pytest.approx(whole.scale, rel=1e-6)
    every = left_out(divided(x), targets(y, 3), [head.alpha])[:,:,0]
    assert head.scale == pytest.approx(fit_scale(every, y), rel=.05)
    np.testing.assert_allclose(whole.loo_scores, every, atol=1e-6)


def test_a_row_that_was_never_there_is_not_taken_away():
    x, y = draw(20, 90)
    with pytest.raises(InputError, match='not among those of class 1'):
        move_rows(ClassStatistics.from_features(x, y, 3), x[y == 2][:1] + 9, 1, 2)


def test_names_known_in_advance_count_the_same_in_statistics_and_rows():
    x, y = draw(40, 90)
    prior = np.random.default_rng(3).normal(size=(3, 90))
    head = ridge_loo(x, y, 3, prior=prior)
    again = solve_statistics(ClassStatistics.from_features(x, y, 3, prior), head.alpha)
    np.testing.assert_allclose(again.weight, head.weight, atol=1e-6)
    assert np.abs(again.weight - solve_statistics(ClassStatistics.from_features(x, y, 3),
                                                  head.alpha).weight).max() > 1e-3


def test_the_confidence_from_statistics_is_that_of_rows_never_seen():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(4, 60))*.35
    y = np.arange(400) % 4; x = centre[y] + rng.normal(size=(400, 60))
    s = ClassStatistics.from_features(x, y, 4)
    head = solve_statistics(s)
    ty = np.arange(4000) % 4; scores = (centre[ty] + rng.normal(size=(4000, 60))) @ head.weight.T + head.bias
    assert .8 < head.scale/fit_scale(scores, ty) < 1.25
