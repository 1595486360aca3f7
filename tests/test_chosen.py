"Choices among runs are made on validation data, intervals cover what they say, and hints can be typed as they stand."
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, record, tl
from nbformat.v4 import new_code_cell, new_notebook
from scipy.stats import norm

from tl_notebooks.core import InputError, install_hint, tl_hint
from tl_notebooks.judge.evidence import mean_interval, two_way_interval
from tl_notebooks.runs.history import plan_prune, runs_table
from tl_notebooks.runs.record import load_record, new_record


# ---- records by hand

def figure(v): return dict(value=v, low=max(0., v - .1), high=min(1., v + .1), n=50)

def run_with(root, name, test, valid=None, started=0, **params):
    "A run folder whose record is written by hand; without `valid` as records were before there was such a thing"
    rec = new_record('parts', name, dict(seed=0, **params))
    rec |= dict(status='ok', started=f'2026-01-01T10:{started:02}:00+0000', metrics={'accuracy': figure(test)})
    rec.pop('valid', None)
    if valid is not None: rec['valid'] = {'accuracy': figure(valid)}
    (folder := root/'parts'/name).mkdir(parents=True)
    (folder/'record.json').write_text(json.dumps(rec))
    return folder


def names(table): return [*table.run]


def test_the_better_one_on_validation_data_stays_whatever_test_data_says(tmp_path):
    good, lucky = run_with(tmp_path/'outputs', 'good', .80, .95), run_with(tmp_path/'outputs', 'lucky', .99, .70)
    for sort, first in (('accuracy', 'good'), ('valid.accuracy', 'good'), ('metrics.accuracy', 'lucky')):
        assert names(runs_table(tmp_path/'outputs', sort=sort))[0] == first, sort
    done = tl('prune', 'outputs', '--keep-best', 1, '--yes', cwd=tmp_path)
    assert done.returncode == 0 and good.exists() and not lucky.exists()
    assert 'by accuracy on validation data: 0.950' in done.stdout


def test_the_order_is_that_of_pandas_also_among_records_from_before(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(30):
        test, valid, lr = map(float, rng.random(3))
        run_with(tmp_path, f'r{n:02}', test, valid if n % 3 else None, n, lr=lr)
    value = lambda r, group: r.get(group, {}).get('accuracy', {}).get('value')
    flat = pd.DataFrame([dict(run=p.parent.name, test=value(r, 'metrics'), valid=value(r, 'valid'))
                         for p in tmp_path.glob('*/*/record.json') for r in [json.loads(p.read_text())]])
    both, old = flat[flat.valid.notna()], flat[flat.valid.isna()]
    for reverse in (False, True):
        want = [*both.sort_values('valid', ascending=reverse).run, *old.sort_values('test', ascending=reverse).run]
        table = runs_table(tmp_path, sort='accuracy', reverse=reverse)
        assert names(table) == want
        assert [*table.sorted_by] == ['valid.accuracy.value']*len(both) + ['metrics.accuracy.value']*len(old)
        by_test = names(runs_table(tmp_path, sort='metrics.accuracy', reverse=reverse))
        assert by_test == [*flat.sort_values('test', ascending=reverse).run]
    found = lambda condition: {*runs_table(tmp_path, where=[condition]).run}
    assert found('accuracy>.5') == {*both.query('valid > .5').run, *old.query('test > .5').run}
    assert found('metrics.accuracy>.5') == {*flat.query('test > .5').run}
    assert found('valid.accuracy>.5') == {*both.query('valid > .5').run}
    stay = {v.entry.folder.name for v in plan_prune(tmp_path, keep_best=4) if not v.goes}
    assert stay == {*both.nlargest(4, 'valid').run, *old.nlargest(4, 'test').run}


def test_old_records_alone_are_sorted_by_test_data_and_the_table_says_so(tmp_path):
    for n, v in enumerate((.3, .9, .6)): run_with(tmp_path/'outputs', f'r{n}', v)
    done = tl('runs', '--sort', 'accuracy', cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert [l.split()[0] for l in lines[1:4]] == ['r1', 'r2', 'r0'] and lines[-1] == 'sorted by metrics.accuracy.value'
    assert load_record(tmp_path/'outputs'/'parts'/'r0')['valid'] == {}
    run_with(tmp_path/'outputs', 'r3', .1, .2)
    lines = tl('runs', '--sort', 'accuracy', cwd=tmp_path).stdout.splitlines()
    assert lines[1].startswith('r3') and 'valid.accuracy.value, then by metrics.accuracy.value' in lines[-1]


# ---- sweeps

PARAMETERS = "lr: float = 0.1  # {0..1}\nseed: int = 0 # {0..99}\nthreads: int = 0 # {0..64}"
START = "from tl_notebooks.runs.run import start_run\nrun = start_run({path!r}, globals()); p = run.p"
FIGURES = """figure = lambda v: dict(value=v, low=max(0, v - .1), high=min(1, v + .1), n=100)
v = p.lr + p.seed/100
run.metric('accuracy', figure(1 - v))
if {valid}: run.metric('accuracy', figure(v), group='valid')
run.finish()"""

def usecase(path, valid=True):
    "What is best on validation data is worst on test data"
    cells = [new_code_cell(PARAMETERS, metadata={'tags': ['parameters']}),
             new_code_cell(START.format(path=str(path))), new_code_cell(FIGURES.format(valid=valid))]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def page_rows(folder):
    "The table of combinations on a sweep's page"
    page = (folder/'sweep.html').read_text().split('<h2>All combinations</h2>')[1].split('</table>')[0]
    text = lambda cell: re.sub('<[^>]*>', '', cell).strip()
    rows = [[*map(text, re.split('<t[hd][^>]*>', row)[1:])] for row in re.findall('<tr>(.*?)</tr>', page, re.S)]
    return pd.DataFrame(rows[1:], columns=rows[0])


@pytest.mark.parametrize('seeds', [1, 2])
def test_a_sweep_chooses_by_validation_data_and_shows_test_data_beside_it(seeds, tmp_path):
    notebook = usecase(tmp_path/'toy.ipynb')
    where = '--workers', 1, '--out', tmp_path
    done = tl('sweep', notebook, '-p', 'lr=0.2,0.6,0.4', '--seeds', seeds, *where, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.splitlines()[-1])
    value = lambda r, group: r[group]['accuracy']['value']
    runs = pd.DataFrame([dict(lr=r['params']['lr'], valid=value(r, 'valid'), test=value(r, 'metrics'))
                         for r in map(record, (tmp_path/'toy').iterdir())])
    want = runs.groupby('lr').mean().sort_values('valid', ascending=False)
    table = pd.read_csv(folder/'table.csv')
    assert [*table.lr] == [*want.index] == [.6, .4, .2] and {*table['chosen by']} == {'valid accuracy'}
    np.testing.assert_allclose(table[['valid accuracy', 'test accuracy']], want[['valid', 'test']])
    said = done.stdout.splitlines()[-2]
    assert said.startswith('best by valid accuracy: lr=0.6') and 'test accuracy 0.' in said
    assert re.search(r'best on validation data 0\.6\d*: lr=0.6', done.stderr)
    shown = page_rows(folder)
    assert [*shown.lr] == ['0.6', '0.4', '0.2'] and 'valid accuracy, chosen by' in shown
    np.testing.assert_allclose(shown['test accuracy'].astype(float), want.test, atol=1e-4)
    assert ('given these data, which all seeds share' in (folder/'sweep.html').read_text()) == (seeds > 1)


def test_a_sweep_names_no_winner_where_two_are_equal(tmp_path):
    notebook = usecase(tmp_path/'toy.ipynb')
    done = tl('sweep', notebook, '-p', 'lr=0.4,0.6', '-p', 'threads=1,2', '--workers', 1, '--out', tmp_path,
              cwd=tmp_path)
    *_, said, folder = done.stdout.splitlines()
    assert said.startswith('2 combinations are equally good by valid accuracy, 0.6')
    assert said.endswith('lr=0.6 threads=1; lr=0.6 threads=2')
    assert '<b>and 1 other just as good</b>' in (Path(folder)/'sweep.html').read_text()


def test_runs_judged_on_validation_data_say_so_in_the_column_of_test_data(tmp_path):
    run_with(tmp_path/'outputs', 'r0', .3, .4); run_with(tmp_path/'outputs', 'r1', .7, .8)
    path = tmp_path/'outputs'/'parts'/'r1'/'record.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(judged_on='valid')))
    lines = tl('runs', cwd=tmp_path).stdout.splitlines()
    shown = {l.split()[0]: '(valid) 0.' in l for l in lines[1:3]}
    assert shown == dict(r0=False, r1=True)


def test_a_sweep_without_validation_figures_says_that_test_data_chose(tmp_path):
    notebook = usecase(tmp_path/'toy.ipynb', valid=False)
    done = tl('sweep', notebook, '-p', 'lr=0.2,0.6', '--workers', 1, '--out', tmp_path, cwd=tmp_path)
    folder = Path(done.stdout.splitlines()[-1])
    table = pd.read_csv(folder/'table.csv')
    assert [*table.lr] == [.2, .6] and {*table['chosen by']} == {'test accuracy'} and 'valid accuracy' not in table
    assert 'Chosen by test data' in (folder/'sweep.html').read_text() and 'best by test accuracy: lr=0.2' in done.stdout


# ---- what validation figures are

def test_validation_comes_from_the_head_before_it_learned_from_validation_items():
    "Against scikit-learn's ridge on training rows; labels of validation items mean nothing, and `refit` learns them"
    import torch
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from ridge_oracle import scaled_ridge, targets
    from tl_notebooks.learn.learner import TransferLearner
    from tl_notebooks.learn.network import TransferNet

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(200, 200, bias=False)
            torch.nn.init.eye_(self.layer.weight)
            self.groups = [[*self.layer.parameters()]]
        def forward(self, x): return self.layer(x)

    g = torch.Generator().manual_seed(0)
    y, vy = torch.arange(120) % 3, torch.randint(0, 3, (60,), generator=g)
    x, vx = torch.randn(120, 200, generator=g) + 3*torch.eye(3, 200)[y], torch.randn(60, 200, generator=g)
    dls = DataLoaders(DataLoader([*zip(x, y)], bs=20, shuffle=True), DataLoader([*zip(vx, vy)], bs=20))
    learn = TransferLearner(dls, TransferNet(Body(), 200, 3))
    with learn.no_bar():
        found = learn.probe(); probs, labels, whose = learn.validation()
        oracle, z = scaled_ridge(x.numpy(), targets(y, 3), found.alpha, vx.numpy())
        scores = oracle.predict(z)
        assert (probs.argmax(1) == scores.argmax(1)).mean() > .98
        assert [*labels] == vy.tolist() and whose == 'validation items'
        learn.refit(alphas=[1e-3])
        after = learn.get_preds(ds_idx=1)[0].argmax(1)
        assert (after == vy).float().mean() > .95 > .55 > (probs.argmax(1) == vy.numpy()).mean() # why it comes before
        with pytest.raises(InputError, match='before `refit`'): learn.validation()


def test_few_labels_are_judged_by_leaving_each_out(tmp_path, monkeypatch):
    "Against scikit-learn's ridge, solved anew without each text"
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path))
    from ridge_oracle import divided
    from sklearn.linear_model import Ridge
    from tl_notebooks.data.samples import sample_path
    from tl_notebooks.learn.text import text_learner
    from tl_notebooks.data.texts import draw_labels, read_texts
    few = draw_labels(read_texts(sample_path('mails'), valid_pct=0.), 6)
    learn = text_learner(few, 'minilm_l6', seed=0, precision='fp32', max_tokens=32, model_dir=tmp_path)
    found = learn.probe(names=False)
    probs, y, whose = learn.validation()
    x, rows, *_ = learn.probe_features
    z, goal = divided(x.double().numpy()), 2*np.eye(2)[rows] - 1
    without = lambda i: Ridge(alpha=found.alpha).fit(np.delete(z, i, 0), np.delete(goal, i, 0))
    left = [without(i).predict(z[i:i+1])[0] for i in range(len(z))]
    assert [*y] == rows.tolist() and [*probs.argmax(1)] == [*np.argmax(left, 1)] and 'leave-one-out' in whose
    odds = np.log(probs[:,1]/probs[:,0])
    assert np.corrcoef(odds, np.subtract(left, np.flip(left, 1))[:,1])[0, 1] > .9999


def test_figures_on_validation_data_need_no_test_item(pictures, tmp_path):
    "Other test images: the same figures to choose by, to the last digit"
    import shutil
    from PIL import Image, ImageOps
    for name in 'ab':
        for kind in sorted(p for p in pictures.iterdir() if p.is_dir()):
            for i, p in enumerate(sorted(kind.iterdir())):
                to = tmp_path/name/('train', 'train', 'valid', 'test')[i % 4]/kind.name/p.name
                to.parent.mkdir(parents=True, exist_ok=True)
                if name == 'b' and i % 4 == 3: ImageOps.invert(Image.open(p).convert('RGB')).save(to)
                else: shutil.copy(p, to)
    some = ('-p', 'size=64', '-p', 'precision=fp32', '-p', 'control=false', '-p', 'epochs=0', '-p', 'threads=1')
    done = [tl('run', 'parts', '--data', tmp_path/name, '--out', tmp_path/'out', *some, cwd=tmp_path) for name in 'ab']
    assert not any(d.returncode for d in done), done[0].stderr[-2000:] + done[1].stderr[-2000:]
    a, b = (record(d.stdout.splitlines()[-1]) for d in done)
    assert a['valid'] == b['valid'] and a['metrics'] != b['metrics'] and a['valid_from'] == 'validation items'
    assert [*a['valid']] == [*a['metrics']]
    assert a['valid']['accuracy']['n'] == sum(a['data']['counts']['valid'].values())


# ---- intervals over draws of labels

def covers(make, truth, draws, items, n=400, seed=0):
    "Shares of worlds in which each interval covers the truth: two-way, and over draws alone"
    rng, hits = np.random.default_rng(seed), np.zeros(2)
    for _ in range(n):
        x = make(rng, draws, items)
        hits += [i.low <= truth <= i.high for i in (two_way_interval(x), mean_interval(x.mean(1)))]
    return hits/n


WORLDS = [(10, 60, 1.5, .3, 1.5), (4, 60, 1.5, .3, 1.5), (10, 300, 1., 0., 2.), (10, 300, 1., 1., .5),
          (10, 200, 3., .2, .5)]

@pytest.mark.parametrize('draws,items,mean,by_draw,by_item', WORLDS)
def test_a_two_way_interval_covers_the_truth(draws, items, mean, by_draw, by_item):
    "In worlds where each draw has its quality and each item its difficulty: the share right is a normal distribution's"
    def make(rng, d, n):
        return mean + by_draw*rng.normal(size=(d, 1)) + by_item*rng.normal(size=(1, n)) + rng.normal(size=(d, n)) > 0
    truth = norm.cdf(mean/np.sqrt(1 + by_draw**2 + by_item**2))
    ours, over_draws = covers(make, truth, draws, items)
    assert ours > .91, ours
    if by_item >= 1.5: assert over_draws < .9       # why it takes more than an interval over draws


def test_a_two_way_interval_of_differences_covers_the_truth():
    def make(rng, d, n): # two methods on the same draws and items
        shared = .3*rng.normal(size=(d, 1)) + 1.5*rng.normal(size=(1, n))
        return (1.5 + shared + rng.normal(size=(d, n)) > 0)*1 - (1. + shared + rng.normal(size=(d, n)) > 0)
    spread = np.sqrt(1 + .3**2 + 1.5**2)
    assert covers(make, norm.cdf(1.5/spread) - norm.cdf(1/spread), 10, 100)[0] > .91


# ---- what is shown can be typed

OPTIONAL = ('accelerate', 'dvclive', 'dvc', 'tensorboard', 'pyarrow')

def test_what_the_readme_shows_is_installed_by_make_run():
    from packaging.requirements import Requirement
    import configparser
    cfg = configparser.ConfigParser(delimiters=['=']); cfg.read(ROOT/'settings.ini', encoding='utf-8')
    needed = {Requirement(r).name for r in cfg['DEFAULT']['requirements'].split()}
    assert {'distributed', 'opencv-python-headless'} <= needed      # `tl sweep`, and `tl predict … film.mp4`


def test_a_run_is_named_as_the_readme_names_it(tmp_path):
    "`outputs/parts/RUN` in one line, `RUN` in the next"
    a, b = run_with(tmp_path/'outputs', 'first', .8, .95), run_with(tmp_path/'outputs', 'second', .9, .7)
    for command in (('show', 'first'), ('diff', 'first', 'second'), ('reproduce', 'first', '--check')):
        by_name = tl(*command, cwd=tmp_path)
        by_path = tl(*(f'outputs/parts/{w}' if w in ('first', 'second') else w for w in command), cwd=tmp_path)
        said = by_name.stdout.replace(f'{tmp_path}/', '')
        assert said and (by_name.returncode, said) == (by_path.returncode, by_path.stdout), by_name.stderr
    assert 'valid' in tl('show', 'first', cwd=tmp_path).stdout and 'does not exist' in tl('reproduce', 'third',
            cwd=tmp_path).stderr


@pytest.mark.parametrize('package', OPTIONAL)
def test_a_hint_to_install_names_this_python_and_a_version_that_was_tested(package):
    from packaging.requirements import Requirement
    words = shlex.split(install_hint(package))
    assert words[:4] == [sys.executable, '-m', 'pip', 'install'] and Path(words[0]).is_file()
    wanted = Requirement(words[-1])
    tested = re.search(rf'^{package}==(\S+)', (ROOT/'constraints.txt').read_text(), re.M)
    assert wanted.name == package and (not tested or wanted.specifier.contains(tested[1]))
    if len(words) > 5: assert words[4] == '-c' and Path(words[5]).is_file()


def test_no_message_asks_for_this_package_from_an_index_or_for_pip_by_its_short_name():
    "It is on none; and a shell's `pip` may be another Python's"
    for p in (ROOT/'tl_notebooks').glob('*.py'):
        text = p.read_text()
        assert not re.search(r'tl_notebooks\[|[`:] ?pip install', text), p.name


def test_a_hint_to_call_tl_works_in_a_shell_that_does_not_know_it(tmp_path):
    ask = 'from tl_notebooks.core import tl_hint; print(tl_hint("run", "parts", "--list"))'
    for path in ('/usr/bin:/bin', f'{Path(sys.executable).parent}:/usr/bin:/bin'):
        env = {'PATH': path, 'PYTHONPATH': str(ROOT), 'HOME': str(tmp_path)}
        asked = dict(capture_output=True, text=True, cwd=tmp_path, env=env)
        hint = subprocess.run([sys.executable, '-c', ask], **asked).stdout.strip()
        done = subprocess.run(hint, shell=True, **asked)
        assert done.returncode == 0 and 'epochs=' in done.stdout, (hint, done.stderr)
