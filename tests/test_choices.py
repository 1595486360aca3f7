"""What a machine decides is decided once, robustly, and is part of the record; what a fine-tuning is worth is a matter
of evidence."""
import json
import os
import random

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT, record, tl
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from scipy.stats import ttest_rel
from tl_notebooks.learn import precision
from tl_notebooks.core import InputError, hash_state, seed_everything
from tl_notebooks.learn.learner import TransferLearner
from tl_notebooks.learn.network import TransferNet, micro_batch_for
from tl_notebooks.learn.precision import settle
from tl_notebooks.learn.stages import Stage
from torch import nn
from torch.utils.data import TensorDataset


# Precision: a stopwatch that other work disturbs

class Timed(nn.Module):
    "A network whose passes take what a clock says, and which counts the items that it is given"
    def __init__(self, seconds, noise):
        super().__init__()
        self.seconds, self.noise, self.now, self.passes, self.items, self.micro_batch, self.precision = (
            seconds, noise, 0., 0, [], 4, 'fp32')
    def features(self, xb):
        self.items.append(len(xb))
        self.now += self.seconds[self.precision]*self.noise(self.passes)
        self.passes += 1


def chosen(monkeypatch, place, bf16, noise):
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(place))
    monkeypatch.setattr(precision, '_has_bf16', lambda: True)
    net = Timed(dict(fp32=1., bf16=bf16), noise)
    with monkeypatch.context() as m:
        m.setattr(precision.time, 'perf_counter', lambda: net.now)
        return settle(net, torch.zeros(16, 3, 8, 8), 'auto', 'timed', torch.device('cpu')).precision, net


def disturbed(seed):
    "In one of three turns, one of the two passes is met by other work, or alone is left in peace by it"
    rng = random.Random(seed)
    hit = {t: (rng.randrange(2), rng.choice([3., 1/3])) for k in range(0, 99, 3) for t in [k + rng.randrange(3)]}
    return lambda n: hit[n//2][1] if n//2 in hit and hit[n//2][0] == n % 2 else 1.


@pytest.mark.parametrize('bf16,best', [(.6, 'bf16'), (1.2, 'fp32')])
def test_noise_in_one_of_three_turns_does_not_flip_the_precision(monkeypatch, tmp_path, bf16, best):
    found = [chosen(monkeypatch, tmp_path/f'{bf16} {s}', bf16, disturbed(s))[0] for s in range(60)]
    assert found == [best]*60


def test_what_is_timed_is_the_micro_batch_that_runs_and_how_is_kept(monkeypatch, tmp_path):
    choice, net = chosen(monkeypatch, tmp_path, .5, lambda n: 1.)
    assert choice == 'bf16' and set(net.items) == {4}
    kept, = (tmp_path/'precision').glob('*.json')
    kept = json.loads(kept.read_text())
    assert kept['clear'] and len(kept['seconds']['torch bf16']) == 9 and '0.50' in kept['why']
    assert chosen(monkeypatch, tmp_path, 2., lambda n: 1.)[1].passes == 0      # kept: not measured again


def test_an_unclear_measurement_is_longer_then_fp32_and_says_so(monkeypatch, tmp_path):
    # bfloat16's pass, in every other pair of turns
    slow = lambda n: 1.4 if n//2 % 4 < 2 and n % 2 != n//2 % 2 else 1.
    choice, net = chosen(monkeypatch, tmp_path, .85, slow)
    kept, = (tmp_path/'precision').glob('*.json')
    kept = json.loads(kept.read_text())
    assert choice == 'fp32' and not kept['clear'] and 'not clear' in kept['why']
    assert len(kept['seconds']['torch fp32']) == 18


# The same in runs: a full disk, another precision, and what goes on or is reproduced afterwards

SMALL = ['-p', 'size=96', '-p', 'bs=16', '-p', 'thaw=4', '-p', 'augment=true', '-p', 'lr=0.0001']

@pytest.fixture(scope='module')
def cramped(pictures, tmp_path_factory):
    "A run where the cache has room for little"
    out = tmp_path_factory.mktemp('cramped')
    done = tl('run', 'parts', '--data', pictures, '--out', out, *SMALL, cwd=out,
              env={'TL_NOTEBOOKS_CACHE_LIMIT': '350kB', 'TL_NOTEBOOKS_CACHE': str(out/'cache')})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1], done.stderr


def keep_other(cache, monkeypatch):
    "Another day, a larger job: a measurement that a run without a record would follow"
    from tl_notebooks.learn.vision import image_net, noise_images
    net, threads = image_net('efficientnet_lite0', 4, size=96)[0], torch.get_num_threads()
    net.micro_batch = micro_batch_for(noise_images(16, 96))
    with monkeypatch.context() as m:
        m.setenv('TL_NOTEBOOKS_CACHE', str(cache))
        m.setattr(precision, 'passes_of', lambda *_: ({}, ''))
        m.setattr(precision, 'measure_twice', lambda *_: {})
        m.setattr(precision, 'find_fastest', lambda _: ('openvino fp32', True, 'written here'))
        torch.set_num_threads(os.cpu_count())
        try: settle(net, noise_images(16, 96), 'auto', 'efficientnet_lite0', torch.device('cpu'), 'auto')
        finally: torch.set_num_threads(threads)
    assert net.engine == 'openvino'
    return cache


def test_less_than_asked_is_told_and_recorded(cramped):
    folder, err = cramped
    choices = record(folder)['choices']
    groups = next(c for n, c in choices.items() if n.startswith('groups that train'))
    assert groups['asked'] == 4 > groups['took'] == record(folder)['stages'][1]['thaw']
    assert groups['why'] in err and any(n.startswith('precision') and c['took'] == record(folder)['model']['precision']
                                        for n, c in choices.items())
    page = open(f'{folder}/report.html').read()
    assert 'What this machine decided' in page and groups['why'] in page


def test_a_reproduction_takes_the_recorded_choices_and_ends_with_the_same_bits(cramped, tmp_path, monkeypatch):
    folder, _ = cramped
    cache = keep_other(tmp_path/'cache', monkeypatch)
    # ample room now
    done = tl('reproduce', folder, '--out', tmp_path, cwd=tmp_path, env={'TL_NOTEBOOKS_CACHE': str(cache)})
    new, = (tmp_path/'parts').iterdir()
    assert record(new)[
            'choices'] == record(folder)['choices'] and record(new)['params'] == record(folder)['params'] | dict(out='')
    assert record(new)['reproduces']['verdict'] == 'bit-identical', done.stderr[-2000:]


def test_the_control_sees_the_same_versions_and_the_record_says_what_was_seen(cramped):
    seen = record(cramped[0])['augmentation']
    assert seen['asked'] and seen['versions'] == 2
    for fit in (*seen['fine_tuning'], *seen['control']):
        assert fit['versions'] == 2 and .2 < fit['augmented'] < .8 and not fit['anew']


def test_a_run_that_goes_on_takes_its_own_choices(pictures, tmp_path, monkeypatch):
    nb = nbformat.read(ROOT/'nbs'/'usecases'/'parts.ipynb', 4)
    at = next(i for i, c in enumerate(nb.cells) if 'found = test(run, learn)' in c.source)
    nb.cells.insert(at,
                    nbformat.v4.new_code_cell("import pathlib\nif not pathlib.Path('on').exists(): raise "
                                              "ValueError('stop here')"))
    nbformat.write(nb, tmp_path/'parts.ipynb')
    env = {'TL_NOTEBOOKS_CACHE': str(tmp_path/'cache'), 'TL_NOTEBOOKS_CACHE_LIMIT': '350kB'}
    first = tl('run', tmp_path/'parts.ipynb', '--data', pictures, '--out', tmp_path/'runs', *SMALL, '-p',
               'control=false', cwd=tmp_path, env=env)
    folder, = (tmp_path/'runs'/'parts').iterdir()
    was = record(folder)['choices']
    assert first.returncode == 1 and was
    keep_other(tmp_path/'cache', monkeypatch); (tmp_path/'on').touch()
    done = tl('resume', folder, cwd=tmp_path, env=env | {'TL_NOTEBOOKS_CACHE_LIMIT': '10GB'})
    assert done.returncode == 0, done.stderr[-2000:]
    now = record(folder)['choices']
    assert {n: now[n] for n in was} == was and record(folder)['stages'][1]['thaw'] < 4


# Is a fine-tuning worth it?

def test_the_paired_test_is_the_one_of_the_books():
    from tl_notebooks.learn.stages import compare_losses
    rng = np.random.default_rng(0)
    for n in (10, 35, 200):
        a = rng.exponential(size=n); b = a - rng.normal(.05, .3, n)
        found = compare_losses(a, b)
        assert found.p == pytest.approx(ttest_rel(a, b, alternative='greater').pvalue,
                                        rel=1e-9) and found.better == (found.p < .02275)
        assert found.gain == pytest.approx((a - b).mean())


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 8)
        self.groups = [list(self.a.parameters()), list(self.b.parameters())]
    def forward(self, x): return torch.relu(self.b(torch.relu(self.a(x))))


def toy(seed, n_valid=60, signal=0., n=60):
    """A learner on random rows; `signal`: how much their classes follow from them, by a function that the body's
    features do not have"""
    seed_everything(seed)
    x = torch.randn(n + n_valid, 6)
    y = ((x[:,0]*x[:,1]*signal + torch.randn(len(x))*(1 - signal)) > 0).long()
    dls = DataLoaders(DataLoader(TensorDataset(x[:n], y[:n]), bs=20, shuffle=True),
                      DataLoader(TensorDataset(x[n:], y[n:]), bs=60), device='cpu')
    return TransferLearner(dls, TransferNet(Body(), 8, 2), cache=False)


def trained(learn, *stages, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.thaw_progressively(stages, **kwargs)
    return learn.stages


def test_where_there_is_nothing_to_learn_a_stage_stays_as_rarely_as_chance_allows():
    kept = [trained(toy(seed), Stage(None, 1, 1e-3))[1].kept for seed in range(40)]
    assert sum(kept) <= 4 # a lower mean loss alone keeps about half


def test_where_there_is_something_to_learn_it_stays():
    learn = toy(0, 200, 1., 400)
    ran = trained(learn, Stage(None, 30, 1e-2), Stage(None, 1, 50.))
    assert ran[1].kept and ran[1].p < .01 and ran[1].why.startswith('kept: better on 200')
    assert not ran[2].kept and ran[2].p > .5 and learn.kept == 'fine-tuned'
    was = hash_state(learn.model.state_dict())
    # against what stands, and that is not the probe
    assert not trained(learn, Stage(None, 1, 50.))[1].kept
    assert hash_state(learn.model.state_dict()) == was and learn.kept == 'fine-tuned'
    with pytest.raises(InputError, match='wants a probed head'): learn.refit()


def test_a_handful_of_validation_items_shows_nothing_and_says_so():
    learn = toy(0, 6, 1., 400)
    stage = trained(learn, Stage(None, 30, 1e-2))[1]
    assert not stage.kept and '6 held-out items show nothing' in stage.why and learn.kept == 'probe'
    again = toy(0, 6, 1., 400)
    assert trained(again, Stage(None, 1, 1e-2), keep_best=False)[1].kept


def test_an_expansion_is_not_tuned_for_the_sake_of_one_item():
    from types import SimpleNamespace
    from tl_notebooks.expand.classes import _HeldOut, _compared
    rows = SimpleNamespace(new=np.ones(1, bool), valid=np.ones(1, bool))
    assert not _compared(_HeldOut(np.array([.70]), 1.), _HeldOut(np.array([.69]), 1.), rows, 2.)[1]


def test_augmentation_that_was_asked_for_takes_part(pictures, tmp_path, monkeypatch):
    from tl_notebooks.data.images import read_images
    from tl_notebooks.learn.vision import image_learner
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path))
    data, losses = read_images(pictures, progress=False), []
    for cache in (True, False):
        learn = image_learner(data, size=64, bs=16, augment=True, precision='fp32', seed=0, cache=cache,
                              **({} if cache else dict(fixed=True)))
        learn.freeze_to(-2)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 1e-4)
        losses.append([float(l) for l in learn.recorder.losses])
        # training and validation items
        assert [r['views'] for r in learn.frozen_prefix.report] == ([2, 1] if cache else [])
        fit, = learn.frozen_prefix.shown
        assert fit['versions'] == 2 and .2 < fit['augmented'] < .8
    # the same versions in the same turns
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_what_a_network_from_scratch_sees_are_the_stored_versions(pictures, tmp_path, monkeypatch):
    from fastai.callback.core import Callback
    from tl_notebooks.data.images import read_images
    from tl_notebooks.learn.vision import image_learner
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path))
    seen = set()
    class Look(Callback):
        def before_batch(self):
            if self.training:
                seen.update(hash_state({'x': x.contiguous()}) for x in self.xb[0].as_subclass(torch.Tensor))
    learn = image_learner(read_images(pictures, progress=False), weights='random', size=64, bs=4, augment=True,
                          precision='fp32', norm='train', seed=0, views=2, fixed=True)
    learn.dls.train.drop_last = False
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0., cbs=Look())
    items = learn.frozen_prefix.items_of(learn.dls.train)
    both = [items.inputs([i], v, items.names())[0][0] for i in range(items.n) for v in (0, 1)]
    assert seen == {hash_state({'x': x.contiguous()}) for x in both} and len(seen) == 2*items.n
