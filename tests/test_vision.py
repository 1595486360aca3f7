"""Image learners are fastai Learners on any backbone: groups, freezing, rates, images of results, and plain fastai on
request."""
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use('agg')
import tl_notebooks  # noqa: E402,F401  before fastai and timm: it guards torchvision
import timm  # noqa: E402
from fastai.callback.tracker import EarlyStoppingCallback  # noqa: E402
from fastai.interpret import ClassificationInterpretation  # noqa: E402
from fastai.learner import Learner  # noqa: E402

from tl_notebooks.models.folder import Model, save_model  # noqa: E402
from tl_notebooks.core import InputError, hash_state, seed_everything  # noqa: E402
from tl_notebooks.data.images import read_images  # noqa: E402
from tl_notebooks.learn.vision import image_learner, image_net, test_dl as dl_of_split  # noqa: E402

BACKBONES = ['resnet18', 'mobilenetv3_large', 'convnext_tiny', 'timm/vit_tiny_patch16_224',
             'timm/swin_tiny_patch4_window7_224', 'timm/vgg11',
             'timm/edgenext_xx_small', 'torchvision/resnet18', 'torchvision/mobilenet_v3_small', 'torchvision/vgg11',
             'torchvision/densenet121',
             'torchvision/squeezenet1_1', 'torchvision/efficientnet_b0']


@pytest.mark.parametrize('name', BACKBONES)
def test_any_backbone_by_name(name):
    "Every parameter of the body is in one group, in order; a few groups; one row of finite features per image"
    size = 224 if 'vit' in name or 'swin' in name else 96
    net, info = image_net(name, 3, 'random', size)
    groups = net.param_groups()
    ids = [id(p) for g in groups for p in g]
    assert len(set(ids)) == len(ids) and set(ids) == {id(p) for p in net.parameters()} and 3 <= len(groups) <= 6
    with torch.no_grad(): f, out = net.eval().features(torch.rand(2, 3, size, size)), net(torch.rand(2, 3, size, size))
    assert f.shape == (2, info['n_features']) and out.shape == (2, 3) and f.isfinite().all()
    place = {id(p): i for i, p in enumerate(net.body.parameters())}
    starts = [place[id(g[0])] for g in groups[:-1]]
    assert starts == sorted(starts) and starts[0] == 0


def test_a_backbone_that_cannot_be_cut_says_what_to_take():
    with pytest.raises(InputError, match='vit_small_patch16_224'): image_net('torchvision/vit_b_16', 3, 'random')


def test_features_are_timms_own_pooled():
    net, info = image_net('efficientnet_lite0', 3)
    model = timm.create_model('tf_efficientnet_lite0', pretrained=False)
    model.load_state_dict(net.body.model.state_dict(), strict=False)
    x = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        m = model.eval().forward_features(x)
        f = net.eval().features(x)
    # rounding of another memory layout
    torch.testing.assert_close(f, torch.cat([m.mean((2, 3)), m.amax((2, 3))], 1), atol=1e-4, rtol=1e-4)
    net.precision = 'bf16'
    with torch.no_grad(): assert torch.cosine_similarity(net.features(x), f).min() > .99
    assert (info['mean'], info['size']) == ([.5]*3, 224)


@pytest.fixture(scope='module')
def data(pictures): return read_images(pictures, progress=False)


@pytest.fixture(scope='module')
def learn(data):
    learn = image_learner(data, size=96, bs=16, precision='fp32', seed=0)
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, 1e-4, thaw=2, keep_best=False)
    return learn


def test_fastais_pictures_of_results(learn, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    monkeypatch.chdir(tmp_path)
    plt.close('all')
    with learn.no_bar():
        learn.dls.show_batch(max_n=4)
        learn.show_results(max_n=4)
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(4); interp.plot_confusion_matrix()
        found = learn.lr_find(num_it=12)
    assert isinstance(learn, Learner) and len(plt.get_fignums()) == 5 and 0 < found.valley < 1
    assert interp.confusion_matrix().sum() == len(learn.dls.valid_ds)
    plt.close('all')



def test_normalisation_is_the_pretrained_one(learn):
    x, _ = learn.dls.one_batch()
    raw = torch.stack([learn.dls.valid_ds[i][0] for i in range(4)]).as_subclass(torch.Tensor).float()/255
    seen = next(iter(learn.dls.valid))[0][:4].as_subclass(torch.Tensor)
    torch.testing.assert_close(seen, (raw - .5)/.5, atol=1e-5, rtol=0)
    assert x.shape == (16, 3, 96, 96)


def test_freezing_and_rates(data):
    learn = image_learner(data, 'resnet18', 'random', size=64, bs=16, precision='fp32', seed=0)
    trains = lambda: [all(p.requires_grad for p in g) for g in learn.model.param_groups()]
    n = len(trains())
    learn.freeze(); assert trains() == [False]*(n-1) + [True]
    learn.freeze_to(-2); assert trains() == [False]*(n-2) + [True]*2
    learn.unfreeze(); assert all(trains())
    learn.freeze_to(-2)
    before = [[p.detach().clone() for p in g] for g in learn.model.param_groups()]
    norms = hash_state({k: v for k, v in learn.model.body.state_dict().items() if 'running' in k})
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(1e-4, 1e-2), cbs=EarlyStoppingCallback())
    rates = [h['lr'] for h in learn.opt.hypers]
    assert rates == sorted(rates) and rates[-1] > rates[0]
    same = [all(torch.equal(a, b) for a, b in zip(g, new)) for g, new in zip(before, learn.model.param_groups())]
    assert same == [True]*(n-2) + [False]*2
    assert hash_state({k: v for k, v in learn.model.body.state_dict().items() if 'running' in k}) == norms


def test_plain_fastai_on_request(data):
    "Without the probe, and with fastai's BatchNorm default, the result is that of fastai's own fine_tune, bit for bit"
    def make():
        return image_learner(data, 'resnet18', 'random', size=64, bs=16, precision='fp32', seed=3, norm='train')
    a = make()
    with a.no_bar(), a.no_logging(): a.fine_tune(1, 1e-3, probe=False)
    b = make()
    with b.no_bar(), b.no_logging(): Learner.fine_tune(b, 1, 1e-3)
    assert hash_state(a.model.state_dict()) == hash_state(b.model.state_dict()) and not a.probed


def test_probe_beats_a_head_that_knows_nothing(data):
    learn = image_learner(data, size=96, bs=16, precision='fp32', seed=0)
    found = learn.probe()
    with learn.no_bar():
        loss, acc = learn.validate()
        probs, y = learn.get_preds(dl=dl_of_split(learn, data))
    assert acc == pytest.approx(found.valid_accuracy) and loss == pytest.approx(found.valid_loss, rel=1e-4)
    # chance is 0.25; of 36 images, that many are right by luck once in a thousand times
    assert found.loo_accuracy > .5
    assert probs.shape == (len(y), 4) and np.array_equal(y.numpy(), data.labels('test'))
    with pytest.raises(InputError, match='`thaw` is 99'): learn.fine_tune(1, thaw=99)


@pytest.mark.parametrize('name', BACKBONES[:8])
def test_the_last_blocks_of_any_timm_backbone(name):
    size = 224 if 'vit' in name or 'swin' in name else 96
    if name.startswith('torchvision/'):
        with pytest.raises(InputError, match='networks of timm'): image_net(name, 3, 'random', size, features='blocks')
        return
    net, info = image_net(name, 3, 'random', size, features='blocks')
    x, seen = torch.rand(2, 3, size, size), {}
    # what follows may work in place
    for t in net.body.taps:
        net.body.model.get_submodule(t).register_forward_hook(lambda m, args, out, t=t: seen.update({t: out.clone()}))
    with torch.no_grad(): f = net.eval().features(x)
    assert len(net.body.taps) == 3 and f.shape == (2, info['n_features']) and f.isfinite().all()
    axes = {t: (1,) if o.ndim == 3 else (1, 2) if net.body.layout == 'NHWC' else (2, 3) for t,o in seen.items()}
    first = {t: o[:,net.body.prefix:] if o.ndim == 3 else o for t,o in seen.items()}
    means, at = [first[t].mean(axes[t]) for t in net.body.taps], 0
    for m in means:
        torch.testing.assert_close(f[:,at:at + m.shape[1]], m, rtol=1e-4, atol=1e-5); at += 2*m.shape[1]
    assert at == f.shape[1]


def test_the_last_blocks_as_features(pictures, tmp_path):
    """A fit with frozen layers comes out the same with the cache, which ends before the first block that is read, and
    without; the model folder is the network"""
    data, found = read_images(pictures, valid_pct=.2, test_pct=.2, seed=0), []
    for cache in (True, False):
        learn = image_learner(data, size=64, precision='fp32', augment=False, seed=0, features='blocks', cache=cache,
                              model_dir=tmp_path)
        assert learn.model.body.taps == ('blocks.4', 'blocks.5', 'blocks.6') and learn.model.n_features == 2*(112 + 192
                + 320) == learn.info['n_features']
        with learn.no_bar(), learn.no_logging():
            learn.probe(); learn.freeze_to(-2)
            seed_everything(0); learn.fit_one_cycle(1, 1e-3)
        found.append(learn)
    a, b = found
    places = {c.place for c,_ in a.frozen_prefix.split_points.values()}
    assert '' in places and any(p and p < 'model.blocks.5' for p in places), places
    for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-4)
    folder = save_model(tmp_path/'model', a.model, a.info, data.classes)
    again, files = Model(folder), data.files('test')
    assert again.manifest['backbone']['features'] == 'blocks'
    with torch.inference_mode():
        torch.testing.assert_close(again.features(files), a.features(dl_of_split(a, data))[0], rtol=1e-4, atol=1e-4)
    parts = [torch.rand(2, 3, 64, 64) for _ in range(8)]
    def look(x):
        with torch.inference_mode(): return [again.net.features(x) for _ in range(5)]
    with ThreadPoolExecutor(8) as pool: at_once = [*pool.map(look, parts)]
    for x, many in zip(parts, at_once):
        for f in many: torch.testing.assert_close(f, look(x)[0], rtol=1e-4, atol=1e-4) # a service has many threads
