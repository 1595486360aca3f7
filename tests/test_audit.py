"What looks at data finds what was planted in it, and its figures agree with libraries that this project did not write."
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter, ImageOps
from tl_notebooks.core import InputError
from tl_notebooks.data.samples import make_parts, sample_path
from tl_notebooks.judge.audit import copies_table, item_column, judge_claim, label_errors
from tl_notebooks.judge.evidence import interval
from tl_notebooks.judge.forecast import accuracy_at, bootstrap_laws, forecast
from tl_notebooks.judge.labelled import Seen, class_numbers, families_of, kind_of, left_out, main_axes, read_labelled
from tl_notebooks.judge.rank import candidate, log_evidence
from tl_notebooks.judge.shortcuts import find_shortcuts, marks_of_images, marks_of_texts


def clouds(n=60, k=4, d=12, apart=3.5, seed=0):
    "Features of k classes, n each"
    rng, y = np.random.default_rng(seed), np.repeat(np.arange(k), n)
    return Seen(apart*np.eye(d)[y] + rng.normal(size=(n*k, d)), y, np.arange(n*k), 'toy', 0., [*'abcdefgh'[:k]])


@pytest.mark.parametrize('share', [.05, .1])
def test_flipped_labels_rank_as_high_as_the_usual_way_has_them(share):
    "Beside cleanlab on cross-validated logistic regression from scikit-learn"
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import cross_val_predict
    ours, theirs = [], []
    for seed in range(3):
        s, rng = clouds(seed=seed), np.random.default_rng(seed)
        flipped = np.zeros(len(s.y), bool)
        flipped[rng.choice(len(s.y), int(share*len(s.y)), replace=False)] = True
        s.y = np.where(flipped, (s.y + rng.integers(1, 4, len(s.y))) % 4, s.y)
        usual = cross_val_predict(LogisticRegression(max_iter=500), s.x, s.y, cv=5, method='predict_proba')
        for out,probs in ((ours, left_out(s)), (theirs, usual)):
            quality = get_label_quality_scores(s.y, probs, method='self_confidence')
            out.append(average_precision_score(flipped, -quality))
        found = label_errors(left_out(s), s.y)
        assert flipped[found.row].mean() > .7 and flipped[found.row].sum() > .6*flipped.sum()
    assert np.mean(ours) > np.mean(theirs) - .02, (ours, theirs)


def test_principal_components_rank_flipped_labels_as_high_as_the_usual_way_on_all_features():
    from cleanlab.rank import get_label_quality_scores
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import cross_val_predict
    s, rng = clouds(n=300, d=1100, apart=12), np.random.default_rng(0)
    s.x = s.x*np.geomspace(3, .1, s.x.shape[1]) # as of a network: some features vary far more than others
    flipped = rng.random(len(s.y)) < .05
    s.y = np.where(flipped, (s.y + rng.integers(1, 4, len(s.y))) % 4, s.y)
    short = main_axes(s)
    assert short.x.shape == (1200, 512) and main_axes(short) is short
    usual = cross_val_predict(LogisticRegression(max_iter=200), s.x, s.y, cv=5, method='predict_proba')
    ours, theirs = (average_precision_score(flipped, -get_label_quality_scores(s.y, p, method='self_confidence'))
                    for p in (left_out(short), usual))
    assert ours > theirs - .02 and ours > .5, (ours, theirs)


def test_marks_are_the_same_whenever_they_are_taken(tmp_path, monkeypatch):
    root = make_parts(tmp_path/'parts', kinds=['bolt', 'nut'], n=6, size=300)
    Image.open(root/'nut'/'nut_0001.jpg').resize((900, 700)).save(root/'nut'/'big.png')
    found = []
    for marks in (True, False):
        monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/f'cache {marks}'))
        data = read_labelled(root, marks=marks, progress=False)
        assert len(data.marks) == (len(data.items) if marks else 0)
        found.append(marks_of_images(data))
    assert found[0].equals(found[1])
    assert found[0].width.max() == 900 and found[0].format.nunique() == 2


def test_one_of_a_kind_is_not_doubted():
    s = clouds()
    s.y = np.where(np.arange(len(s.y)) == 0, 4, s.y)
    s.classes = [*'abcde']
    assert left_out(s)[0].argmax() != 4 and 0 not in label_errors(left_out(s), s.y).row.to_list()


def test_a_copy_does_not_vouch_for_itself():
    s = clouds(20)
    s.x, s.y = np.concatenate([s.x, s.x[:1]]), np.append((s.y + 0), 1)
    s.y[0] = 1 # a wrong label, twice
    s.family = np.append(s.family, 0)
    probs = left_out(s)
    assert probs[0].argmax() == probs[-1].argmax() == 0 and np.allclose(probs[0], probs[-1])


def test_evidence_is_that_of_a_bayesian_ridge():
    "scikit-learn's, with flat priors, at the same optimum"
    from sklearn.linear_model import BayesianRidge
    s = clouds(30, 3)
    each = []
    for c in range(3):
        m = BayesianRidge(max_iter=500, tol=1e-8, alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, compute_score=True,
                          fit_intercept=False).fit(s.x, (s.y == c).astype(float))
        each.append(m.scores_[-1]/len(s.y))
    assert abs(log_evidence(s.x, s.y, 3, steps=200) - np.mean(each)) < 2e-3


def test_a_forecast_holds_what_comes_later():
    "80 % intervals on curves whose law is known"
    rng, inside = np.random.default_rng(0), 0
    sizes = [20, 40, 80, 160, 320]
    for i in range(12):
        floor, scale, rate = rng.uniform(0, .15), rng.uniform(.5, 1.2), rng.uniform(.3, .8)
        hard = rng.random(500)
        right = np.stack([[hard > floor + scale*n**-rate for n in sizes] for _ in range(3)]).astype('float32')
        found = accuracy_at(bootstrap_laws(right, sizes, 60, seed=i), 1280)
        # what these items would come to, since it is they that the curve was measured on
        inside += found.low - 1e-9 <= (hard > floor + scale*1280**-rate).mean() <= found.high + 1e-9
    assert inside >= 9, inside


PLANT = {
    'file format': lambda p, im: (im.save(p.with_suffix('.png')), p.unlink()),
    'JPEG quality': lambda p, im: im.save(p, quality=35),
    'width and height': lambda p, im: im.resize((72, 72)).save(p, quality=90),
    'aspect': lambda p, im: im.resize((96, 76)).save(p, quality=90),
    'file size': lambda p, im: p.write_bytes(p.read_bytes() + os.urandom(4000)),
    'borders': lambda p, im: ImageOps.expand(im.crop((5, 5, 91, 91)), 5, 'black').save(p, quality=90),
    'blur': lambda p, im: im.filter(ImageFilter.GaussianBlur(2)).save(p, quality=90),
    'file name': lambda p, im: p.rename(p.with_name('scan_' + p.name)),
}


def camera(p, im):
    exif = Image.Exif(); exif[271], exif[272] = 'ACME', 'X1'
    im.save(p, quality=90, exif=exif)


def shortcuts_of(root):
    data = read_labelled(root, progress=False)
    return [s for s in find_shortcuts(marks_of_images(data), class_numbers(data), data.classes, families_of(data))
            if s.found]


@pytest.mark.parametrize('kind', [*PLANT, 'camera'])
def test_a_planted_shortcut_is_found(kind, tmp_path):
    root = make_parts(tmp_path/'parts', kinds=['gear', 'nut', 'pin', 'spring'], n=30, size=96)
    for p in sorted((root/'nut').iterdir())[::2]: ({'camera': camera} | PLANT)[kind](p, Image.open(p).copy())
    found = shortcuts_of(root)
    assert kind in [s.feature for s in found] and {s.label for s in found} == {'nut'}


def test_half_a_class_of_another_season_is_found_though_no_two_images_are_of_one_minute(tmp_path):
    root = make_parts(tmp_path/'parts', kinds=['gear', 'nut', 'pin'], n=30, size=64)
    for i,p in enumerate(sorted(root.rglob('*.jpg'))):
        exif, winter = Image.Exif(), p.parent.name == 'nut' and i % 2
        month = '2023:01' if winter else '2022:07'
        exif.get_ifd(0x8769)[36867] = f'{month}:{1 + 7*i % 28:02} {i % 24:02}:{i % 60:02}:00'
        Image.open(p).save(p, quality=90, exif=exif)
    found = shortcuts_of(root)
    assert [(s.feature, s.label) for s in found] == [('date', 'nut')] and found[0].share == .5


def test_clean_images_have_no_shortcuts(tmp_path):
    for i,kinds in enumerate((['gear', 'nut', 'pin'], ['bolt', 'screw', 'washer'], ['spring', 'bearing', 'bracket'])):
        assert not shortcuts_of(make_parts(tmp_path/str(i), kinds=kinds, n=30, size=96))


def test_texts_that_one_source_ends_otherwise(tmp_path):
    words, rng = 'the part came late and was fine but box torn again we sent it back'.split(), np.random.default_rng(0)
    rows = [dict(text=' '.join(rng.choice(words, 9)) + ('!!' if i % 4 == 1 else ''), label='ab'[i % 2])
            for i in range(160)]
    pd.DataFrame(rows).to_csv(tmp_path/'t.csv', index=False)
    data = read_labelled(tmp_path/'t.csv')
    found = [s for s in find_shortcuts(marks_of_texts(data), class_numbers(data), data.classes) if s.found]
    assert [(s.feature, s.label) for s in found] == [('punctuation', 'b')] and item_column(data) == 'text'


def test_copies_by_what_they_do(tmp_path):
    root = make_parts(tmp_path/'parts', kinds=['gear', 'nut'], n=10, size=96)
    Image.open(root/'gear'/'gear_0001.jpg').resize((80, 80)).save(root/'nut'/'nut_0900.jpg', quality=80)
    shutil.copy(root/'nut'/'nut_0002.jpg', root/'nut'/'nut_0901.jpg')
    data = read_labelled(root, progress=False)
    found = copies_table(data, families_of(data))
    kinds = {data.items.path[r]: k for r,k in zip(found.row, found.kind)}
    assert kinds == {'gear/gear_0001.jpg': 'two labels', 'nut/nut_0900.jpg': 'two labels',
                     'nut/nut_0002.jpg': 'same class', 'nut/nut_0901.jpg': 'same class'}


def test_a_claim_is_judged_by_the_difference_of_two_shares():
    "Newcombe's interval, as statsmodels has it"
    from statsmodels.stats.proportion import confint_proportions_2indep
    a, b = interval(80, 100), interval(170, 200)
    found = judge_claim(b.as_json(), a)['difference']
    assert np.allclose([found['low'], found['high']], confint_proportions_2indep(80, 100, 170, 200, method='newcomb'))
    assert judge_claim(dict(value=.95), interval(9, 10))['verdict'].startswith('cannot be told with 10 items; about')


def test_requests_that_cannot_be_met_say_what_could(tmp_path):
    make_parts(tmp_path/'one', kinds=['gear'], n=4, size=64)
    (tmp_path/'empty').mkdir()
    for ask, says in ((lambda: read_labelled(tmp_path/'one'), 'has one class'),
                      (lambda: kind_of(tmp_path/'empty'), 'is an empty folder'),
                      (lambda: kind_of(tmp_path/'nowhere'), 'does not exist'),
                      (lambda: read_labelled(tmp_path/'one', 'pictures'), 'accepted: auto, images'),
                      (lambda: read_labelled(sample_path('scenes')), 'images with boxes'),
                      (lambda: forecast(clouds(3)), 'to see a curve'), (lambda: forecast(clouds(), 2), 'such as 0.95'),
                      (lambda: candidate('no_such_net', 'image'), 'is not known'),
                      (lambda: candidate('e5_small@9', 'text'), 'size and features are of images'),
                      (lambda: candidate('efficientnet_lite0:lost', 'image'), "Did you mean 'last'")):
        with pytest.raises(InputError, match=says): ask()
