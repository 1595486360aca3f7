"""The frozen part is computed once and nothing else changes: the network's own numbers, rows that belong to what they
are used for, disks that fail."""
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import QUICK, ROOT, need, record, tl
from torch import nn

import tl_notebooks  # noqa: F401  before fastai and timm: it guards torchvision
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.interpret import ClassificationInterpretation
from fastai.optimizer import SGD
from fastai.vision.augment import aug_transforms
from PIL import Image
from torch.utils.data import TensorDataset

from tl_notebooks.frozen.cut import find_split_point, run_suffix
from tl_notebooks.frozen.engine import Prefix
from tl_notebooks.frozen.loader import Activations, fill
from tl_notebooks.frozen.store import ActivationStore, clear_stores, hash_prefix, list_stores, make_room
from tl_notebooks.core import InputError, hash_state, seed_everything
from tl_notebooks.data.images import read_images
from tl_notebooks.learn.learner import TransferLearner
from tl_notebooks.learn.network import TransferNet
from tl_notebooks.learn.prefix import FlipMaps
from tl_notebooks.learn.stages import Stage
from tl_notebooks.learn.vision import image_learner, image_net, test_dl as dl_of_split

NETS = ['efficientnet_lite0', 'resnet18', 'mobilenetv3_large', 'convnext_tiny', 'timm/vit_tiny_patch16_224',
        'timm/swin_tiny_patch4_window7_224',
        'timm/edgenext_xx_small', 'timm/regnetx_002', 'timm/repvgg_a0', 'timm/dla34', 'timm/levit_128s',
        'timm/mixer_s32_224', 'timm/pvt_v2_b0',
        'timm/xcit_nano_12_p16_224', 'torchvision/densenet121', 'torchvision/mobilenet_v3_small',
        'torchvision/resnet18', 'torchvision/squeezenet1_1', 'torchvision/vgg11']
FIXED = ('vit', 'swin', 'levit', 'mixer', 'xcit')


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache of its own"
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'activations'


@pytest.fixture(scope='module')
def data(pictures): return read_images(pictures, progress=False)


def quiet(learn, what):
    with learn.no_bar(), learn.no_logging(): return what()


def learner(data, seed=0, size=64, augment=False, **kwargs):
    return image_learner(data, size=size, bs=16, precision='fp32', seed=seed, augment=augment,
                         model_dir=tempfile.gettempdir(), **kwargs)


def computed(learn): return sum(r['computed'] for r in learn.frozen_prefix.report)


# The same numbers

@pytest.mark.parametrize('name', NETS)
def test_every_cut_gives_the_networks_own_features(name):
    "From any layer group on, with no line of code for any family: to the bit; with folded BatchNorms, to rounding"
    size = 224 if any(f in name for f in FIXED) else 96
    net, _ = image_net(name, 3, 'random', size)
    seed_everything(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.uniform_(-.2, .2); m.running_var.uniform_(.5, 2)
    xb = [torch.rand(3, 3, size, size).contiguous(memory_format=torch.channels_last)]
    with torch.no_grad(): own = net.eval().body(*xb)
    blank = torch.zeros(1, 3, size, size)
    places = []
    for n in range(1, len(net.body.groups) + 1):
        cut = find_split_point(net.body, [p for g in net.body.groups[:n] for p in g], xb)
        for fold in (False, True):
            hidden = Prefix(net.body, [cut], xb, 3, fold)(*xb)[0]
            hidden = cut.hidden(cut.rows(hidden))                          # as it comes back from the disk
            with torch.no_grad(): again = run_suffix(net.body, cut, hidden, *(xb if cut.inputs else [blank]))
            if fold: torch.testing.assert_close(again, own, rtol=1e-4, atol=2e-5*float(own.abs().max()))
            elif 'xcit' in name: torch.testing.assert_close(again, own, rtol=1e-5, atol=1e-6)
            else: assert torch.equal(again, own), (n, cut.place)
        places.append(cut.place)
        frozen = [p for g in net.body.groups[:n] for p in g]
        was = hash_prefix(net.body, cut)
        with torch.no_grad():
            for p in (frozen[0], frozen[len(frozen)//2], frozen[-1]):
                old = p.clone(); p.mul_(1.001).add_(1e-4)
                assert hash_prefix(net.body, cut) != was, f'a frozen tensor before {cut.place} does not count'
                p.copy_(old)
            if cut.place:
                ran = [p for m in cut.behind for p in net.body.get_submodule(m).parameters()]
                old = ran[0].clone(); ran[0].add_(1.); assert hash_prefix(net.body, cut) == was; ran[0].copy_(old)
        assert hash_prefix(net.body, cut) == was and not {id(p) for p in frozen} & {id(p) for m in cut.behind
                for p in net.body.get_submodule(m).parameters()}
    assert places[-1] == '' and len(set(places)) >= min(4, len(places)), places


def test_a_network_whose_layers_look_back_is_refused_and_trained_whole(data, cache, capsys):
    class Back(nn.Module):
        cache_key = 'back'
        def __init__(self): super().__init__(); self.a, self.b, self.c = (nn.Linear(4, 4) for _ in 'abc')
        def forward(self, x): h = self.a(x); return self.c(self.b(h)) + h
    back = Back().eval()
    with pytest.raises(InputError, match='something else crosses'):
        find_split_point(back, [*back.a.parameters(), *back.b.parameters()], [torch.rand(2, 4)])
    learn = learner(data, size=64, backbone='timm/hrnet_w18_small', weights='random')
    learn.freeze_to(-3)
    quiet(learn, lambda: learn.fit(1, 1e-4))
    assert not learn.frozen_prefix.report and capsys.readouterr().err.count('cannot be cut') == 1     # said once


def test_text_encoders_are_cut_between_layers():
    "The same mechanism for transformers: the mask goes in beside the kept activations"
    transformers = pytest.importorskip('transformers')
    seed_everything(0)
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
                                     intermediate_size=64)
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self): super().__init__(); self.bert = transformers.BertModel(config, add_pooling_layer=False)
        def forward(self, ids, mask):
            h = self.bert(ids, attention_mask=mask).last_hidden_state
            return (h*mask[...,None]).sum(1)/mask.sum(1, keepdim=True)
    body = Body().eval()
    ids = torch.randint(1, 50, (5, 12)); mask = (torch.arange(12) < torch.tensor([12, 7, 3, 12, 9])[:,None]).long()
    with torch.no_grad(): own = body(ids, mask)
    for k in range(1, 4):
        layers = body.bert.encoder.layer
        frozen = [*body.bert.embeddings.parameters(), *(p for m in layers[:k] for p in m.parameters())]
        cut = find_split_point(body, frozen, [ids[:2], mask[:2]])
        assert cut.place == f'bert.encoder.layer.{k}' and cut.inputs
        hidden = Prefix(body, [cut], [ids[:2], mask[:2]], 4)(ids, mask)[0]
        with torch.no_grad():
            torch.testing.assert_close(run_suffix(body, cut, hidden, ids, mask), own, rtol=1e-5, atol=1e-6)


def test_a_text_learner_trains_on_activations_and_masks(cache):
    "Two inputs, one of them wanted behind the cut: the same losses and predictions as a Learner without any of this"
    transformers = pytest.importorskip('transformers')
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                     intermediate_size=64, hidden_dropout_prob=.1)
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self):
            super().__init__(); self.bert = transformers.BertModel(config, add_pooling_layer=False)
            self.groups = [[*self.bert.embeddings.parameters()], *([*m.parameters()] for m in self.bert.encoder.layer)]
        def forward(self, ids, mask):
            return (self.bert(ids, attention_mask=mask).last_hidden_state*mask[...,None]).sum(1)/mask.sum(1,
                    keepdim=True)
    seed_everything(0)
    n = 40; ids = torch.randint(1, 50, (n, 12)); mask = (torch.arange(12) < torch.randint(3, 13, (n,))[:,None]).long()
    ds = TensorDataset(ids*mask, mask, (ids[:,0] > 25).long())
    def run(bare=False, **kwargs):
        seed_everything(1)
        dls = DataLoaders(DataLoader(ds, bs=8, shuffle=True), DataLoader(ds, bs=8), device='cpu'); dls.n_inp = 2
        learn = TransferLearner(dls, TransferNet(Body(), 32, 2), **kwargs)
        if bare: learn.remove_cb(learn.frozen_prefix); learn.frozen_prefix = SimpleNamespace()
        learn.freeze_to(-3)
        quiet(learn, lambda: learn.fit(2, 1e-3))
        return learn, ([float(x) for x in learn.recorder.losses], [*quiet(learn, learn.validate)],
                       quiet(learn, lambda: learn.get_preds())[0].tolist())
    (_, own), (kept, cached), (_, live) = run(bare=True), run(), run(cache=False)
    assert computed(kept) == 40 and kept.frozen_prefix.report[0]['cut'] == ['bert.encoder.layer.1']
    for a, b in ((own, cached), (cached, live)):
        for x, y in zip(a, b): torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=1e-4, atol=1e-5)


def test_items_of_different_sizes_are_trained_whole(cache, capsys):
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self):
            super().__init__(); self.a, self.b = nn.Linear(1, 4), nn.Linear(4, 4)
            self.groups = [[*self.a.parameters()], [*self.b.parameters()]]
        def forward(self, x): return self.b(self.a(x[...,None]).relu()).mean(1)
    seed_everything(0)
    ds = [(torch.randn(5 + 2*(i > 7)), torch.tensor(i % 2)) for i in range(16)]
    learn = TransferLearner(DataLoaders(DataLoader(ds, bs=4), DataLoader(ds, bs=4), device='cpu'),
                            TransferNet(Body(), 4, 2))
    learn.freeze_to(-2)
    quiet(learn, lambda: learn.fit(1, 1e-3))
    assert 'Items must have one size' in capsys.readouterr().err and len(learn.recorder.losses) == 4


@pytest.mark.parametrize('groups', [1, 2, 3, 5])
def test_training_is_the_uncached_training(data, cache, groups):
    """Same seed, same order: the same losses and predictions; the control is a Learner without any of this.

    SGD and small rates, since training with BatchNorms on batches of 16 is ill-conditioned: a relative change of 1e-6
    in the first
    weights moves a logit by 0.01 in four steps. Losses are what shows a row that belongs to another image.
    """
    def run(bare=False, **kwargs):
        learn = learner(data, opt_func=SGD, **kwargs)
        if bare: learn.remove_cb(learn.frozen_prefix); learn.frozen_prefix = SimpleNamespace()
        learn.freeze_to(-groups)
        quiet(learn, lambda: learn.lr_find(1e-5, 1e-2, num_it=8, show_plot=False))
        found = [float(x) for x in learn.recorder.losses]
        quiet(learn, lambda: learn.fit_one_cycle(2, slice(1e-5, 1e-3)))
        losses = [float(x) for x in learn.recorder.losses]
        preds = quiet(learn, lambda: learn.get_preds(dl=dl_of_split(learn, data), act=lambda x: x)[0])
        return learn, [found, losses, [*quiet(learn, learn.validate)], preds.tolist()]
    _, own = run(bare=True)
    for kwargs in (dict(fold=False), dict(fold=False, cache=False), {}, dict(cache=False)):
        learn, got = run(**kwargs)
        assert computed(learn) == (0 if kwargs.get('cache') is False else 36 + 12 + 12)
        for x, y, tol in zip(got, own, (1e-3, 1e-3, 2e-2, 2e-2)):
            torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=tol, atol=tol)
        # before rounding has had steps to grow
        torch.testing.assert_close(torch.tensor(got[0][:2]), torch.tensor(own[0][:2]), rtol=1e-5, atol=1e-5)


def test_probing_with_and_without_the_cache_is_the_same(data, cache):
    a, b = learner(data, size=96), learner(data, size=96, cache=False)
    pa, pb = a.probe(), b.probe()
    assert pa.alpha == pytest.approx(pb.alpha, rel=1e-3) and pa.valid_loss == pytest.approx(pb.valid_loss, rel=1e-3)
    assert computed(a) == 48 and computed(b) == 0


def test_logits_of_a_probed_network_agree_to_1e5(data, cache):
    learn = learner(data, size=96)                                        # folded, as by default
    learn.probe(thaw=2)
    cached = quiet(learn, lambda: learn.get_preds(dl=dl_of_split(learn, data), act=lambda x: x)[0])
    learn.remove_cb(learn.frozen_prefix)
    whole = quiet(learn, lambda: learn.get_preds(dl=dl_of_split(learn, data), act=lambda x: x)[0])
    torch.testing.assert_close(cached, whole, rtol=0, atol=1e-5*float(whole.abs().max()))


@pytest.mark.parametrize('dtype,rtol', [('bf16', 2**-7), ('fp16', 2**-9)])
def test_stored_precision_is_all_that_is_lost(data, cache, dtype, rtol):
    def preds(**kwargs):
        learn = learner(data, **kwargs); learn.freeze_to(-2)
        return quiet(learn, lambda: learn.get_preds(act=lambda x: x)[0])
    a, b = preds(cache=False), preds(cache_dtype=dtype)
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, rtol=0, atol=4*rtol*float(a.abs().max()))


def test_bf16_bodies_are_cached_as_they_compute(data, cache):
    def preds(**kwargs):
        learn = image_learner(data, 'resnet18', 'random', size=64, bs=16, precision='bf16', seed=0, augment=False,
                              fold=False, **kwargs)
        learn.freeze_to(-2)
        quiet(learn, lambda: learn.fit(1, 1e-4))
        return learn, quiet(learn, lambda: learn.get_preds(act=lambda x: x)[0])
    (a, pa), (b, pb) = preds(cache=False), preds()
    assert b.frozen_prefix.report[0]['dtype'] == ['bfloat16']
    torch.testing.assert_close(pa, pb, rtol=0, atol=2**-6*float(pa.abs().max()))


def test_small_steps_change_no_gradient(data):
    learn = learner(data, size=96)
    x, y = learn.dls.one_batch()
    learn.model.body.double(); x = x.double() # in float32 what a sum loses depends on its order
    grads = []
    learn.unfreeze(); learn.model.train(); learn.norm_eval.before_fit(); learn.norm_eval.before_train()
    learn.model.head.eval()
    for learn.model.micro_batch in (0, 4):
        learn.model.zero_grad()
        nn.functional.cross_entropy(learn.model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)).backward()
        grads.append([p.grad.clone() for p in learn.model.parameters() if p.grad is not None])
    top = max(float(g.abs().max()) for g in grads[0])
    for a, b in zip(*grads): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5*top)


def test_compiled_body_trains_the_same(cache):
    "On a body small enough to compile in seconds"
    seed_everything(0)
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self):
            super().__init__(); self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 8)
            self.groups = [list(self.a.parameters()), list(self.b.parameters())]
        def forward(self, x): return self.b(self.a(x).relu()).relu()
    from tl_notebooks.learn.network import compile_body
    net = TransferNet(Body(), 8, 3).eval(); x = torch.randn(5, 6)
    keys, own = [*net.state_dict()], net(x)
    compile_body(net)
    torch.testing.assert_close(net(x), own, rtol=1e-5, atol=1e-6)
    assert [*net.state_dict()] == keys


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
def test_on_a_gpu(data, cache):
    learn = image_learner(data, size=64, bs=16, seed=0, augment=True, views=2)
    quiet(learn, lambda: learn.fine_tune(2, 1e-4, thaw=2))
    assert learn.dls.device.type == 'cuda' and computed(learn) and quiet(learn, learn.validate)[1] > .5


# What fastai does on top

def test_fastais_pictures_and_interpretation(data, cache, monkeypatch, tmp_path):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    learn = learner(data)
    quiet(learn, lambda: learn.fine_tune(1, 1e-4, thaw=2))
    plt.close('all')
    with learn.no_bar():
        learn.show_results(max_n=4)
        interp = ClassificationInterpretation.from_learner(learn); interp.plot_top_losses(4)
        interp.plot_confusion_matrix()
        inputs = learn.get_preds(with_input=True)[0]
        label, _, probs = learn.predict(data.items.path[0])
    assert inputs.shape[1:] == (3, 64, 64) and label in data.classes and probs.sum() == pytest.approx(1, abs=1e-4)
    assert len(plt.get_fignums()) == 3; plt.close('all')
    # no activations in an export
    assert learn.frozen_prefix.stores and not learn.frozen_prefix.__getstate__()['stores']
    learn.export(tmp_path/'learner.pkl')


@pytest.mark.parametrize('mix', [MixUp, CutMix, FlipMaps])
def test_mixing_and_flipping_work_on_activations(data, cache, mix):
    seen = []
    class Watch(FlipMaps):
        order = 20
        def before_batch(self):
            seen.append((type(self.learn.xb[0]), tuple(self.learn.xb[0].shape), self.learn.xb[0].sum().item()))
    def sums(cbs):
        seen.clear()
        learn = learner(data, cbs=cbs, size=96); learn.freeze_to(-4)
        quiet(learn, lambda: learn.fit(1, 1e-4))
        return list(seen)
    plain, mixed = sums([Watch()]), sums([mix(), Watch()])
    assert {s[0] for s in mixed} == {Activations} and mixed[0][1] == (16, 80, 6, 6)
    # mirrored: the same sum
    if mix is FlipMaps: assert [s[2] for s in plain] == pytest.approx([s[2] for s in mixed], rel=1e-4)
    else: assert [s[2] for s in plain] != [s[2] for s in mixed]


def test_flip_maps_mirrors(data, cache):
    learn = learner(data, cbs=FlipMaps(p=1.)); learn.freeze_to(-2)
    before, after = [], []
    class First(FlipMaps):
        order = 0
        def before_batch(self): before.append(self.learn.xb[0].as_subclass(torch.Tensor).clone())
    class Last(FlipMaps):
        order = 20
        def before_batch(self): after.append(self.learn.xb[0].as_subclass(torch.Tensor).clone())
    quiet(learn, lambda: learn.fit(1, 1e-4, cbs=[First(), Last()]))
    for b, a in zip(before, after): assert torch.equal(b.flip(3), a)


def test_an_error_or_interrupt_in_a_fit_leaves_a_learner_that_works(data, cache):
    learn = learner(data); learn.freeze_to(-2)
    class Stop(FlipMaps):
        def before_batch(self): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): quiet(learn, lambda: learn.fit(1, 1e-4, cbs=Stop()))
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, Stop)])
    learn.unfreeze()
    quiet(learn, lambda: learn.fit(1, 1e-3))                              # the body moves
    got = quiet(learn, lambda: learn.get_preds(act=lambda x: x)[0])
    learn.frozen_prefix.cache = False
    torch.testing.assert_close(got, quiet(learn, lambda: learn.get_preds(act=lambda x: x)[0]), rtol=1e-4, atol=1e-4)


# Only what belongs to it is used

def test_a_second_run_computes_nothing(data, cache):
    a, b = learner(data), learner(data)
    pa, pb = a.probe(thaw=2), b.probe(thaw=2)
    assert computed(a) == 2*(36 + 12) and computed(b) == 0 and (pa.alpha, pa.valid_loss) == (pb.alpha, pb.valid_loss)
    quiet(b, lambda: b.fine_tune(1, 1e-4, thaw=2)); assert computed(b) == 0


def test_a_changed_picture_recomputes_that_picture_and_a_new_class_its_own(pictures, tmp_path, cache):
    folder = tmp_path/'parts'; shutil.copytree(pictures, folder)
    kinds = sorted(p.name for p in folder.iterdir())
    held = folder.parent/'held'; shutil.move(folder/kinds[3], held)
    def run():
        learn = learner(read_images(folder, seed=0, progress=False)); learn.probe()
        quiet(learn, lambda: learn.get_preds(dl=dl_of_split(learn, read_images(folder, seed=0, progress=False))))
        return computed(learn)
    assert run() == 45 and run() == 0
    one = sorted((folder/kinds[0]).iterdir())[0]
    with Image.open(one) as im: im.convert('RGB').rotate(90).save(one)
    assert run() == 1
    shutil.move(held, folder/kinds[3])
    assert run() == 15
    one.rename(one.with_name('another name' + one.suffix))                 # a name is not content
    assert run() == 0


def test_a_file_that_changes_while_in_use_is_refused(pictures, tmp_path, cache):
    folder = tmp_path/'parts'; shutil.copytree(pictures, folder)
    learn = learner(read_images(folder, progress=False))
    path = folder/learn.frozen_prefix.items_of(learn.dls.train).raw([5])[0]
    with Image.open(path) as im: im.convert('RGB').rotate(90).save(path)
    with pytest.raises(InputError, match='has changed since the data was checked'): learn.probe()


CHANGES = {
    'one weight of the prefix': dict(do=lambda l: l.model.body.groups[0][0].data[0].mul_(1.0001)),
    'a BatchNorm statistic': dict(do=lambda l: next(m for m in l.model.body.modules()
                                                    if isinstance(m, nn.BatchNorm2d)).running_mean.add_(1e-3)),
    'an activation function': dict(do=lambda l: setattr(l.model.body.model.blocks[0][0], 'aa', nn.ReLU())),
    'the size of the images': dict(size=96),
    'how they are made square': dict(resize='crop'),
    'the normalisation': dict(do=lambda l: l.dls.valid.after_batch.fs[-1].mean.add_(.1)),
    'the cut': dict(thaw=3),
    'the stored precision': dict(cache_dtype='bf16'),
    'the precision': dict(precision='bf16'),
    'folding': dict(fold=False),
    'items at a time': dict(do=lambda l: setattr(l.model, 'micro_batch', l.model.micro_batch + 1)),
    'a transform of the images': dict(do=lambda l: [dl.after_batch.add(Brighter(1.1)) for dl in l.dls]),
    'threads': dict(threads=1),
    'the version of the code': dict(code='0.0.0+other'),
}


class Brighter(aug_transforms()[-1].__class__.__mro__[-2]):      # fasttransform's Transform
    order = 99
    def __init__(self, k): self.k = self.cache_key = k; super().__init__()
    def encodes(self, x:torch.Tensor): return x*(self.k or 1) if x.is_floating_point() else x


@pytest.mark.parametrize('what', CHANGES)
def test_each_ingredient_counts(pictures, cache, monkeypatch, what):
    "Change one thing, and not one row is used again; change it back, and all are"
    data = read_images(pictures, progress=False)
    def run(size=64, resize='squish', thaw=2, precision='fp32', do=None, threads=2, code=None, **kwargs):
        torch.set_num_threads(threads)
        try:
            learn = image_learner(data, size=size, bs=16, resize=resize, precision=precision, seed=0, augment=False,
                                  **kwargs)
            if do:
                with torch.no_grad(): do(learn)
            with monkeypatch.context() as m:
                if code: m.setattr('tl_notebooks.learn.prefix.code_version', lambda: code)
                learn.freeze_to(-thaw)
                quiet(learn, lambda: learn.get_preds(ds_idx=1))
            return computed(learn)
        finally: torch.set_num_threads(2)
    assert run() == 12 and run() == 0
    assert run(**CHANGES[what]) == 12, f'{what} was changed, and rows were used again'
    assert run() == 0


def test_a_transform_that_does_not_say_what_it_does_is_not_cached_and_that_is_said_once(data, cache, capsys):
    learn = learner(data)
    for dl in learn.dls: dl.after_batch.add(Brighter(None))
    learn.freeze_to(-2); quiet(learn, lambda: (learn.get_preds(), learn.fit(1, 1e-4)))
    said = capsys.readouterr().err
    assert computed(learn) == 0 and not list_stores()
    assert said.count('does not say what it does') == 1 and 'Brighter' in said


def test_the_trained_part_and_the_seed_do_not_count(data, cache):
    a = learner(data, seed=0); a.freeze_to(-2); quiet(a, lambda: a.get_preds())
    b = learner(data, seed=9); b.freeze_to(-2)
    with torch.no_grad(): b.model.body.groups[-1][0].add_(1.); b.model.head[1].weight.zero_()
    quiet(b, lambda: b.get_preds())
    assert computed(a) == 12 and computed(b) == 0


# Augmented views

def test_views_are_stored_once_and_are_the_same_in_every_run(data, cache):
    def run(views, epochs=4, seed=0, **kwargs):
        learn = learner(data, augment=True, views=views, seed=seed, **kwargs); learn.freeze_to(-2)
        quiet(learn, lambda: learn.fit_one_cycle(epochs, 1e-4))
        return learn, [float(x) for x in learn.recorder.losses]
    (a, la), (b, lb), (c, _) = run(2), run(2), run(2, seed=5)
    assert computed(a) == 2*36 + 12 and computed(b) == computed(c) == 0 and la == lb
    d, _ = run(4); assert computed(d) == 2*36                              # two more views of each
    e, _ = run(8, epochs=1); assert computed(e) == 0                       # never more views than epochs and one
    f, _ = run(1); assert computed(f) == 0
    size = len(list_stores())
    clear_stores()
    g, lg = run(2); assert lg == la and size == 2                          # computed again: the same bits


def test_views_are_augmented_and_the_first_is_not(data, cache):
    learn = learner(data, augment=True)
    items = learn.frozen_prefix.items_of(learn.dls.train)
    names = items.names()
    plain = items.inputs([0, 1, 2])[0]
    one = items.inputs([0, 1, 2], 1, names)[0]
    assert torch.equal(one[1:2], items.inputs([1], 1, names)[0])           # whatever else is in the batch
    assert not torch.equal(plain, one) and not torch.equal(one, items.inputs([0, 1, 2], 2, names)[0])
    state = torch.get_rng_state(); items.inputs([0], 1, names); assert torch.equal(state, torch.get_rng_state())
    learn.dls.valid.shuffle = False
    test = next(iter(learn.dls.valid))[0].as_subclass(torch.Tensor)
    assert torch.equal(test[:4], learn.frozen_prefix.items_of(learn.dls.valid).inputs(range(4))[0])


def test_training_items_outside_a_fit_are_augmented_as_fastai_does(data, cache):
    learn = learner(data, augment=True); learn.freeze_to(-2)
    seed_everything(3); a = quiet(learn, lambda: learn.get_preds(ds_idx=0, act=lambda x: x)[0])
    learn.remove_cb(learn.frozen_prefix); learn.model.split_point = None
    seed_everything(3); b = quiet(learn, lambda: learn.get_preds(ds_idx=0, act=lambda x: x)[0])
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4*float(b.abs().max()))


def test_augmentation_counts_for_views_and_not_for_the_plain_one(pictures, cache):
    data = read_images(pictures, progress=False)
    def run(tfms):
        learn = learner(data, augment=True, views=2)
        if tfms:
            learn.dls.train.after_batch = learn.dls.train.after_batch.__class__([*learn.dls.valid.after_batch.fs[:1],
                    *tfms, learn.dls.valid.after_batch.fs[-1]])
        learn.freeze_to(-2); quiet(learn, lambda: learn.fit(2, 1e-4))
        return computed(learn)
    assert run(None) == 2*36 + 12
    assert run(aug_transforms(size=64, max_rotate=30.)) == 36 and run(aug_transforms(size=64, max_rotate=30.)) == 0
    assert run(aug_transforms(size=64, max_rotate=31.)) == 36


# Progressive thaw

def test_schedule_keeps_what_helps_and_undoes_what_does_not(data, cache):
    learn = learner(data, size=96)
    ran = quiet(learn, lambda: learn.thaw_progressively([Stage(2, 3, 1e-3), Stage(None, 1, 10.)]))
    assert [s.name for s in ran] == ['probe', 'last 2 groups', 'all layers'] and not ran[2].kept
    best = min(s.valid_loss for s in ran if s.kept)
    assert quiet(learn, learn.validate)[0] == pytest.approx(best, rel=1e-4)
    assert ran[0].parameters < ran[1].parameters < ran[2].parameters == sum(p.numel() for p in learn.model.parameters())
    assert ran[1].lowest_lr == pytest.approx(1e-5)
    again = learner(data, size=96)
    quiet(again, lambda: again.thaw_progressively([Stage(2, 3, 1e-3)]))
    # as if the last stage had not been
    assert hash_state(again.model.state_dict()) == hash_state(learn.model.state_dict())


def test_frozen_parts_are_in_eval_mode_dropout_too():
    class Body(nn.Module):
        cache_key = 'body of a test'
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Linear(6, 16), nn.Dropout(.5))
            self.b = nn.Sequential(nn.Linear(16, 8), nn.Dropout(.5))
            self.groups = [list(self.a.parameters()), list(self.b.parameters())]
        def forward(self, x): return self.b(self.a(x))
    ds = TensorDataset(torch.randn(20, 6), torch.arange(20) % 2)
    learn = TransferLearner(DataLoaders(DataLoader(ds, bs=5), DataLoader(ds, bs=5), device='cpu'),
                            TransferNet(Body(), 8, 2), cache=False)
    modes = []
    class Watch(FlipMaps):
        order = 20
        def before_batch(self): modes.append((self.model.body.a[1].training, self.model.body.b[1].training))
    learn.freeze_to(-2)
    quiet(learn, lambda: learn.fit(1, 1e-3, cbs=Watch()))
    assert set(modes) == {(False, True)}


# Disks and processes

def child(code, cache, **env):
    "Python of its own, with the cache of the test"
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True,
                            env={**os.environ, 'TL_NOTEBOOKS_CACHE': str(cache.parent), 'PYTHONPATH': str(ROOT), **env})

SLOW = '''
    import os, sys, time, torch
    from tl_notebooks.frozen.store import ActivationStore; from tl_notebooks.frozen.loader import fill
    if go := os.environ.get('GO'):
        print('ready', flush=True)
        while not os.path.exists(go): time.sleep(.005)
    done = 0
    def compute(at):
        global done
        done += len(at); time.sleep(float(os.environ.get('EACH', .05))); print(done, flush=True)
        return [torch.tensor(at).float()[:,None].expand(-1, 50000)]
    store = ActivationStore({'slow': 1}, (50000,))
    ok = fill([store], [f'n{i}' for i in range(400)], compute, batch=10)
    assert store.written == done, store.written
    print('all', ok, done, float(store.rows(['n399'])[0,0]))
'''


def test_kill_in_the_middle_loses_at_most_a_block(cache):
    p = child(SLOW, cache)
    for line in p.stdout:
        if int(line) >= 250: break
    os.kill(p.pid, signal.SIGKILL); p.wait()
    # it may have gone on before the signal came
    done = int([line, *p.stdout.read().split()][-1])
    store = ActivationStore({'slow': 1}, (50000,)); missing = len(store.missing([f'n{i}' for i in range(400)]))
    block = 2**24//200000//10*10
    assert 400 - done <= missing <= 400 - done + block                      # what was computed, less than a block
    (store.folder/'.left-over').write_bytes(b'x'*1000); (store.folder/'orphan.npy').write_bytes(b'x')
    out = child(SLOW, cache).communicate(timeout=120)[0].splitlines()[-1].split()
    assert out == ['all', 'True', str(missing), '399.0']
    assert not (store.folder/'.left-over').exists() and not (store.folder/'orphan.npy').exists()


def test_processes_at_once_share_the_work(cache, tmp_path):
    started = [child(SLOW, cache, GO=str(tmp_path/'go')) for _ in range(3)]
    for p in started: assert p.stdout.readline() == 'ready\n'
    (tmp_path/'go').touch()
    lasts = [p.communicate(timeout=180)[0].splitlines()[-1].split() for p in started]
    assert all(l[:2] == ['all', 'True'] and l[3] == '399.0' for l in lasts)
    assert sum(int(l[2]) for l in lasts) == 400 and min(int(l[2]) for l in lasts) >= 80, lasts # 80: a block


def test_what_a_killed_process_was_at_is_done_by_the_others(cache, tmp_path):
    one, two = (child(SLOW, cache, GO=str(tmp_path/'go'), EACH=each) for each in ('.4', '.05'))
    for p in (one, two): assert p.stdout.readline() == 'ready\n'
    (tmp_path/'go').touch()
    while int(one.stdout.readline()) < 30: pass # within its first block
    one.kill(); one.wait()
    out, err = two.communicate(timeout=120)
    assert out.splitlines()[-1].split() == ['all', 'True', '400', '399.0'], err
    assert not [p for p in cache.rglob('.claim*') if p.is_file()]


def test_a_flipped_byte_is_found_and_recomputed(data, cache):
    a = learner(data); a.probe(); before = quiet(a, lambda: a.get_preds(act=lambda x: x)[0])
    file = max(cache.rglob('*.npy'), key=lambda p: p.stat().st_size)
    raw = bytearray(file.read_bytes()); raw[len(raw)//2] ^= 4; file.write_bytes(bytes(raw))
    b = learner(data); b.probe()
    assert computed(b) == 1
    assert torch.equal(before, quiet(b, lambda: b.get_preds(act=lambda x: x)[0]))
    for broken in ('{', '[]', '{"ids": 3}', ''):
        for j in cache.rglob('*-*.json'): j.write_text(broken)
        c = learner(data); c.probe()
        assert computed(c) == 48 and c.probe_result.valid_loss == a.probe_result.valid_loss


def test_the_limit_holds_and_the_oldest_goes(cache, monkeypatch):
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE_LIMIT', '2MB')
    def one(k):
        s = ActivationStore({'k': k}, (100_000,), note=str(k))
        make_room(2*s.row_bytes, [s.key]); fill([s], ['a', 'b'], lambda at: [torch.zeros(len(at), 100_000)])
        os.utime(s.folder/'lock', (1000 + k, 1000 + k))
    for k in range(5):
        one(k)
        assert sum(f.stat().st_size for f in cache.rglob('*') if f.is_file()) <= 2_000_000
    assert {s.note for s in list_stores()} == {'3', '4'}


def test_where_the_limit_would_be_passed_it_takes_half_the_precision_then_a_later_cut(data, cache, monkeypatch, capsys):
    def run(limit):
        monkeypatch.setenv('TL_NOTEBOOKS_CACHE_LIMIT', str(int(limit))); clear_stores()
        learn = learner(data, size=96)
        quiet(learn, lambda: learn.thaw_progressively([Stage(5, 1, 1e-4)]))
        return learn, capsys.readouterr().err
    plain, said = run(1e9)
    size = {r['cut'][0]: r['bytes'] for r in plain.frozen_prefix.report if r['items'] == 36 and r['computed'] == 72}
    (place, both), pooled = next(iter(size.items())), 36*2560*4
    all_rows = both*48/36
    assert plain.stages[1].thaw == 5 and 'rows to compute' in said and 'limit 1.0 GB' in said and both > 2*pooled
    half, said = run(all_rows*.6)
    assert half.stages[1].thaw == 5 and half.frozen_prefix.report[0]['dtype'][0] == 'bfloat16' and 'as bf16' in said
    # four fifths of the cut in half the precision
    limit = (both - pooled)/2*48/36*.8
    later, said = run(limit)
    assert later.stages[1].thaw < 5 and 'thawing' in said
    assert sum(f.stat().st_size for f in cache.rglob('*') if f.is_file()) <= limit
    none, said = run(1000)
    assert 'computing them each time' in said and quiet(none, none.validate)[1] > .25 and not list_stores()


FULL = '''
    import resource, sys
    from tl_notebooks.data.images import read_images
    from tl_notebooks.learn.vision import image_learner
    data = read_images(sys.argv[1] if len(sys.argv) > 1 else {pictures!r}, progress=False)
    learn = image_learner(data, size=64, bs=16, precision='fp32', seed=0, augment=False)
    {limit}
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1, 1e-4, thaw=2)
        print(learn.validate()[0], learn.kept)
'''


def test_a_full_disk_is_said_and_the_work_goes_on(pictures, cache, tmp_path):
    """A real refusal of the kernel: first a limit on the size of files, then, where this user may mount one, a small
    disk that is full"""
    p = child(FULL.format(pictures=str(pictures), limit=''), cache)
    good, err = p.communicate(timeout=200)
    assert p.returncode == 0, err
    p = child(FULL.format(pictures=str(pictures), limit='resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))'),
              tmp_path/'other'/'activations')
    out, err = p.communicate(timeout=200)
    assert p.returncode == 0 and err.count(
            'cannot be kept') == 1 and os.strerror(errno.EFBIG) in err and 'Traceback' not in err, err
    assert float(out.split()[0]) == pytest.approx(float(good.split()[0]), rel=1e-3)
    small = tmp_path/'small'; small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', small], capture_output=True).returncode:
        return
    try:
        # as if it filled up while at work
        limit = ("import shutil; from collections import namedtuple; u = namedtuple('u', 'total used free'); "
                 "shutil.disk_usage = lambda p: u(10**12, 0, 10**12)")
        p = child(FULL.format(pictures=str(pictures), limit=limit), small/'activations')
        out, err = p.communicate(timeout=200)
        assert p.returncode == 0 and os.strerror(
                errno.ENOSPC) in err and 'TL_NOTEBOOKS_CACHE names another place' in err, err
        assert float(out.split()[0]) == pytest.approx(float(good.split()[0]), rel=1e-3)
    finally: subprocess.run(['umount', small], check=True)


def test_a_cache_that_cannot_be_made_is_no_reason_to_stop(pictures, tmp_path):
    (tmp_path/'file').write_text('in the way')
    p = child(FULL.format(pictures=str(pictures), limit=''), tmp_path/'file'/'activations')
    out, err = p.communicate(timeout=200)
    assert p.returncode == 0 and 'cannot be kept' in err and 'Traceback' not in err, err


# Runs

def test_a_run_says_what_it_computed_and_a_second_one_computes_nothing(pictures, tmp_path):
    env = {'TL_NOTEBOOKS_CACHE': str(tmp_path/'cache')}
    args = ['run', 'parts', '--data', pictures, '--out', tmp_path, *QUICK, '-p', 'control=false']
    first, again = (tl(*args, cwd=tmp_path, env=env) for _ in range(2))
    assert first.returncode == again.returncode == 0, first.stderr[-2000:]
    a, b = (record(d.stdout.strip().splitlines()[-1]) for d in (first, again))
    assert sum(r['computed'] for r in a['frozen']) > 100 and sum(r['computed'] for r in b['frozen']) == 0
    assert a['metrics'] == b['metrics'] and a['model']['artifact_sha256'] == b['model']['artifact_sha256']
    assert [s['name'] for s in a['stages']] == ['probe', 'last 2 groups']
    page = Path(first.stdout.strip().splitlines()[-1], 'report.html').read_text()
    assert 'last 2 groups' in page and 'rows computed' in page
    listed = tl('cache', cwd=tmp_path, env=env)
    assert 'efficientnet_lite0, pooled features' in listed.stdout and ' of 10 GB in ' in listed.stdout.splitlines()[-1]
    # a fine-tuned body's features are a third
    assert tl('cache', 'clear', cwd=tmp_path, env=env).stdout.startswith(('removed 2 stores', 'removed 3 stores'))
    assert json.loads(tl('cache', '--format', 'json', cwd=tmp_path, env=env).stdout) == []


def test_lego6_is_quick_the_second_time(tmp_path):
    "Real photographs, real weights: what is read from the disk is what was computed"
    data = read_images(need('lego6'), progress=False, max_items=300)
    a, b = (image_learner(data, seed=0, precision='fp32') for _ in range(2))
    start = time.perf_counter(); pa = a.probe(); cold = time.perf_counter() - start
    start = time.perf_counter(); pb = b.probe(); warm = time.perf_counter() - start
    # reading is less work than computing, on any machine
    assert computed(b) == 0 and warm < cold
    assert (pa.alpha, pa.valid_loss) == (pb.alpha, pb.valid_loss) and pa.valid_accuracy > .8
