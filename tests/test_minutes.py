"What makes a run short: one decoding per file, features that are there already, a control that knows its limit."
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tl_notebooks.core import InputError # first: it guards torchvision
from tl_notebooks.data import images as reading
from tl_notebooks.data.decode import open_image
from tl_notebooks.data.images import read_images
from tl_notebooks.judge import evaluate as _evaluate # noqa: F401  gives learners `evaluate`
from tl_notebooks.learn import vision
from tl_notebooks.learn.machine import begin_choices, end_choices
from tl_notebooks.learn.stages import Stage
from tl_notebooks.learn.vision import Square, image_learner, image_net, image_tensor, square_for
from tl_notebooks.models.save import load_model
from tl_notebooks.runs.control import BATCHES, Control, run_control


def photo(path, size=(1600, 1200), seed=0, turn=None):
    "A JPEG with detail at all scales, as a camera makes it"
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype='uint8')).resize(size, Image.Resampling.BICUBIC)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    im = Image.fromarray(np.clip(np.asarray(small).astype(int) + noise, 0, 255).astype('uint8'))
    exif = Image.Exif()
    if turn: exif[0x0112] = turn
    im.save(path, quality=92, exif=exif)


@pytest.mark.parametrize('turn', [None, 3, 6, 8])
@pytest.mark.parametrize('size', [64, 224])
def test_a_photograph_is_decoded_as_pillow_decodes_it_at_twice_the_size(tmp_path, turn, size):
    photo(tmp_path/'a.jpg', turn=turn)
    own = Image.open(tmp_path/'a.jpg'); own.draft(None, (2*size, 2*size)); own.load()
    assert min(own.size) >= 2*size and own.size[0] < 1600
    own = ImageOps.exif_transpose(own)
    found = open_image(tmp_path/'a.jpg', side=size)
    assert found.size == own.size and np.array_equal(np.asarray(found), np.asarray(own))
    # and shows what the whole image shows
    whole = image_tensor(open_image(tmp_path/'a.jpg'), size).int()
    assert (image_tensor(found, size).int() - whole).abs().float().mean() < 3


@pytest.fixture
def photos(tmp_path):
    for c in 'ab':
        (tmp_path/'d'/c).mkdir(parents=True)
        for k in range(12): photo(tmp_path/'d'/c/f'{k}.jpg', (800, 600), seed=ord(c)*100 + k)
    return tmp_path/'d'


def test_each_file_is_decoded_once_for_checking_and_for_the_network(photos, monkeypatch):
    n, decode = [], reading.decode_image
    monkeypatch.setattr(reading, 'decode_image', lambda *a, **k: n.append(1) or decode(*a, **k))
    data = read_images(photos, square=Square(96), progress=False)
    assert len(n) == len(data.items) == len(data.squares) == 24
    def never(*a, **k): raise AssertionError('decoded again')
    monkeypatch.setattr(vision.ImageReader, 'open', staticmethod(never))
    learn = image_learner(data, 'resnet18', 'random', 96, seed=0, precision='fp32', cache=False)
    learn.probe(); learn.evaluate()
    # another size is another square
    with pytest.raises(AssertionError, match='decoded again'):
        image_learner(data, 'resnet18', 'random', 64, seed=0, precision='fp32', cache=False).probe()


def test_what_is_remembered_is_what_a_reader_reads(photos):
    data = read_images(photos, square=Square(96, 'pad'), progress=False)
    reader = vision.ImageReader(data.root, 96, 'pad', draft=True)
    for path,t in data.squares.items(): assert torch.equal(t, reader.decode_file(path))
    again = read_images(photos, square=Square(96, 'pad'), progress=False) # known by now: nothing is decoded
    assert again.fingerprint == data.fingerprint and not again.squares


def test_squares_that_fill_the_memory_leave_the_rest_to_be_read_when_it_is_wanted(photos):
    "More squares than a reader may keep: it reads no other image ahead"
    data = read_images(photos, square=Square(32), progress=False)
    reader = vision.ImageReader(data.root, 32, keep=3*32*32)
    paths = [*data.items.path]
    reader.take({p: torch.zeros(3, 32, 32, dtype=torch.uint8) for p in paths[:3]})
    reader.preload(paths)
    assert reader.left < 0 and {*reader.kept} == {*paths[:3]}
    assert reader.read(paths[5]).shape == (3, 32, 32) and paths[5] not in reader.kept


def test_the_size_in_the_data_is_that_of_the_file(tmp_path):
    for c,turn in (('a', None), ('b', 6)):
        (tmp_path/c).mkdir()
        for k in range(3): photo(tmp_path/c/f'{k}.jpg', seed=k + 7*(c == 'b'), turn=turn)
    items = read_images(tmp_path, progress=False).items
    assert {*zip(items.label, items.width, items.height)} == {('a', 1600, 1200), ('b', 1200, 1600)}


def test_a_cut_photograph_is_found_at_any_scale(tmp_path):
    photo(tmp_path/'a.jpg'); data = (tmp_path/'a.jpg').read_bytes()
    (tmp_path/'half.jpg').write_bytes(data[:len(data)//2])
    with pytest.raises(InputError, match='truncated'): open_image(tmp_path/'half.jpg', side=32)


def test_both_features_are_what_timm_computes():
    net, info = image_net('resnet18', 3, 'random', 64, features='both'); net.eval()
    x = torch.randn(2, 3, 64, 64)
    import timm
    model = timm.create_model('resnet18', num_classes=0).eval()
    model.load_state_dict(net.body.model.state_dict())
    with torch.no_grad():
        last, maps = model.forward_intermediates(x, indices=(2, 3, 4))
        want = torch.cat([t for f in (last, *maps) for t in (f.mean((2, 3)), f.amax((2, 3)))], 1)
        assert torch.allclose(net.features(x), want, atol=1e-5)
    assert info['features'] == 'both' and info['n_features'] == 1024 + 2*(128 + 256 + 512)


def test_features_are_chosen_by_leave_one_out_and_saved_as_chosen(photos, tmp_path):
    data = read_images(photos, square=Square(64), progress=False)
    learn = image_learner(data, 'resnet18', 'random', 64, seed=0, precision='fp32', features='auto')
    probe = learn.probe()
    assert {*probe.tried} == {'last', 'blocks', 'both'}
    assert probe.features == min(probe.tried, key=probe.tried.get) == learn.info['features']
    learn.calibrate(); found = learn.evaluate()
    model = load_model(learn.save_model(tmp_path/'m'))
    got = np.array([[*p.probabilities.values()] for p in model.predict(data.files('test'))])
    assert np.abs(got - found.probs).max() < 1e-4 and model.statistics().d == learn.info['n_features']


def test_a_tuned_network_gives_its_features_from_what_is_kept(photos, monkeypatch):
    data = read_images(photos, square=Square(64), progress=False)
    learn = image_learner(data, 'resnet18', 'random', 64, seed=0, precision='fp32')
    learn.precompute(thaw=2); learn.probe()
    with learn.no_bar(), learn.no_logging(): learn.thaw_progressively([Stage(2, 1, 1e-3)], keep_best=False)
    x, y = learn.features(learn.dls[1])
    assert learn.frozen_prefix.report[-1]['computed'] == 0 and learn.frozen_prefix.report[-1]['cut'] != ['pooled']
    with torch.no_grad(): own = torch.cat([learn.model.features(b[0]) for b in learn.dls[1]])
    assert torch.allclose(x, own, atol=1e-3) and len(y) == len(own)


def a_run(control, spent, params=None):
    params = dict(control=control, bs=2) | (params or {})
    return SimpleNamespace(p=SimpleNamespace(**params), record=dict(timings=dict(rest=spent), params=params, control={},
                           data=dict(fingerprint='f'*64)), phase=lambda name: io.StringIO(),
                           metric=lambda *a, **k: None, track=lambda name: [])


def test_a_control_is_never_dearer_than_the_rest(photos, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    data = read_images(photos, square=Square(32), progress=False)
    made = []
    def make():
        made.append(image_learner(data, 'resnet18', 'random', 32, bs=4, norm='train', seed=0, precision='fp32'))
        return made[-1]
    ask = lambda run: run_control(run, make, 2, 1e-3, lambda l: l.evaluate(), 4)
    assert ask(a_run('no', 9.)) is None and not made
    run = a_run('auto', 1e-6)
    assert ask(run) is None and 'control=yes measures it' in run.record['control_about']
    whole = ask(a_run('yes', 1e-6))
    assert whole.whole and whole.metrics['accuracy']['n'] == len(data.subset('test')) and len(made) == 2
    assert ask(a_run('auto', 1e-6)) == whole and len(made) == 2 # looked up
    # a run that repeats another trains: what is looked up would prove nothing
    for n in (3, 2):
        begin_choices({BATCHES: dict(asked='auto', took=n, why='')})
        try: assert ask(a_run('auto', 1e-6)).batches == n and len(made) == 6 - n
        finally: end_choices()
    del made[2:]
    assert isinstance(ask(a_run('yes', 1., dict(bs=3))), Control) and len(made) == 3 # another setting


def test_the_size_a_backbone_wants_is_known_before_it_is_loaded():
    assert square_for('efficientnet_lite0') == Square(224) and square_for('efficientnet_lite0', 96, 'pad').size == 96
