"The use case watch, as a scheduler runs it: two nights of one model, a limit that is passed, and wrong requests."
import csv
import json
import re

import pytest
import torch
from conftest import page, record, tl
from tl_notebooks.data.images import read_images
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.learn.vision import image_learner
from tl_notebooks.models import save as _save  # noqa: F401  gives learners `save_model`


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp('watch')
    make_parts(root/'old', kinds=PARTS[:3], n=30, size=64)
    make_parts(root/'new', kinds=PARTS[4:5], n=16, size=64)
    data = read_images(root/'old', valid_pct=.4, test_pct=.2)
    torch.manual_seed(0)
    learn = image_learner(data, 'efficientnet_lite0', size=64, precision='fp32', engine='torch')
    with learn.no_bar(): learn.probe(); learn.calibrate()
    learn.save_model(root/'model', metrics={})
    (root/'usual').mkdir()
    for p in data.files('test'): (root/'usual'/p.name).write_bytes(p.read_bytes())
    (root/'usual'/'broken.jpg').write_bytes(b'no image')
    return root


def watched(home, data, *args):
    return tl('watch', 'model', '--data', data, '--out', 'runs', '-p', 'n_label=6', '-p', 'threads=1', *args,
              cwd=home)


def test_a_usual_night_and_one_with_a_new_kind(home):
    done = watched(home, 'usual', '--max-unknown', '.5', '-p', 'rate=0.06')
    assert done.returncode == 0, done.stderr[-2000:]
    first = home/done.stdout.splitlines()[-1]
    said, r = json.loads((first/'watch.json').read_text()), record(first)
    assert said['n'] == 18 and [n.rpartition('/')[2] for n,_ in said['unread']] == ['broken.jpg']
    assert r['status'] == 'ok' and r['metrics']['unknown']['value'] == said['unknown']['value'] <= .5
    assert [l['passed'] for l in said['limits']] == [True]

    done = watched(home, 'new', '--max-drift', '20', '-p', 'rate=0.06')
    assert done.returncode == 1 and 'max_drift 20, found' in done.stderr
    second, = (p for p in (home/'runs'/'watch').iterdir() if p.name != first.name)
    then = json.loads((second/'watch.json').read_text())
    assert then['drift']['items'] == said['n'] + then['n'], 'the second night goes on from the first'
    assert then['drift']['p'] < .05 < said['drift']['p']
    with open(second/'label_next.csv', newline='') as f: rows = [*csv.DictReader(f)]
    assert len(rows) == 6 and {'path', 'reason', 'score', 'suggestion'} <= rows[0].keys()
    assert all('/new/' in r['path'] and r['suggestion'] in PARTS[:3] for r in rows)
    html, text = (second/'report.html').read_text(), page(second/'report.html')
    assert 'NOT MET' in text and not re.findall(r'(?:src|href)="(?:https?:|file:)', html + (
        second/'label.html').read_text()), 'nothing is loaded from elsewhere'


@pytest.mark.parametrize('data,args,says', [('nowhere', (), 'nowhere'), ('usual', ('-p', 'rate=0.9'), '0.9'),
                                            ('usual', ('-p', 'since=usual'), 'holds no watch.json')])
def test_a_wrong_request_ends_with_2_and_leaves_nothing(home, data, args, says):
    done = watched(home, data, '--out', 'none', *args)
    assert done.returncode == 2 and says in done.stderr, done.stderr[-800:]
    assert not [*(home/'none').rglob('*')]
