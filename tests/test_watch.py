"What a model says of items that it does not know: p-values that hold, nights that repeat, labels that come back."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tl_notebooks  # noqa: F401  before timm
import timm
import torch
from conftest import page, tl
from scipy.stats import binom, binomtest
from sklearn.metrics import roc_auc_score
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.expand.door import expand
from tl_notebooks.heads.statistics import ClassStatistics, solve_statistics
from tl_notebooks.heads.unknown import HeldOut, Unknown, class_sets
from tl_notebooks.judge.drift import DriftState, add_night
from tl_notebooks.judge.watch import _other_shares, watch, write_watched
from tl_notebooks.learn.vision import image_learner
from tl_notebooks.models.adopt import adopt
from tl_notebooks.models.save import load_model


# Promises about numbers, on draws whose truth is known

def draw(rng, n, classes, d=12, apart=4.):
    y = rng.integers(len(classes), size=n)
    return rng.standard_normal((n, d)) + apart*np.eye(d)[np.array(classes)[y]], y


def test_p_values_hold_on_average():
    "Over models: a known item is called unknown in at most the share of cases that was asked for, and not in far fewer"
    rng, hits, n = np.random.default_rng(0), np.zeros(2), 0
    for _ in range(60):
        x, y = draw(rng, 120, [0, 1, 2])
        known = Unknown([x[y == c] for c in range(3)], x[:60])
        p = known.p_values(draw(rng, 50, [0, 1, 2])[0])
        hits += [(p <= r).sum() for r in (.05, .2)]; n += 50
    for h,rate in zip(hits, (.05, .2)): assert rate - .02 < h/n < rate + .02, (h/n, rate)


def test_sets_hold_the_true_class_as_often_as_asked():
    rng, hits, n = np.random.default_rng(0), 0, 0
    for _ in range(60):
        (x, y), (t, ty) = draw(rng, 150, [0, 1, 2], apart=2), draw(rng, 100, [0, 1, 2], apart=2)
        sets = class_sets(HeldOut(x, y, x[:,:3]), t[:,:3], .9)
        hits += sets[np.arange(100), ty].sum(); n += 100
    assert abs(hits/n - .9) < .02


def test_quiet_years_and_a_change_that_is_noticed():
    "False alarms over whole streams are no more than chance would have of 5 %, and 10 % of strange items are seen"
    rng, alarms, noticed = np.random.default_rng(0), 0, 0
    for _ in range(20):
        state = DriftState(rng.standard_normal((200, 6)))
        for _ in range(15): state = add_night(state, rng.standard_normal((30, 6)))
        alarms += state.p <= .05
        new = rng.standard_normal((200, 6)); new[rng.random(200) < .1, 0] += 4
        noticed += add_night(state, new).p <= .05
    assert binomtest(alarms, 40, .05, 'greater').pvalue > .01 and noticed >= 18


def test_held_out_scores_are_those_of_a_head_without_the_row():
    rng = np.random.default_rng(0)
    x, y = draw(rng, 60, [0, 1, 2])
    s = ClassStatistics.from_features(x, y, 3)
    found = solve_statistics(s, alpha=5., held=(x[:7], y[:7])).left_scores
    for i in range(7):
        rest = np.arange(60) != i
        # the same standardisation, as leaving one row out has it: its own moves by a sixtieth
        other = solve_statistics(ClassStatistics.from_features(x[rest], y[rest], 3), alpha=5.)
        assert np.abs(found[i] - (other.weight @ x[i] + other.bias)).max() < .05


# A model

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp('watch')
    make_parts(root/'old', kinds=PARTS[:3], n=30, size=64)
    make_parts(root/'new', kinds=PARTS[4:5], n=24, size=64)
    torch.manual_seed(0)
    data = read_images(root/'old', valid_pct=.3, test_pct=.3)
    learn = image_learner(data, 'efficientnet_lite0', size=64, precision='fp32', engine='torch')
    with learn.no_bar(): learn.probe(); learn.calibrate()
    learn.save_model(root/'model', metrics={})
    return root


def test_unknown_parts_are_stranger(home):
    model = load_model(home/'model')
    test, learned = read_images(home/'old', valid_pct=.3, test_pct=.3).files('test'), model.held_out()
    assert learned.validation and len(learned.y) == 27
    files = [*test, *sorted((home/'new').rglob('*.jpg'))]
    said = list(model.predict(files, unknown=.06, coverage=.8))
    known = np.arange(len(files)) < len(test)
    assert roc_auc_score(known, [s.p_known for s in said]) > .75
    assert [s.label == 'unknown' for s in said] == [s.p_known <= .06 for s in said]
    plain = list(model.predict(files))
    assert [s.probabilities for s in said] == [s.probabilities for s in plain]


@pytest.mark.parametrize('rate,says', [(0., 'above 0'), (.01, '27 items to judge by')])
def test_rates_that_cannot_be_kept_are_refused(home, rate, says):
    with pytest.raises(InputError, match=says): load_model(home/'model').predict([home/'new'], unknown=rate)


def test_a_night_and_the_next(home, tmp_path):
    model = load_model(home/'model')
    (tmp_path/'in').mkdir()
    for p in (home/'new').rglob('*.jpg'): (tmp_path/'in'/p.name).write_bytes(p.read_bytes())
    (tmp_path/'in'/'broken.jpg').write_bytes(b'no image')
    first = watch(model, tmp_path/'in', rate=.06, n_label=5)
    assert first.n == 24 and [n.endswith('broken.jpg') for n,_ in first.unread] == [True]
    assert first.unknown.low <= first.unknown.value <= first.unknown.high and len(first.next) == 5
    (tmp_path/'night').mkdir()
    write_watched(tmp_path/'night', first, model, first.limits(max_unknown=.01, min_accuracy=.999))
    said = json.loads((tmp_path/'night'/'watch.json').read_text())
    assert {'unknown', 'drift', 'accuracy_estimate', 'groups'} <= said.keys()
    assert {'statistic', 'p'} <= said['drift'].keys()
    assert [l['passed'] for l in said['limits']] == [False, False]
    assert 'NOT MET' in page(tmp_path/'night'/'report.html') and 'broken.jpg' in page(tmp_path/'night'/'report.html')
    again = watch(model, tmp_path/'in', tmp_path/'night', rate=.06)
    assert again.drift['items'] == first.drift['items'], 'the same items count once'
    with pytest.raises(InputError, match='another model'):
        (tmp_path/'night'/'watch.json').write_text('{"model": "x"}')
        watch(model, tmp_path/'in', tmp_path/'night')


def test_one_image_and_learned_ones(home):
    one = watch(home/'model', next((home/'new').rglob('*.jpg')), rate=.06)
    assert one.n == 1 and one.groups == [] and len(one.next) == 1
    learned = read_images(home/'old', valid_pct=.3, test_pct=.3).files('train')
    with pytest.raises(InputError, match='learned from all'): watch(home/'model', learned)


def test_labels_come_back(home, tmp_path):
    rows = [f'{p},gear' for p in sorted((home/'new').rglob('*.jpg'))[:8]]
    (tmp_path/'labels.csv').write_text('\n'.join(['path,label', *rows, f'{rows[0].split(",")[0]}x.jpg,']))
    done = expand(home/'model', labels=tmp_path/'labels.csv', out=tmp_path/'grown')
    grown = load_model(done.folder)
    assert grown.classes == [*sorted(PARTS[:3]), 'gear'] and (grown.held_out().y == 3).sum() >= 5
    said = tl('predict', done.folder, home/'new', '--unknown', '0.05', '--coverage', '0.9', cwd=tmp_path)
    assert said.returncode == 0 and said.stdout.splitlines()[0] == (
        'path,label,probability,' + ','.join(grown.classes) + ',p_known,classes,error')
    labels = [l.split(',')[1] for l in said.stdout.splitlines()[1:]]
    assert labels.count('gear') > len(labels)/2
    wrong = tl('expand', home/'model', '--labels', tmp_path/'none.csv', cwd=tmp_path)
    assert wrong.returncode == 2 and 'none.csv' in wrong.stderr


# A model that somebody else trained: nothing is known but its answers

def test_a_model_without_statistics_says_what_its_answers_tell_and_what_is_missing(tmp_path):
    make_parts(tmp_path/'first', kinds=PARTS[:2], n=8, size=64)
    make_parts(tmp_path/'second', kinds=PARTS[2:3], n=8, size=64)
    torch.manual_seed(0)
    torch.save(timm.create_model('resnet10t', num_classes=2).state_dict(), tmp_path/'own.pth')
    adopt(tmp_path/'own.pth', tmp_path/'m', arch='resnet10t', classes=PARTS[:2], size=64, mean=.5, std=.5)
    model = load_model(tmp_path/'m')
    w = watch(model, tmp_path/'first', n_label=4)
    (tmp_path/'one').mkdir()
    write_watched(tmp_path/'one', w, model)
    assert (w.unknown, w.accuracy, w.groups, w.drift['compared']) == (None, None, [], False)
    assert len(w.next) == 4 and sum(s['now'] for s in w.shares.values()) == pytest.approx(1)
    html = page(tmp_path/'one'/'report.html')
    assert '--data OLD' in html and 'Begins tonight' in html and 'Cannot be told' in html
    after = watch(model, tmp_path/'second', since=tmp_path/'one')
    assert after.drift['compared'] and after.drift['items'] == 24
    image = next((tmp_path/'first').rglob('*.jpg'))
    done = tl('predict', 'm', image, '--unknown', '.05', cwd=tmp_path)
    assert done.returncode == 2 and '--data OLD' in done.stderr and not done.stdout
    assert tl('predict', 'm', image, cwd=tmp_path).returncode == 0
    adopt(tmp_path/'own.pth', tmp_path/'n', arch='resnet10t', classes=PARTS[:2], size=64, mean=.5, std=.5,
          data=tmp_path/'first')
    w = watch(tmp_path/'n', tmp_path/'second', rate=.1)
    assert w.unknown is not None and w.accuracy is not None, 'what the note says is what helps'


def test_other_shares_of_classes_are_said():
    "Half of the answers in one class, where it was a quarter, is said; draws of the same shares in 1 of 100 cases"
    rng, model = np.random.default_rng(0), SimpleNamespace(classes=[*'abcd'])
    held = SimpleNamespace(logits=np.eye(4)[np.repeat(range(4), 50)])
    said, = _other_shares(model, held, np.r_[np.repeat(range(4), 25), np.full(50, 3)])
    assert 'd for 50% instead of 25%' in said
    drawn = [bool(_other_shares(model, held, rng.integers(4, size=100))) for _ in range(400)]
    assert sum(drawn) <= binom.ppf(.999, 400, .01)
