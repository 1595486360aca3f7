"""A training or run that was killed, at any moment, goes on after its last epoch and ends with the bits of one that
never was."""
import json
import os
import random
import shutil
import subprocess
import sys
import time

import killed
import pytest
from conftest import WHOLE, record, tl


@pytest.fixture(scope='module')
def server():
    return killed.server()


@pytest.fixture(scope='module')
def few_pictures(tmp_path_factory):
    from tl_notebooks.data.samples import PARTS, make_parts
    return make_parts(tmp_path_factory.mktemp('few')/'parts', kinds=PARTS[:3], n=12, size=48)


@pytest.fixture(scope='module')
def few_scenes(tmp_path_factory):
    from tl_notebooks.data.samples import make_scenes
    return make_scenes(tmp_path_factory.mktemp('few')/'scenes', n=14, size=128)


@pytest.fixture(scope='module')
def small_bert(tmp_path_factory):
    transformers = pytest.importorskip('transformers')
    from tl_notebooks.core import seed_everything
    from tl_notebooks.learn.backbones import load_text_model
    folder = tmp_path_factory.mktemp('checkpoints')/'bert'
    seed_everything(0)
    config = transformers.AutoConfig.for_model('bert', vocab_size=30522, hidden_size=32, num_hidden_layers=4,
                                               num_attention_heads=4, intermediate_size=48)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    load_text_model('minilm_l6')[1].save_pretrained(folder)
    return folder


KILLED = dict(by_hand=3, in_a_run=3, of_texts=2, of_boxes=4, of_new_views=4, cache=3) # what → how often
USES = dict(of_texts='small_bert', of_boxes='few_scenes', of_new_views='few_scenes')


@pytest.mark.parametrize('kind,kills', KILLED.items())
def test_killed_at_random_moments_the_same_bits(server, request, tmp_path, kind, kills):
    data = request.getfixturevalue(USES.get(kind, 'few_pictures'))
    whole, others, n, _ = killed.kill_at_random(server, kind, tmp_path, data, kills, seed=kills)
    assert n >= kills
    for other in others: assert json.loads(other) == json.loads(whole)


def test_what_is_compared_can_differ(server, few_pictures, tmp_path):
    """Without its checkpoints a killed training without a seed of its own ends elsewhere: weights, losses and chance
    all tell"""
    killed.run_and_kill(server, 'by_hand', tmp_path/'a', None, tmp_path/'cache')
    killed.run_and_kill(server, 'unlike', tmp_path/'b', None, tmp_path/'cache')
    a, b = (json.loads((tmp_path/n/'outcome.json').read_text()) for n in 'ab')
    assert all(a[k] != b[k] for k in ('weights', 'losses', 'moments', 'chance')) and a['lrs'] == b['lrs']


# The real use case, killed as the kernel of a machine that goes down kills it.

def own_cache(here):
    "Every epoch is kept, and no control is there yet"
    return {'TL_NOTEBOOKS_CHECKPOINTS': '1', 'TL_NOTEBOOKS_CACHE': str(here/'cache')}


def start(*args, cwd):
    return subprocess.Popen([sys.executable, '-m', 'tl_notebooks', *map(str, args)], cwd=cwd, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                            env={**os.environ, **own_cache(cwd)})


def wait_for(what, p, seconds=250):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert p.poll() is None and time.monotonic() < end, 'it ended before it could be killed'
        time.sleep(.02)
    return found


@pytest.fixture(scope='module')
def cut_off(first_run, pictures, tmp_path_factory):
    "The same command as `first_run`, killed in the middle of its control's training, with a copy of the images"
    here = tmp_path_factory.mktemp('cut off')
    shutil.copytree(pictures, here/'parts')
    p = start('run', 'parts', '--data', 'parts', '--out', 'runs', '--seed', 5, *WHOLE, cwd=here)
    wait_for(lambda: list(here.glob('runs/parts/*/checkpoints/2/0000001.safetensors')), p)
    p.kill(); p.wait()
    return here, next((here/'runs'/'parts').iterdir())


def test_a_run_does_not_go_on_with_other_data_or_code(cut_off):
    here, folder = cut_off
    before = record(folder)
    assert before['status'] == 'running' and (folder/'checkpoints'/'1').is_dir()
    (folder/'record.json').write_text(json.dumps(before | dict(code_version='0.0.1+abc')))
    done = tl('resume', folder, cwd=here)
    assert done.returncode == 2 and 'its code was 0.0.1+abc, and now is ' + before['code_version'] in done.stderr
    (folder/'record.json').write_text(json.dumps(before))
    picture = next((here/'parts').rglob('*.png'), None) or next((here/'parts').rglob('*.jpg'))
    was = picture.read_bytes()
    other = next(p for p in sorted(picture.parent.iterdir()) if p != picture)
    picture.write_bytes(other.read_bytes())
    done = tl('resume', folder, cwd=here, env=own_cache(here))
    picture.write_bytes(was)
    told = f"its data had fingerprint {before['data']['fingerprint'][:16]}, and now has "
    assert done.returncode == 2 and told in done.stderr, done.stderr[-2000:]
    assert record(folder) == before and (folder/'checkpoints'/'2').is_dir()


def test_a_killed_run_goes_on_to_the_same_bits(cut_off, first_run, tmp_path):
    here, folder = cut_off
    # from elsewhere: its paths were relative
    done = tl('resume', folder, cwd=tmp_path, env=own_cache(here))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == str(folder)
    # fine-tuning restored, the control taken up
    assert '1 of 1 epochs are in' in done.stderr and '1 of 2 epochs are in' in done.stderr
    a, b = record(first_run[1]), record(folder)
    assert (a['metrics'], a['control'], a['probe']['alpha'], a['kept']) == (b['metrics'], b['control'],
            b['probe']['alpha'], b['kept'])
    assert a['model'][
            'artifact_sha256'] == b['model']['artifact_sha256'] and b['status'] == 'ok' and len(b['resumed']) == 1
    assert (first_run[1]/'model'/'weights.safetensors').read_bytes(
            ) == (folder/'model'/'weights.safetensors').read_bytes()
    assert {p.name for p in folder.iterdir()} == {p.name for p in first_run[1].iterdir()} # its checkpoints are gone
    again = tl('resume', folder, cwd=tmp_path)
    assert again.returncode == 2 and 'is finished' in again.stderr


def test_a_run_in_progress_is_left_alone(tmp_path):
    from tl_notebooks.runs.params import check_params, find_usecase, usecase_params
    from tl_notebooks.runs.run import held, make_run_folder
    nb = find_usecase('parts')
    folder = make_run_folder('parts', check_params(usecase_params(nb), {}), nb, str(tmp_path))
    with held(folder):
        done = tl('resume', folder, cwd=tmp_path)
        assert done.returncode == 2 and 'in use by another process' in done.stderr and record(
                folder)['status'] == 'running'
    assert tl('resume', 'no-such-run', cwd=tmp_path).returncode == 2


def test_checkpoints_hold_no_code(tmp_path):
    "Files that would run something when loaded are refused, not opened"
    import pickle
    from tl_notebooks.learn.resume import read_state
    class Bad:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'done'),)
    (tmp_path/'0000001.safetensors').write_bytes(pickle.dumps(Bad()))
    assert read_state(tmp_path/'0000001.safetensors') is None and not (tmp_path/'done').exists()


@pytest.mark.parametrize('n', range(3))
def test_half_a_checkpoint_is_passed_over(tmp_path, n):
    "Cut anywhere, the newest file counts for nothing, and the one before is taken"
    import torch
    from tl_notebooks.learn.resume import Slot
    slot = Slot(tmp_path)
    for k in (1, 2, 3): slot.write(k, {'w': torch.full((50,), float(k))}, dict(k=k))
    assert len(slot.paths()) == 2
    whole = slot.paths()[-1].read_bytes()
    slot.paths()[-1].write_bytes(whole[:random.Random(n).randrange(len(whole))])
    path, tensors, values = slot.last(); slot.release()
    assert values == dict(k=2) and tensors['w'][0] == 2


# What a fit that goes on must be told, and what it must refuse

def cut_short(learn, folder, epoch, *cbs, epochs=4):
    "A fit that ends in the middle of an epoch, as far as one process can have it"
    from fastai.callback.core import Callback
    from tl_notebooks.learn.resume import Checkpoint
    class Stop(Callback):
        order = 95
        def after_batch(self):
            if self.training and (self.epoch, self.iter) == (epoch, 1): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): learn.fit(epochs, 1e-2, cbs=[*cbs, Checkpoint(folder), Stop()])


def moved_box(learn): learn.dls.train.dataset.targets[0][0][0, 2] += 1
def other_label(learn): t = learn.dls.train.dataset.targets[0][1]; t[0] = (t[0] + 1) % 3
def other_picture(learn): learn.dls.train.dataset.names[0] = '0'*64


SETTINGS = dict(views=2, seed=1, resize='pad', augment=False, ema=.8, cache=False)
OTHER = [moved_box, other_label, other_picture, *(dict([s]) for s in SETTINGS.items())]


@pytest.mark.parametrize('what', OTHER, ids=lambda w: w.__name__ if callable(w) else next(iter(w)))
def test_a_detector_goes_on_with_nothing_else(few_scenes, cut_off_detector, what):
    from tl_notebooks.learn.resume import Checkpoint
    from tl_notebooks.core import InputError
    learn = killed.scene_learner(few_scenes, **dict(views=3, ema=.9) | (what if isinstance(what, dict) else {}))
    if callable(what): what(learn)
    with pytest.raises(InputError, match='was made with other'): learn.fit(4, 1e-2, cbs=Checkpoint(cut_off_detector))


@pytest.fixture(scope='module')
def cut_off_detector(few_scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp('cut off')/'detector'
    cut_short(killed.scene_learner(few_scenes, views=3, ema=.9), folder, 2)
    return folder


def test_a_detector_that_is_finished_keeps_its_weights(few_scenes, tmp_path):
    "Asked for once more, from an untrained network: nothing is trained, and the average stays what it was"
    from tl_notebooks.learn.resume import Checkpoint
    from tl_notebooks.core import hash_state
    learn = killed.scene_learner(few_scenes, views=0)
    learn.fit(2, 1e-2, cbs=Checkpoint(tmp_path))
    again = killed.scene_learner(few_scenes, views=0, ema=.99)
    start = hash_state(again.model.state_dict())
    again.fit(2, 1e-2, cbs=Checkpoint(tmp_path))
    assert hash_state(again.model.state_dict()) == hash_state(learn.model.state_dict()) != start


def test_a_torch_dataset_is_known_by_its_items(tmp_path):
    "Not by its class alone; and looking at it moves no generator"
    import torch
    from fastai.data.load import DataLoader
    from tl_notebooks.learn.resume import data_print
    class Pairs(torch.utils.data.Dataset):
        def __init__(self, x): self.x = x
        def __len__(self): return len(self.x)
        def __getitem__(self, i): return self.x[i] + .1*torch.randn(3), i % 2
    was, x = torch.get_rng_state(), torch.arange(30.).view(10, 3)
    same, other, longer = (data_print(DataLoader(Pairs(t), bs=2)) for t in (x, x + 1, torch.cat([x, x])))
    assert data_print(DataLoader(Pairs(x.clone()), bs=2)) == same and len({same, other, longer}) == 3
    assert torch.equal(torch.get_rng_state(), was)


def test_callbacks_may_come_and_go(tmp_path):
    "Early stopping counts on, although another callback stands before it now; the oracle is the uninterrupted fit"
    from fastai.callback.core import Callback
    from fastai.callback.tracker import EarlyStoppingCallback
    from tl_notebooks.learn.resume import Checkpoint
    from tl_notebooks.core import hash_state, seed_everything
    class Guest(Callback): pass
    def learner(): seed_everything(0, 1); return killed.plain_learner()
    def stop(): return EarlyStoppingCallback(min_delta=10., patience=3) # nothing is ever better than the first epoch
    whole = learner(); whole.fit(8, 1e-2, cbs=stop())
    assert len(whole.recorder.values) == 4
    cut_short(learner(), tmp_path, 2, stop(), epochs=8)
    again = learner(); again.fit(8, 1e-2, cbs=[Guest(), stop(), Checkpoint(tmp_path)])
    assert again.recorder.values == whole.recorder.values
    assert hash_state(again.model.state_dict()) == hash_state(whole.model.state_dict())


STATELESS = dict(NormEval='looks at the network before each fit', FitProgress='a bar',
                 FlipMaps="draws from torch's generator",
                 Distil='its teacher stays', GiveTargets='no state',
                 Checkpoint='keeps it', Processes='no state', _Timed='times a few batches, is never resumed')


def test_what_holds_state_over_epochs_says_so():
    "A callback or DataLoader of ours either gives a checkpoint what a resumed fit needs, or is known to need nothing"
    import importlib
    from fastai.callback.core import Callback
    from fastai.data.load import DataLoader
    from conftest import ROOT
    modules = [importlib.import_module('.'.join(p.relative_to(ROOT).with_suffix('').parts))
               for p in (ROOT/'tl_notebooks').rglob('[a-z]*.py')]
    classes = {k for m in modules for k in vars(m).values() if isinstance(k, type) and k.__module__ == m.__name__}
    ours = [k for k in classes if issubclass(k, (Callback, DataLoader))]
    assert len(ours) > 8
    for k in ours: assert hasattr(k, 'resume_state') == hasattr(k, 'resume_from') != (k.__name__ in STATELESS), k
