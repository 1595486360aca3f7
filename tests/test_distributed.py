"""Several processes for one fit: the losses of one process with the joint batch, the same bits every time, errors that
arrive."""
import os

import killed
import nbformat
import pytest
import torch
from conftest import record, tl

pytest.importorskip('accelerate')
CLOSE = dict(rel=1e-4, abs=1e-5)


def net():
    from torch import nn
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def plain(opt=None, bs=8, n=61, drop_last=False):
    "A learner without layers that mix items; its last batches are uneven: 5 of training, 2 of validation"
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.metrics import accuracy
    import fastai.callback.schedule # noqa: F401
    from tl_notebooks.core import seed_everything
    seed_everything(0, 2)
    items = [(torch.randn(4) + i % 3, torch.tensor(i % 3)) for i in range(n)]
    dls = DataLoaders(DataLoader(items[:-8], bs=bs, shuffle=True, drop_last=drop_last), DataLoader(items[-8:], bs=6))
    return killed.quiet(Learner(dls, net(), CrossEntropyLossFlat(), metrics=accuracy,
                                **({'opt_func': opt} if opt else {})))


def curves(learn): return [float(x) for x in learn.recorder.losses], [x for v in learn.recorder.values for x in v]


@pytest.fixture(scope='module')
def pair():
    from tl_notebooks.learn.resume import Processes
    one = plain(); one.fit_one_cycle(3, 1e-2)
    two = plain(); two.fit_one_cycle(3, 1e-2, cbs=Processes(2))
    return one, two, killed.outcome(two)


def test_the_losses_of_one_process_with_the_joint_batch(pair):
    one, two, _ = pair
    for a,b in zip(curves(one), curves(two)): assert b == pytest.approx(a, **CLOSE)
    assert (len(one.recorder.losses) == 3*7 and two.recorder.lrs == one.recorder.lrs
            and two.recorder.hps == one.recorder.hps)
    for a,b in zip(one.model.parameters(), two.model.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    start = plain().model.state_dict()
    assert not any(torch.allclose(start[n], t, atol=1e-3) for n,t in two.model.state_dict().items()) # it did train


def test_what_comes_back_is_a_learner_that_goes_on(pair):
    from tl_notebooks.learn.resume import take_optimiser
    one, two, _ = pair
    (a, av), (b, bv) = take_optimiser(one.opt), take_optimiser(two.opt)
    assert av['hypers'] == bv['hypers'] and [s['step'] for s in av['state']] == [s['step']
            for s in bv['state']] == [21]*4
    # the next order of items
    assert [d.rng.getstate() for d in one.dls.loaders] == [d.rng.getstate() for d in two.dls.loaders]
    a, b = list(one.validate()), list(two.validate())
    assert b == pytest.approx(a, **CLOSE)


def test_two_processes_give_the_same_bits_each_time(pair):
    from tl_notebooks.learn.resume import Processes
    again = plain(); again.fit_one_cycle(3, 1e-2, cbs=Processes(2))
    assert killed.outcome(again) == pair[2]


def test_an_error_in_a_process_arrives():
    from fastai.callback.core import Callback
    from tl_notebooks.learn.resume import Processes
    class Fail(Callback):
        def after_batch(self):
            if os.environ.get('RANK') == '1' and self.iter == 2: raise ValueError('the second process is out of paper')
    learn = plain()
    with pytest.raises(RuntimeError, match='out of paper'): learn.fit(1, 1e-2, cbs=[Processes(2), Fail()])


NOTEBOOK = '''
from tl_notebooks.runs.run import start_run
run = start_run({path!r}, globals())
import sys; sys.path.insert(0, {tests!r})
import os
import torch
from fastai.callback.core import Callback
from tl_notebooks.learn.stages import Stage
import killed
class Share(Callback):
    "Writes how many items of each training batch a process gets"
    def before_batch(self):
        if not self.training: return
        path = os.path.join({work!r}, 'rank' + os.environ.get('RANK', '-'))
        with open(path, 'a') as f: f.write(str(len(self.x)) + ' ')
learn = killed.picture_learner({data!r}, cache=False)
# each process has random numbers of its own: without dropout and augmentation the curves can be compared
learn.model.body.b[-1].p = 0.
plain = [f for f in learn.dls.train.after_batch.fs if type(f).__name__ in ('IntToFloatTensor', 'Normalize')]
learn.dls.train.after_batch.fs[:] = learn.dls.valid.after_batch.fs[:] = plain
learn.thaw_progressively([Stage(None, 2, 1e-3)], keep_best=False, cbs=[Share()])
run.record['losses'] = [float(x) for x in learn.recorder.losses] + [x for v in learn.recorder.values for x in v]
run.record['model'] = dict(name='small')
run.metric('accuracy', dict(value=.5, low=.4, high=.6, n=10))
run.finish()
'''


def test_a_run_in_two_processes(tmp_path):
    "`tl run --processes 2`: every fit of the notebook, with nothing said in it"
    from pathlib import Path
    from tl_notebooks.data.samples import PARTS, make_parts
    data = make_parts(tmp_path/'parts', kinds=PARTS[:3], n=12, size=48)
    path, found = tmp_path/'small.ipynb', []
    parameters = nbformat.v4.new_code_cell("seed: int = 0\nthreads: int = 2", metadata=dict(tags=['parameters']))
    code = NOTEBOOK.format(path=str(path), tests=str(Path(__file__).parent), data=str(data), work=str(tmp_path))
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(code)]), path)
    for n in (1, 2):
        done = tl('run', path, '--processes', n, '--out', 'runs', cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(record(done.stdout.strip()))
    one, two = found
    assert two['losses'] == pytest.approx(one['losses'], rel=2e-3, abs=1e-3)
    alone, first, second = ([int(n) for n in (tmp_path/f'rank{r}').read_text().split()] for r in '-01')
    assert sum(alone) == sum(first) + sum(second) and min(first + second) > 0 and max(first) < max(alone)
    assert (one.get('processes', 1), two['processes']) == (1, 2)
    assert tl('run', path, '--processes', 0, cwd=tmp_path).returncode == 2


@pytest.mark.parametrize('kind', ['dvc', 'tensorboard'])
def test_what_tracks_a_fit_in_two_processes_writes_each_epoch_once(kind, tmp_path):
    "Read back by other code: a line per epoch in DVCLive's tables, TensorBoard's own reader for its events"
    pytest.importorskip(dict(dvc='dvclive', tensorboard='tensorboard')[kind])
    from tl_notebooks.learn.resume import Processes
    from tl_notebooks.runs.track import track_callbacks
    learn = plain(); learn.fit_one_cycle(3, 1e-2, cbs=[Processes(2), *track_callbacks(kind, tmp_path/'track')])
    if kind == 'dvc':
        tables = [p.read_text().splitlines() for p in (tmp_path/'track').rglob('*.tsv')]
        assert len(tables) == 3 and all([r.split('\t')[0] for r in t] == ['step', '0', '1', '2'] for t in tables)
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        events = EventAccumulator(str(tmp_path/'track')); events.Reload()
        assert [e.step for e in events.Scalars('valid_loss')] == [7, 14, 21]


def test_a_detector_is_not_divided(tmp_path):
    "Said before anything is computed, not from inside a process"
    from tl_notebooks.learn.resume import Processes
    from tl_notebooks.core import InputError
    from tl_notebooks.data.samples import make_scenes
    learn = killed.scene_learner(make_scenes(tmp_path/'scenes', n=14, size=128))
    with pytest.raises(InputError, match='Accepted: 1'): learn.fit(1, 1e-3, cbs=Processes(2))
