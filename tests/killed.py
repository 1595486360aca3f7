"""What test_resume.py lets be killed: small training in processes of their own, with every source of chance that
training has; and whole sweeps of it."""
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil


def settle():
    import torch
    from tl_notebooks.core import seed_everything
    torch.set_num_interop_threads(1)
    seed_everything(0, 1)


def outcome(learn, chance=True):
    "Weights, what the recorder saw, the optimiser, and where the generators stand"
    from tl_notebooks.learn.resume import rng_state, take_optimiser
    from tl_notebooks.core import hash_json, hash_state
    r, (moments, counters) = learn.recorder, take_optimiser(learn.opt)
    out = dict(weights=hash_state(learn.model.state_dict()), values=[list(v) for v in r.values],
               losses=[float(x) for x in r.losses], lrs=[float(x) for x in r.lrs],
               hps={k: [float(x) for x in v] for k,v in r.hps.items()}, moments=hash_state(moments),
               counters=hash_json(counters), trained=[p.requires_grad for p in learn.model.parameters()])
    if chance: tensors, values = rng_state(learn.dls.loaders); out |= dict(chance=hash_state(tensors), spare=values)
    return out


def noisy(x):
    "Augmentation that draws from all three generators"
    import numpy as np
    import torch
    return x + .1*torch.randn(4) + .1*random.gauss(0, 1) + .1*float(np.random.normal())


def quiet(learn):
    from fastai.callback.progress import ProgressCallback
    learn.remove_cbs(learn._grab_cbs(ProgressCallback)); learn.logger = lambda row: None
    return learn


def plain_learner(n=120):
    import torch
    from torch import nn
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from fastai.metrics import accuracy
    class Data(list):
        def __getitem__(self, i): x, y = super().__getitem__(i); return noisy(x), y
    items = [(torch.randn(4) + i % 3, torch.tensor(i % 3)) for i in range(n)]
    dls = DataLoaders(DataLoader(Data(items[:-20]), bs=8, shuffle=True), DataLoader(items[-20:], bs=8))
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.3), nn.Linear(8, 3))
    learn = Learner(dls, net, CrossEntropyLossFlat(), metrics=accuracy)
    return quiet(learn)


def by_hand(place, data):
    "One cycle with `Checkpoint(folder)`; nothing but the folder connects one process with the next"
    from tl_notebooks.learn.resume import Checkpoint
    import fastai.callback.schedule # noqa: F401
    learn = plain_learner()
    learn.fit_one_cycle(8, 1e-2, cbs=Checkpoint(place/'checkpoints'))
    return outcome(learn)


def unlike(place, data):
    "The same, from another start"
    import torch
    torch.manual_seed(1)
    return by_hand(place, data)


def picture_learner(data, **kwargs):
    import torch
    from torch import nn
    from tl_notebooks.data.images import read_images
    from tl_notebooks.learn.learner import TransferLearner
    from tl_notebooks.learn.network import TransferNet
    from tl_notebooks.learn.vision import image_dls
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
            self.b = nn.Sequential(nn.Conv2d(8, 12, 3, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(.2))
            self.c = nn.Conv2d(12, 16, 3, 2)
            self.groups = [list(m.parameters()) for m in (self.a, self.b, self.c)]
        def forward(self, x): return self.c(self.b(self.a(x))).mean((2, 3))
    images = read_images(data, seed=0)
    dls = image_dls(images, 32, bs=8, device=torch.device('cpu'))
    return quiet(TransferLearner(dls, TransferNet(Body(), 16, len(images.classes)), views=3, **kwargs))


def in_a_run(place, data):
    "Progressive thaw and a control, with cached and augmented views, as a run's notebook does it"
    from tl_notebooks.learn.resume import keep_checkpoints
    from tl_notebooks.learn.prefix import FlipMaps
    from tl_notebooks.learn.stages import Stage
    keep_checkpoints(place/'checkpoints')
    learn = picture_learner(data)
    learn.thaw_progressively([Stage(1, 2, 1e-2), Stage(2, 3, 1e-2), Stage(None, 2, 1e-3)], cbs=FlipMaps())
    scratch = picture_learner(data, norm='train')
    scratch.fit_one_cycle(3, 1e-2)
    stages = [{k: v for k,v in vars(s).items() if k != 'seconds'} for s in learn.stages]
    return dict(learn=outcome(learn), scratch=outcome(scratch), stages=stages, kept=learn.kept)


def of_texts(place, data):
    "Contrast, which has a loop of its own, and progressive thaw of a text network"
    from tl_notebooks.learn.resume import keep_checkpoints
    from tl_notebooks.learn.stages import Stage
    from tl_notebooks.data.samples import sample_path
    from tl_notebooks.learn.text import text_learner
    from tl_notebooks.data.texts import read_texts
    keep_checkpoints(place/'checkpoints')
    texts = read_texts(sample_path('reviews'), valid_pct=.1, test_pct=.75)
    learn = quiet(text_learner(texts, str(data), max_tokens=32, bs=16, precision='fp32', seed=0))
    learn.probe()
    contrast = learn.contrast(2, steps=8, lr=1e-3, seed=0)
    body = learn.model.body.state_dict()
    learn.thaw_progressively([Stage(2, 3, 1e-2)], keep_best=False, lr_mult=2)
    return dict(contrast={k: v for k,v in vars(contrast).items() if k != 'seconds'}, learn=outcome(learn),
                body=len(body))


def scene_learner(data, **kwargs):
    "A detector as small as they come, with an average of its weights"
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.learn.detection import detection_learner
    scenes = read_boxes(data, min_per_class=1, progress=False)
    small = dict(backbone='timm/resnet18', weights='random', size=64, bs=4, channels=32, convs=1)
    return quiet(detection_learner(scenes, **small, **kwargs))


def of_boxes(place, data, views=3):
    "Two fits of a detector, one after the other; the first goes on from cached maps, as the `crossing` use case does"
    from tl_notebooks.learn.resume import keep_checkpoints
    keep_checkpoints(place/'checkpoints')
    learn = scene_learner(data, views=views, ema=.9)
    learn.freeze_to(-2)
    learn.fit_one_cycle(4, slice(1e-3, 5e-3), pct_start=.2)
    first = outcome(learn)
    learn.unfreeze()
    learn.fit_one_cycle(2, 1e-3)
    cached = [(r['items'], r['views']) for r in learn.frozen_prefix.report]
    return dict(first=first, second=outcome(learn), cached=cached)


def of_new_views(place, data):
    "The same with another view of each image in every epoch, which no cache can hold"
    return of_boxes(place, data, views=0)


def cache(place, data):
    "Activations of images, computed and kept; then every row is read back from the disk"
    import torch
    from tl_notebooks.frozen.loader import fill
    from tl_notebooks.frozen.store import ActivationStore
    ids = [f'item {i}' for i in range(400)]
    def compute(at): time.sleep(.001*len(at)); return [torch.stack([torch.full((32, 1024), float(i)) for i in at])]
    store = ActivationStore(dict(test=1), (32, 1024), root=place/'activations')
    assert fill([store], ids, compute, batch=4) and not store.bad
    rows = ActivationStore(dict(test=1), (32, 1024), root=place/'activations')
    rows.refresh()
    assert not rows.missing(ids)
    return rows.rows(ids).sum((1, 2)).tolist()


def child(kind, place, data, cache, ready):
    os.environ |= {'TL_NOTEBOOKS_CACHE': str(cache), 'TL_NOTEBOOKS_CHECKPOINTS': '1'}
    settle()
    os.dup2(os.open(place/'stderr', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(2, 1)
    ready.send(True)
    found = globals()[kind](place, data)
    (place/'outcome.tmp').write_text(json.dumps(found, sort_keys=True))
    os.replace(place/'outcome.tmp', place/'outcome.json')


def server():
    "A process that has imported everything and computed nothing: its children begin at once"
    ctx = multiprocessing.get_context('forkserver')
    ours = ['tl_notebooks.learn.vision', 'tl_notebooks.learn.text', 'tl_notebooks.learn.detection']
    ctx.set_forkserver_preload(['killed', *ours, 'transformers.models.bert.modeling_bert'])
    return ctx


def run_and_kill(ctx, kind, place, data, cache, after=None):
    "Seconds that a child took; it is killed after `after` seconds (None: not at all). Whether it was"
    place.mkdir(exist_ok=True, parents=True)
    here, there = ctx.Pipe()
    p = ctx.Process(target=child, args=(kind, place, data, cache, there)); p.start(); there.close()
    here.recv(); start = time.perf_counter()
    p.join(after)
    killed = p.exitcode is None
    if killed: os.kill(p.pid, signal.SIGKILL); p.join()
    else: assert p.exitcode == 0, (place/'stderr').read_text()[-3000:]
    return time.perf_counter() - start, killed


def kill_at_random(ctx, kind, base:Path, data, kills:int, seed:int=0, most:int=4):
    """Outcome without an interruption, and after each series of kills, until there were `kills`; the seconds of the
    first"""
    rng = random.Random(seed)
    seconds, _ = run_and_kill(ctx, kind, base/'whole', data, base/'cache whole')
    whole, others, n, series = (base/'whole'/'outcome.json').read_text(), [], 0, 0
    while n < kills:
        series += 1; place = base/f'series {series}'
        for _ in range(min(most, kills - n)):
            n += run_and_kill(ctx, kind, place, data, place/'cache', rng.uniform(0, seconds))[1]
        run_and_kill(ctx, kind, place, data, place/'cache')
        others.append((place/'outcome.json').read_text())
    return whole, others, n, seconds


FIT = """import sys
sys.path.insert(0, {tests!r})
import killed
import fastai.callback.schedule
from tl_notebooks.core import hash_state
learn = killed.plain_learner()
learn.fit_one_cycle(6, p.lr)
run.record['weights'] = hash_state(learn.model.state_dict())
v = float(learn.recorder.values[-1][-1])"""


def small_usecase(path:Path, parameters:str, work:str, n:int=100) -> Path:
    "A use case of few lines: `work` sets `v`"
    cell = lambda source, *tags: dict(cell_type='code', execution_count=None, outputs=[], metadata={'tags': [*tags]},
                                      source=source)
    cells = [cell(parameters, 'parameters'),
             cell(f'from tl_notebooks.runs.run import start_run\nrun = start_run({str(path)!r}, globals()); p = run.p'),
             cell(work),
             cell(f"run.metric('accuracy', dict(value=v, low=max(0, v - .1), high=min(1, v + .1), n={n}))\n"
                  'run.finish()')]
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='Python 3',
            language='python')), nbformat=4, nbformat_minor=4)))
    return path


def swept(out:Path) -> dict:
    "Parameters of each run of the one sweep in `out` → its metrics and the hash of its weights"
    state = json.loads(next((out/'sweeps').glob('*/sweep.json')).read_text())
    found = {}
    for r in state['runs'].values():
        record = json.loads((out/'fit'/r['run']/'record.json').read_text())
        assert r['status'] == record['status'] == 'ok', (r, record['status'])
        found[json.dumps(r['params'], sort_keys=True)] = record['metrics'], record['weights']
    return found


def processes_of(out:Path) -> list:
    "Processes that work in run folders below `out`"
    found = []
    for p in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if p.pid != os.getpid() and (str(out) in ' '.join(p.cmdline())
                                         or str(out) in p.environ().get('TL_RUN_DIR', '')):
                found.append(p)
    return found


def kill_sweeps(base:Path, kills:int, seed:int=0, runs:int=4, most:int=3) -> tuple[dict, list[dict], dict, float]:
    """What an uninterrupted sweep gives, what each series of kills ends with, how often what was killed, and the
    seconds of the first.

    Killed at random moments: the command, one of its processes (a worker of Dask, a waiting one, a run), or all of them
    at once.
    """
    rng, base = random.Random(seed), Path(base)
    usecase = small_usecase(base/'fit.ipynb',
                            'lr: float = 0.01 # {0..1}\nseed: int = 0  # {0..99}\nthreads: int = 1 # {0..64}',
                            FIT.format(tests=str(Path(__file__).parent)), 20)
    def start(out):
        out.mkdir(exist_ok=True)
        with open(out/'stderr', 'a') as err:
            return subprocess.Popen([sys.executable, '-m', 'tl_notebooks', 'sweep', str(usecase), '-p',
                                     'lr=' + ','.join(f'{.002*(i + 1):g}' for i in range(runs)), '--workers', '2',
                                     '--out', str(out)],
                                    cwd=out, stdout=subprocess.DEVNULL, stderr=err,
                                    env={**os.environ, 'TL_NOTEBOOKS_CHECKPOINTS': '1'})
    at, p = time.perf_counter(), start(base/'whole')
    assert p.wait() == 0, (base/'whole'/'stderr').read_text()[-3000:]
    seconds, whole, ends, killed = time.perf_counter() - at, swept(base/'whole'), [], {}
    while sum(killed.values()) < kills:
        out, left = base/f'series {len(ends)}', most
        p = start(out)
        while left and sum(killed.values()) < kills:
            with contextlib.suppress(subprocess.TimeoutExpired): p.wait(rng.uniform(0, seconds)); break
            what = rng.choice(['the command', 'one of its processes', 'all of them'])
            with contextlib.suppress(psutil.Error):
                below = psutil.Process(p.pid).children(recursive=True)
                victims = [psutil.Process(p.pid)] if what == 'the command' else [
                        rng.choice(below)] if below and what != 'all of them' else [psutil.Process(p.pid), *below]
                for v in victims:
                    with contextlib.suppress(psutil.Error): v.kill()
                killed[what] = killed.get(what, 0) + 1; left -= 1
            if what != 'one of its processes' or p.poll() is not None: p.wait(); p = start(out)
        for _ in range(3): # a run whose workers died three times is given up, until the next call
            if p.wait() == 0: break
            p = start(out)
        ends.append(swept(out))
        end = time.monotonic() + 30
        while (still := processes_of(out)) and time.monotonic() < end: time.sleep(.2)
        assert not still, [q.cmdline() for q in still]
    return whole, ends, killed, seconds
