"What is saved of a learner is of the network as it is, however it was trained; features come from the model itself."
import json

import numpy as np
import pytest
import torch

from tl_notebooks.all import expand, image_learner, load_model, read_images
from tl_notebooks.core import InputError


@pytest.fixture(scope='module')
def images(pictures): return read_images(pictures, seed=0)


def learner(images):
    return image_learner(images, 'efficientnet_lite0', size=64, precision='fp32', augment=False, seed=0)


def means(model, images):
    "Class means of what the saved model says of the items it learned from"
    files = images.files('train') + images.files('valid')
    y = np.concatenate([images.labels('train'), images.labels('valid')])
    x = model.features(files).double().numpy()
    return np.stack([x[y == c].mean(0) for c in range(len(images.classes))])


@pytest.mark.parametrize('way', ['fine_tune', 'fit', 'without a probe'])
def test_statistics_are_of_the_network_that_is_saved(images, way, tmp_path):
    learn = learner(images)
    with learn.no_bar(), learn.no_logging():
        if way != 'without a probe': learn.probe()
        if way == 'fit': learn.unfreeze(); learn.fit_one_cycle(1, slice(1e-4, 1e-3))
        else: learn.fine_tune(1, 1e-3, thaw=3, keep_best=False, probe=way == 'fine_tune') if way == 'fine_tune' else (
            learn.fine_tune(1, 1e-3, probe=False))
        learn.save_model(tmp_path/'m')
    model = load_model(tmp_path/'m')
    s = model.statistics()
    np.testing.assert_allclose(s.sums/s.counts[:, None], means(model, images), atol=2e-3)
    assert model.manifest['head'] == {'kind': 'trained'} and model.manifest['metrics'] == {}


def test_calibrating_after_plain_training_keeps_the_trained_head(images):
    learn = learner(images)
    with learn.no_bar(), learn.no_logging():
        learn.probe(); learn.freeze(); learn.fit_one_cycle(1, 1e-3)
        before = learn.get_preds(dl=learn.split_dl('test'), act=lambda x: x)[0]
        head = learn.calibrate()
        after = learn.get_preds(dl=learn.split_dl('test'), act=lambda x: x)[0]
    assert head['kind'] == 'trained'
    ratio = before/after
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)  # one temperature, nothing else


def test_figures_of_an_earlier_network_are_not_saved_with_a_later_one(images, tmp_path):
    learn = learner(images)
    with learn.no_bar(), learn.no_logging():
        learn.probe(); learn.calibrate(); found = learn.evaluate(); learn.save_model(tmp_path/'probe')
        with pytest.raises(InputError, match='learned|solved from the validation'): learn.evaluate('valid')
        with pytest.raises(InputError, match="`positive` is 'nope'"): learn.evaluate(positive='nope')
        learn.unfreeze(); learn.fit_one_cycle(1, 1e-3); learn.save_model(tmp_path/'trained')
    first, second = (json.loads((tmp_path/n/'manifest.json').read_text()) for n in ('probe', 'trained'))
    assert first['metrics']['accuracy']['value'] == found.metrics['accuracy'].value
    assert first['head']['kind'] == 'solved'
    assert second['metrics'] == {} and second['head'] == {'kind': 'trained'}
    with pytest.raises(InputError, match='is no folder'): learn.save_model(tmp_path/'no'/'such'/'m')


def test_requests_that_contradict_themselves_are_refused(images, tmp_path):
    learn = learner(images)
    with learn.no_bar(): learn.probe(); learn.calibrate(); learn.save_model(tmp_path/'m')
    a, b, *_ = images.classes
    for more in (dict(remove=[a]), dict(join={a: b})):
        with pytest.raises(InputError, match=f"`rename`: {a!r} is removed or joined"):
            expand(tmp_path/'m', out=tmp_path/'x', rename={a: 'other'}, **more)
    assert not (tmp_path/'x').exists()


def test_merging_counts_nothing_twice_and_undoes_no_change(images, pictures, tmp_path):
    from tl_notebooks.expand.classes import expand_model, merge_models
    learn = learner(images.only(images.classes[:2]))
    with learn.no_bar(): learn.probe(); learn.calibrate(); learn.save_model(tmp_path/'m')
    new = lambda k: read_images(pictures, valid_pct=0., test_pct=0., addition=True).only([images.classes[k]])
    for name,k in (('a', 2), ('b', 3), ('again', 2)): expand_model(tmp_path/'m', new(k), tmp_path/name)
    expand_model(tmp_path/'m', out=tmp_path/'renamed', rename={images.classes[0]: 'other'})
    both = merge_models(tmp_path/'a', tmp_path/'b', tmp_path/'both', tmp_path/'m')
    assert load_model(both).classes == [*images.classes]
    with pytest.raises(InputError, match='learned from the same items'):
        merge_models(tmp_path/'a', tmp_path/'again', tmp_path/'x', tmp_path/'m')
    with pytest.raises(InputError, match='no longer has class'):
        merge_models(tmp_path/'renamed', tmp_path/'b', tmp_path/'x', tmp_path/'m')
    assert not (tmp_path/"x").exists()
