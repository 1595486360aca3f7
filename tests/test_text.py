"""Text learners: the network's own layers, kept activations that change nothing, names that help and cannot harm,
models that come back."""
import csv
import html
import io
import json
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import need, page, record, refusals, tl

import tl_notebooks  # noqa: F401  before fastai and transformers: it guards torchvision
from fastai.optimizer import SGD
from ridge_oracle import divided, divisors
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score, roc_curve

from tl_notebooks.judge import evidence
from tl_notebooks.frozen.store import ActivationStore, hash_prefix
from tl_notebooks.models.folder import Model, save_model
from tl_notebooks.core import InputError, seed_everything
from tl_notebooks.learn.stages import Stage
from tl_notebooks.heads.ridge import ridge_loo
from tl_notebooks.learn.backbones import load_text_model
from tl_notebooks.data.samples import sample_path
from tl_notebooks.learn.text import (PadTokens, TextBody, choose_layers, contrastive_loss, learning_curves, more_labels,
                                     padded_length, pick_layers, test_dl as dl_of_split, text_learner, text_net,
                                     tfidf_baseline, word_effects)
from tl_notebooks.data.texts import draw_labels, read_texts

SMALL = dict(vocab_size=30522, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
KINDS = {
    'bert': SMALL, 'roberta': SMALL | dict(pad_token_id=1), 'mpnet': SMALL, 'electra': SMALL | dict(embedding_size=32),
    'distilbert': dict(vocab_size=30522, dim=32, n_layers=4, n_heads=4, hidden_dim=48),
    'modernbert': SMALL | dict(pad_token_id=0, bos_token_id=101, cls_token_id=101, eos_token_id=102, sep_token_id=102,
                               global_attn_every_n_layers=2, local_attention=8),
    'xlnet': dict(vocab_size=30522, d_model=32, n_layer=4, n_head=4, d_inner=48),
    'gpt2': dict(vocab_size=30522, n_embd=32, n_layer=4, n_head=4, bos_token_id=101, eos_token_id=102),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    return tmp_path/'cache'/'activations'


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    "Small untrained transformers of many kinds, each a checkpoint folder with a tokenizer"
    transformers = pytest.importorskip('transformers')
    tok, root = load_text_model('minilm_l6')[1], tmp_path_factory.mktemp('checkpoints')
    def make(kind):
        if not (root/kind).exists():
            seed_everything(0)
            transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind,
                    **KINDS[kind])).save_pretrained(root/kind)
            tok.save_pretrained(root/kind)
        return str(root/kind)
    return make


@pytest.fixture(scope='module')
def data(): return read_texts(sample_path('mails'), max_items=90)


@pytest.fixture(scope='module')
def probed(data, tmp_path_factory):
    "MiniLM, probed on a few mails, with a cache of its own"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path_factory.mktemp('cache')))
        learn = text_learner(data, 'minilm_l6', seed=0, precision='fp32', model_dir=tempfile.gettempdir())
        learn.probe(); learn.refit()
        yield learn


def quiet(learn, what):
    with learn.no_bar(), learn.no_logging(): return what()


def computed(learn): return sum(r['computed'] for r in learn.frozen_prefix.report)


# The body

@pytest.mark.parametrize('kind', KINDS)
def test_features_are_means_of_the_models_own_hidden_states(checkpoints, kind):
    "Oracle: transformers' `output_hidden_states` for each text alone, without padding"
    net, tok, info = text_net(checkpoints(kind), 2, layers=(0, 2, 4))
    ids = [tok(t)['input_ids'] for t in ('a short one', 'a much longer text than the first, which has to be padded')]
    batch = torch.stack([t for t, in PadTokens()([(torch.tensor(i),) for i in ids])])
    assert batch.shape[1] == padded_length(max(map(len, ids))) and (batch[0] == -1).any()
    with torch.no_grad():
        got = net.eval().body(batch)
        for row, i in zip(got, ids):
            states = net.body.model(input_ids=torch.tensor([i]), output_hidden_states=True)
            own = [states.hidden_states[0], states.hidden_states[2], states[0]]
            own = [h.transpose(0, 1) if kind == 'xlnet' and h.shape[0] != 1 else h for h in own]
            torch.testing.assert_close(row, torch.cat([h[0].mean(0) for h in own]), rtol=1e-4, atol=1e-5)
    groups = net.param_groups()
    assert len(groups) == 6 and {id(p) for g in groups for p in g} == {id(p) for p in net.parameters()}
    assert sum(len(g) for g in groups) == len([*net.parameters()])


def test_layers_behind_the_last_one_wanted_do_not_run(checkpoints):
    net, *_ = text_net(checkpoints('bert'), 2, layers=(1, 2))
    ran = []
    for k, b in enumerate(net.body.model.encoder.layer): b.register_forward_hook(lambda *a, k=k: ran.append(k))
    with torch.no_grad(): net.eval()(torch.randint(5, 50, (2, 8)))
    assert ran == [0, 1]


def test_a_layer_that_is_not_there_is_refused(checkpoints):
    with pytest.raises(InputError, match='layer 5: .* has layers 0 to 4'): text_net(checkpoints('bert'), 2, layers=(5,))


# The cache

@pytest.mark.parametrize('kind', KINDS)
def test_training_from_kept_tokens_is_the_uncached_training(checkpoints, data, cache, kind):
    """Ragged rows: the same losses and predictions as a Learner without any of this, and a second learner computes
    nothing"""
    def run(bare=False, **kwargs):
        learn = text_learner(data, checkpoints(kind), max_tokens=64, bs=16, precision='fp32', seed=0, opt_func=SGD,
                             model_dir=tempfile.gettempdir(), **kwargs)
        if bare: learn.remove_cb(learn.frozen_prefix); learn.frozen_prefix = SimpleNamespace(report=[])
        for m in learn.model.modules():
            if isinstance(m, torch.nn.Dropout): m.p = 0. # masks of another shape are other masks
            if hasattr(m, 'dropout_p'): m.dropout_p = 0.
        learn.freeze_to(-3)
        quiet(learn, lambda: learn.fit_one_cycle(2, 1e-2))
        losses = [float(x) for x in learn.recorder.losses]
        return learn, [losses, [*quiet(learn, learn.validate)], quiet(learn,
                lambda: learn.get_preds(dl=dl_of_split(learn, data)))[0].tolist()]
    (_, own), (kept, cached), (again, twice), (_, live) = run(bare=True), run(), run(), run(cache=False)
    assert computed(kept) == len(data.items) and computed(again) == 0 and cached == twice
    assert kept.frozen_prefix.report[
            0]['cut'][0].endswith('.2') and next(iter(kept.frozen_prefix.stores.values())).ragged
    for other in (cached, live):
        for x, y in zip(own, other): torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=1e-3, atol=1e-4)


def test_a_texts_activations_do_not_depend_on_its_company(data, cache, tmp_path, monkeypatch):
    "To the bit: computed among others, or nearly alone in another run"
    def rows(data, root):
        monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/root))
        learn = text_learner(data, 'minilm_l6', seed=0, precision='fp32', model_dir=tempfile.gettempdir())
        learn.freeze_to(-3)
        quiet(learn, lambda: learn.validate())
        return next(iter(learn.frozen_prefix.stores.values()))
    few = draw_labels(data, 5, keep_valid=True); few.items = few.items[few.items.split != 'test']
    valid = few.items[few.items.split == 'valid']
    few.items = few.items.drop(valid.index[3:]).reset_index(drop=True)
    a, b = rows(data, 'a'), rows(few, 'b')
    assert len(b) == 3 < len(a)
    for i in b.where: assert torch.equal(a.rows([i])[0], b.rows([i])[0])


def test_a_flipped_byte_of_a_text_is_found(cache):
    store = ActivationStore({'t': 1}, (1, 4), ragged=True)
    texts = {n: torch.randn(k, 4) for n, k in zip('abc', (3, 1, 7))}
    store.write([*texts], [*texts.values()])
    again = ActivationStore({'t': 1}, (1, 4), ragged=True)
    assert again.missing('abcd') == ['d'] and all(torch.equal(r, texts[n]) for n, r in zip('cab', again.rows('cab')))
    file = next(again.folder.glob('*.npy')); raw = bytearray(file.read_bytes()); raw[128 + 3*16 + 5] ^= 1
    file.write_bytes(raw)
    assert ActivationStore({'t': 1}, (1, 4), ragged=True).missing('abc') == ['b']
    file.write_bytes(raw[:-4]); assert ActivationStore({'t': 1}, (1, 4), ragged=True).missing('abc') == [*'abc']


def test_layers_count_for_pooled_features_and_not_for_tokens(checkpoints, data, cache):
    learn = text_learner(data, checkpoints('bert'), max_tokens=64, layers=(4,)); learn.freeze_to(-3)
    items = learn.frozen_prefix.items_of(learn.dls.valid)
    tokens, pooled = learn.frozen_prefix.split_at(3, items)[0], learn.frozen_prefix.split_at(5, items)[0]
    was = [hash_prefix(learn.model.body, c) for c in (tokens, pooled)]
    learn.use_layers((3,))
    now = [hash_prefix(learn.model.body, c) for c in (tokens, pooled)]
    assert now[0] == was[0] and now[1] != was[1]


def test_lr_find_callbacks_and_fastais_pictures(data, cache, capsys):
    learn = text_learner(data, 'minilm_l6', seed=0, bs=16, precision='fp32', model_dir=tempfile.gettempdir())
    learn.freeze_to(-3)
    quiet(learn, lambda: learn.lr_find(num_it=6, show_plot=False))
    with learn.no_bar():
        learn.dls.show_batch(max_n=2); learn.show_results(max_n=2)
        label, _, probs = learn.predict('Please find the minutes attached.')
    assert label in data.classes and probs.sum() == pytest.approx(1, abs=1e-4)
    from fastai.callback.training import GradientAccumulation
    quiet(learn, lambda: learn.fit(1, 1e-3, cbs=GradientAccumulation(32)))


# Probe, names, layers

def test_a_prior_is_ridge_on_features_with_more_columns():
    "Oracle: scikit-learn on the divided features with the names' columns written out"
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 9); x = rng.normal(size=(27, 12)) + np.eye(3)[y] @ rng.normal(size=(3, 12))
    prior = rng.normal(size=(3, 12))
    found = ridge_loo(x, y, 3, alphas=[3.], prior=prior)
    from tl_notebooks.heads.ridge import TRUST
    z = divided(x); q = z @ ((prior - prior.mean(0))/divisors(x)).T
    q = q*TRUST*np.sqrt((z**2).sum(1).mean()/(q**2).sum(1).mean())
    oracle = Ridge(alpha=3.).fit(np.hstack([z, q]), 2*np.eye(3)[y] - 1)
    np.testing.assert_allclose(x @ found.weight.T + found.bias, oracle.predict(np.hstack([z, q])), rtol=1e-4, atol=1e-4)
    left = [Ridge(alpha=3.).fit(np.delete(np.hstack([z, q]), i, 0), np.delete(2*np.eye(3)[y] - 1, i,
            0)).predict(np.hstack([z, q])[i:i+1])[0] for i in range(4)]
    np.testing.assert_allclose(found.loo_scores[:4], left, rtol=1e-6)


def test_layer_choice_finds_what_knows_and_prefers_the_default_otherwise():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3; x = torch.randn(60, 6, 8, generator=g)
    assert choose_layers(x, y, 3).layers == (3, 4, 5, 6)
    x[:,1,:3] += 4*torch.eye(3)[y]
    assert 2 in choose_layers(x, y, 3).layers


@pytest.mark.parametrize('name,column', [('reviews_uci', None), ('reviews_sst2', None)])
def test_names_help_where_labels_are_few(name, column, cache):
    "On real reviews with eight labels of each class: several points, and wrong names are thrown out or outvoted"
    root = need(name)
    data = read_texts(root, names={'0': 'negative', '1': 'positive'}, valid_pct=0., on_bad='skip', max_items=900,
                      seed=1)
    learn = text_learner(draw_labels(data, 8, 0), 'minilm_l6', seed=0, precision='fp32')
    learn.probe()
    whole = text_learner(data, 'minilm_l6', seed=0, precision='fp32'); whole.layer_means = whole.read_layers()
    test = whole.layer_means_of(dl_of_split(whole, data))
    score = {way: np.mean(curve[8]) for way,curve in learning_curves(whole, test, [8], 6).items()}
    assert score['with the names'] > score['labels alone'] + .02 and score['labels alone'] > .55


def test_names_without_meaning_are_not_used(data, cache):
    learn = text_learner(data, 'minilm_l6', seed=0, precision='fp32')
    learn.dls.train.dataset.tls[1].tfms.fs[-1].vocab.items[:] = ['0', '1']
    learn.probe()
    assert learn.prior is None


def test_few_labels_need_no_validation_texts(cache):
    data = draw_labels(read_texts(sample_path('mails'), valid_pct=0.), 4)
    learn = text_learner(data, 'minilm_l6', seed=0, precision='fp32', model_dir=tempfile.gettempdir())
    probe = learn.probe()
    assert probe.n == 8 and 0 <= probe.valid_accuracy <= 1
    with pytest.raises(InputError, match='judged on validation texts, and there are none'):
        quiet(learn, lambda: learn.fine_tune(1))


def test_fine_tuning_goes_on_from_the_probe_or_returns_to_it(data, cache):
    learn = text_learner(data, 'minilm_l6', seed=0, bs=16, precision='fp32', model_dir=tempfile.gettempdir())
    learn.probe(3)
    first = computed(learn); layers = learn.model.body.layers
    before = quiet(learn, lambda: learn.get_preds(ds_idx=1)[0])
    quiet(learn, lambda: learn.thaw_progressively([Stage(3, 1, 10.)]))                  # a rate that destroys
    assert learn.kept == 'probe' and learn.model.body.layers == layers and not learn.stages[1].kept
    torch.testing.assert_close(quiet(learn, lambda: learn.get_preds(ds_idx=1)[0]), before, rtol=1e-4, atol=1e-5)
    learn.refit()
    quiet(learn, lambda: learn.thaw_progressively([Stage(3, 2, 1e-3)], keep_best=False, lr_mult=2))
    assert learn.kept == 'fine-tuned' and min(
            learn.model.body.layers) >= 5 and computed(learn) - first <= 2*len(data.items)


def test_the_contrastive_loss_is_the_published_formula():
    "Khosla et al. 2020, equation 2, summed in plain loops"
    z, y = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 1, 2, 0, 1, 3])
    u, out = (z/z.norm(dim=1, keepdim=True)).double(), []
    for i in range(9):
        others = [j for j in range(9) if j != i]; own = [j for j in others if y[j] == y[i]]
        total = sum(torch.exp(u[i] @ u[j]/.1) for j in others)
        if own: out.append(-sum(torch.log(torch.exp(u[i] @ u[j]/.1)/total) for j in own)/len(own))
    assert contrastive_loss(z, y).item() == pytest.approx(float(sum(out)/len(out)), abs=1e-5)


def test_contrast_on_labels_that_say_nothing_is_undone_to_the_bit(cache):
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 12, 0)
    learn = text_learner(few, 'minilm_l6', seed=0)
    with learn.no_bar():
        learn.probe()
        state, layers, before = {k: v.clone() for k,
                                 v in learn.model.state_dict().items()}, learn.model.body.layers, learn.get_preds(
                dl=dl_of_split(learn, few))[0]
        noise = learn.probe_features[1].clone()
        # half of each class: knows nothing of the other half
        for c in (0, 1): noise[torch.nonzero(learn.probe_features[1] == c)[::2,0]] = 1 - c
        learn.probe_features = (learn.probe_features[0], noise, *learn.probe_features[2:])
        found = learn.contrast(steps=6, force=True)
        assert not found.kept and found.folds == 3 and found.texts == 24
        assert learn.model.body.layers == layers and all(torch.equal(v, learn.model.state_dict()[k]) for k,
                                                         v in state.items())
        assert torch.equal(learn.get_preds(dl=dl_of_split(learn, few))[0], before)


@pytest.mark.parametrize('at', ['fold 2', 'all labels', 'solving'])
def test_contrast_that_is_interrupted_leaves_the_probe(cache, monkeypatch, at):
    from tl_notebooks.learn import text
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 6, 0)
    learn = text_learner(few, 'minilm_l6', seed=0)
    with learn.no_bar(): learn.probe()
    state, info, prior = {k: v.clone() for k,v in learn.model.state_dict().items()}, dict(learn.info), learn.prior
    compare, train = text._compare, text._Tail.train
    def kept(*args): found = compare(*args); found.kept = True; return found
    def stopped(self, *args, **kwargs):
        train(self, *args, **kwargs)
        if at in args[-1]: raise KeyboardInterrupt
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(text, '_compare', kept); monkeypatch.setattr(text._Tail, 'train', stopped)
    if at == 'solving': monkeypatch.setattr(text, 'solve_head', stop)
    with pytest.raises(KeyboardInterrupt): learn.contrast(steps=2, force=True)
    assert learn.model.state_dict().keys() == state.keys() and all(torch.equal(v, state[k]) for k,
            v in learn.model.state_dict().items())
    assert (learn.info, learn.kept) == (info,
                                        'probe') and learn.prior is prior and learn.model.body.layers == tuple(
            info['layers'])


def test_contrast_that_is_kept_is_saved_predicts_and_refits(cache, tmp_path, monkeypatch):
    from tl_notebooks.learn import text
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 12, 0)
    real = text._compare
    def kept(*args): found = real(*args); found.kept = True; return found
    monkeypatch.setattr(text, '_compare', kept)
    runs = []
    for _ in range(2):
        # bf16's last bits depend on the batch on some processors
        learn = text_learner(few, 'minilm_l6', precision='fp32', seed=0)
        with learn.no_bar():
            learn.probe(); before = {k: v.clone() for k,v in learn.model.body.state_dict().items()}
            found = learn.contrast(steps=6, force=True)
            learn.thaw_progressively([]); learn.refit()
            probs, _ = learn.get_preds(dl=dl_of_split(learn, few))
        runs.append(probs)
        changed = {k.split('layer.')[1][0] for k,v in learn.model.body.state_dict().items()
                   if not torch.equal(v, before[k])}
        # frozen blocks are untouched
        assert changed == {'4', '5'} and learn.model.body.layers == (5, 6) and learn.kept == 'contrast'
    assert torch.equal(*runs)                          # twice is the same to the bit
    save_model(tmp_path/'model', learn.model, learn.info, few.classes, tok=learn.tok)
    said = [list(p.probabilities.values()) for p in Model(tmp_path/'model').predict(few.texts('test'))]
    np.testing.assert_allclose(np.array(said), runs[1].numpy(), atol=1e-5)
    confidence = runs[1].max(1).values.mean()
    assert abs(float(confidence) - found.accuracy) < .2 # its own labels do not make it sure of itself


def test_texts_without_a_label_are_for_few_labels_and_a_probe(cache):
    reviews = read_texts(sample_path('reviews'), valid_pct=0.)
    states = []
    for _ in range(2):
        few = draw_labels(reviews, 8, 0)
        learn = text_learner(few, 'minilm_l6', seed=0)
        with learn.no_bar():
            learn.probe(); before = learn.get_preds(dl=dl_of_split(learn, few))[0]
            labelled, y = (t.clone() for t in learn.probe_features[:2])
            found = learn.self_train(few.unlabelled)
            after, truth = learn.get_preds(dl=dl_of_split(learn, few))
        states.append({k: v.clone() for k,v in learn.model.state_dict().items()})
    assert found.kept and found.texts == len(few.unlabelled) and not torch.equal(before, after)
    assert found.gain == pytest.approx(found.probe_loss - found.loss) and 'not worse by a standard error' in found.why
    assert all(torch.equal(v, states[0][k]) for k,v in states[1].items())
    # apart from the labels, and as many of each class as the labels are
    rows, of = learn.guessed
    assert torch.equal(learn.probe_features[0], labelled) and torch.equal(learn.probe_features[1],
            y) and len(rows) == len(of) == 2*round(.4*len(few.unlabelled))
    assert len({*torch.bincount(of).tolist()}) == 1 and (
            after.argmax(1) == truth).float().mean() > (before.argmax(1) == truth).float().mean() - .05
    with pytest.raises(InputError, match="comes before `self_train`"): learn.contrast()
    assert learn.probe_result.n == learn.statistics.n == 16 and learn.labels_used() == dict(kind='self-trained',
            labelled=16, guessed=len(of))
    head = learn.refit()
    assert head.loo_scores.shape == (16, 2) and learn.statistics.n == 16
    # solved from the guessed ones, too, as before
    assert torch.equal(learn.get_preds(dl=dl_of_split(learn, few))[0].argmax(1), after.argmax(1))


def test_labels_that_a_head_gave_itself_are_no_evidence_for_it(cache, monkeypatch):
    """Labels drawn by lot: nothing can be known, and a head that agrees with itself on hundreds of texts must not look
    as if"""
    from tl_notebooks.learn import text
    real = text._compare
    def kept(*args): found = real(*args); found.kept = True; return found
    monkeypatch.setattr(text, '_compare', kept)
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 24, 0)
    learn = text_learner(few, 'minilm_l6', seed=0)
    with learn.no_bar():
        learn.probe()
        x, y, *rest = learn.probe_features
        learn.probe_features = (x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))], *rest)
        found = learn.self_train(few.unlabelled)
        head = learn.refit()
    assert learn.kept == 'self-trained' and abs(found.accuracy - .5) < .25
    assert head.loo_accuracy == pytest.approx(found.accuracy) and abs(learn.probe_result.valid_accuracy - .5) < .25


def test_an_expansion_does_not_inherit_guessed_labels_and_says_so(cache, tmp_path):
    from tl_notebooks.expand.classes import expand_model
    from tl_notebooks.heads.statistics import statistics_state
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 8, 0)
    learn = text_learner(few, 'minilm_l6', seed=0)
    with learn.no_bar(): learn.probe(); assert learn.self_train(few.unlabelled).kept; head = learn.refit()
    info = dict(kind='solved', alpha=head.alpha, scale=head.scale) | learn.labels_used()
    save_model(tmp_path/'parent', learn.model, learn.info, few.classes, tok=learn.tok,
               statistics=statistics_state(learn.statistics), head=info)
    rows = [json.loads(line) for line in sample_path('mails').read_text(encoding='utf-8').splitlines()][:12]
    (tmp_path/'new.jsonl').write_text('\n'.join(json.dumps(dict(text=r['text'], label='mail')) for r in rows))
    old = few.items[few.items.split == 'test'].head(40)
    old[['text', 'label']].to_csv(tmp_path/'old.csv', index=False)
    kinds = {}
    for mode in ('exact', 'keep-scores'):
        done = expand_model(tmp_path/'parent', tmp_path/'new.jsonl', tmp_path/mode, mode, tmp_path/'old.csv')
        child = Model(tmp_path/mode)
        kinds[mode] = any('labelled itself' in n
                          for n in done.certificate['notes']), child.manifest['head'].get('guessed')
        assert 16 < child.statistics().n <= 16 + 12
    assert kinds == {'exact': (True, None),
                     'keep-scores': (False,
                                     info['guessed'])} and Model(
            tmp_path/'parent').manifest['head']['kind'] == 'self-trained'


def test_texts_without_a_label_that_make_it_worse_or_come_too_late_change_nothing(cache, monkeypatch):
    from tl_notebooks.learn import text
    few = draw_labels(read_texts(sample_path('reviews'), valid_pct=0.), 32, 0)
    learn = text_learner(few, 'minilm_l6', seed=0)
    with learn.no_bar(): learn.probe()
    state = {k: v.clone() for k,v in learn.model.state_dict().items()}
    def astray(x, y, *args): # a head that says the opposite
        found = real(x, y, *args); found[0].weight *= -1; found[0].bias *= -1
        return found
    real = text.self_trained
    monkeypatch.setattr(text, 'self_trained', astray)
    with learn.no_bar(): found = learn.self_train(few.unlabelled)
    monkeypatch.setattr(text, 'FEW', 7)
    with learn.no_bar(): late = learn.self_train(few.unlabelled)
    assert not found.kept and found.folds == 3 and not late.kept and late.folds == 0
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items()) and learn.kept == 'probe'


def test_twice_is_the_same_to_the_bit(tmp_path):
    code = ("import tl_notebooks, torch\nfrom tl_notebooks.data.texts import *\nfrom tl_notebooks.learn.text import "
            "*\nfrom tl_notebooks.core import hash_state\n"
            "from tl_notebooks.data.samples import sample_path\nd = read_texts(sample_path('mails'), max_items=80)\n"
            "l = text_learner(d, 'minilm_l6', seed=3, bs=16, precision='fp32')\nl.probe(3)\n"
            "with l.no_bar(), l.no_logging(): "
            "l.fine_tune(1, 1e-3, thaw=3, keep_best=False)\n"
            "print(hash_state(l.model.state_dict()))")
    import os
    out = [subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {'TL_NOTEBOOKS_CACHE': str(tmp_path/c)}) for c in 'aab']
    assert all(o.returncode == 0 for o in out), out[0].stderr[-2000:]
    # a second run, on kept and on new activations
    assert len({o.stdout for o in out}) == 1


# Figures

def test_auc_and_false_positives_are_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        y = rng.integers(0, 2, 60); y[:2] = 0, 1
        score = np.round(rng.normal(size=60) + y, 1)                                    # with ties
        a = evidence.auc(y, score)
        assert a.value == pytest.approx(roc_auc_score(y, score)) and a.low <= a.value <= a.high
        fpr, tpr, _ = roc_curve(y, score, drop_intermediate=False)
        assert evidence.fpr_at_recall(y, score, .9, draws=20).value == pytest.approx(fpr[np.argmax(tpr >= .9 - 1e-9)])
        ours = evidence.roc(y, score); np.testing.assert_allclose(ours, (fpr, tpr))


def test_auc_intervals_hold_what_they_promise():
    rng = np.random.default_rng(1); hits = 0
    # of normals one deviation apart: Φ(1/√2)
    truth = .7602
    for _ in range(300):
        y = np.repeat([0, 1], 40); a = evidence.auc(y, rng.normal(size=80) + y); hits += a.low <= truth <= a.high
    assert .91 < hits/300 < .985


def test_more_labels_continues_a_power_law():
    n, acc = more_labels({k: [1 - .5*k**-.3] for k in (4, 8, 16, 32)})
    assert n == 64 and acc == pytest.approx(1 - .5*64**-.3, abs=1e-6)


def test_word_effects_add_up_where_a_model_counts_words(probed):
    words, effects, of, p = word_effects(probed, 'Your parcel 88231 has been dispatched. Do not reply to this message.')
    assert len(words) == len(effects) == 12 and p > .5 and of == probed.dls.vocab.o2i['bot']
    again = word_effects(probed, ' '.join(words), of=1 - of)
    # two classes: what speaks for one speaks against the other
    np.testing.assert_allclose(again[1], [-e for e in effects], rtol=1e-3, atol=1e-4)


def test_the_baseline_reads_no_test_labels():
    rng = np.random.default_rng(0)
    words = ['alpha', 'beta', 'gamma', 'delta']
    y = rng.integers(0, 2, 80); texts = [' '.join(rng.choice(words, 5)) + (' good' if k else ' bad') for k in y]
    probs = tfidf_baseline(texts[:40], y[:40], texts[40:])
    assert probs.shape == (40, 2) and (probs.argmax(1) == y[40:]).all() and np.allclose(probs.sum(1), 1)


# The model folder

def test_a_saved_text_model_says_what_the_learner_said(probed, data, tmp_path):
    folder = save_model(tmp_path/'model', probed.model, probed.info, data.classes, tok=probed.tok)
    assert {p.name for p in folder.iterdir()} == {'weights.safetensors', 'manifest.json', 'config.json',
                                                  'tokenizer.json', 'tokenizer_config.json'}
    own = quiet(probed, lambda: probed.get_preds(dl=dl_of_split(probed, data)))[0]
    model = Model(folder)
    got = torch.tensor([[*p.probabilities.values()] for p in model.predict(data.texts('test'), bs=7)])
    torch.testing.assert_close(got, own, rtol=1e-3, atol=1e-4)
    (folder/'tokenizer.json').write_text((folder/'tokenizer.json').read_text().replace('"the"', '"thee"', 1))
    with pytest.raises(InputError, match='tokenizer.json` was changed'): Model(folder)


def test_predict_takes_arguments_files_tables_and_lines(probed, data, tmp_path):
    folder = save_model(tmp_path/'model', probed.model, probed.info, data.classes, tok=probed.tok)
    (tmp_path/'a.txt').write_text('See you at six.')
    (tmp_path/'t.csv').write_text('text,note\nYour code is 1234,x\n"Hi, mum",y\n')
    done = tl('predict', folder, 'See you at six.', 'a.txt', 't.csv', cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0 and [r['path'] for r in rows] == ['See you at six.', 'a.txt', 't.csv:2', 't.csv:3']
    assert rows[0]['probability'] == pytest.approx(
            rows[1]['probability']) or float(rows[0]['probability']) == pytest.approx(float(rows[1]['probability']),
            abs=1e-5)
    lines = subprocess.run([sys.executable, '-m', 'tl_notebooks', 'predict', folder, '-', '--format', 'json'],
                           input='one\n\ntwo\n', capture_output=True, text=True, cwd=tmp_path)
    assert [r['path'] for r in json.loads(lines.stdout)] == ['line 1', 'line 3']
    bad = tl('predict', folder, 'no/such.eml', cwd=tmp_path)
    assert bad.returncode == 2 and '`no/such.eml` does not exist' in bad.stderr and 'Traceback' not in bad.stderr


# The use cases

FAST = ('-p', 'precision=fp32', '-p', 'max_tokens=32', '-p', 'backbone=minilm_l6')


def test_reviews_from_the_box(tmp_path):
    done = tl('run', 'reviews', '--out', tmp_path, *FAST, '-p', 'draws=2', '-p', 'labels=8', '-p', 'control=false',
              cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    from pathlib import Path
    folder = Path(done.stdout.strip().splitlines()[-1]); rec = record(folder)
    assert rec['status'] == 'ok' and next(iter(rec['metrics'])) == 'accuracy' and rec['data']['n_unlabelled'] > 100
    assert rec['data']['counts']['train'] == {'negative': 8, 'positive': 8}
    assert set(rec['learning_curve']['labels alone']) == {'2', '4', '8'}
    # so few labels cannot show what it brings: nothing is trained, and the reason stands where stages are listed
    assert not rec['contrast']['kept'] and rec['contrast']['seconds'] < 1
    row = next(s for s in rec['stages'] if s['name'] == 'contrast')
    assert row['why'].startswith('skipped: 16 labelled texts can show')
    assert row['why'] in html.unescape(page(folder/'report.html'))
    own = rec['self_training']
    assert own['texts'] > 100 and own['folds'] == (0 if rec['kept'] == 'contrast'
                                                   else 3) and (rec['kept'] == 'self-trained') == own['kept']
    if own['kept']: assert rec['stages'][0]['why'] == own['why'] and rec['stages'][0]['gain'] == own['gain']
    assert Model(folder).statistics().n == 16 and rec['head'].get('guessed',
            0) == (2*round(.4*own['texts']) if own['kept'] else 0)
    assert {p.stem for p in (folder/'figures').iterdir()} >= {'accuracy', 'learning_curve', 'words', 'confusion',
                                                              'reliability', 'counts'}
    assert rec['model']['name'] == 'minilm_l6' and 'languages' not in rec # which knows English alone
    assert 'test texts' in (
            folder/'report.html').read_text(
            ) and rec['baselines']['tfidf']['accuracy']['n'] == rec['metrics']['accuracy']['n']
    data = read_texts(sample_path('reviews'), valid_pct=0., test_pct=rec['params']['test_pct'])
    got = tl('predict', folder, *data.texts('test')[:40], cwd=tmp_path)
    assert len(list(csv.DictReader(io.StringIO(got.stdout)))) == 40
    # the pager of doubtful texts: each with the label that the data gives it, of the 16 that were used or of the test
    shown = json.loads((folder/'review.html').read_text().split('const {rows, classes, column} = ')[1].splitlines()[0])
    label = dict(zip(data.items.text, data.items.label))
    assert shown['column'] == 'text' and shown['rows'] and all(r['was'] == label[r['item']] for r in shown['rows'])
    test = {*data.texts('test')}
    assert all(r['learned'] != (r['item'] in test) for r in shown['rows'])


def test_mail_fine_tuned_with_control(tmp_path):
    (tmp_path/'mail').mkdir()
    for c in ('human', 'bot'): (tmp_path/'mail'/c).mkdir()
    rows = [json.loads(line) for line in sample_path('mails').read_text(encoding='utf-8').splitlines()][:80]
    from email.message import EmailMessage
    for k, r in enumerate(rows):
        m = EmailMessage(); m['From'], m['Subject'] = r['from'], r['subject']; m.set_content(r['text'])
        (tmp_path/'mail'/r['label']/f'{k}.eml').write_bytes(bytes(m))
    done = tl('run', 'mail', '--data', tmp_path/'mail', '--out', tmp_path/'o', *FAST, '-p', 'epochs=1', '-p',
              'control=yes',
              cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    from pathlib import Path
    rec = record(Path(done.stdout.strip().splitlines()[-1]))
    assert {'accuracy', 'auc/bot',
            'false positives at 95 % recall/bot'} <= set(rec['metrics']) and 'accuracy' in rec['control']
    assert len(rec['stages']) == 2 and rec['stages'][1]['epochs'] == 1


def test_the_table_of_layers_has_each_sets_own_figures():
    "Sets of other lengths too, which pandas would take for parts of one name"
    from contextlib import nullcontext
    from tl_notebooks.runs import text_steps
    errors = {(3, 4, 5, 6): .5, (4, 5, 6): .6, (1,): .7}
    choice = SimpleNamespace(layers=(4, 5, 6), errors=errors, accuracies=dict.fromkeys(errors, .9))
    run = SimpleNamespace(p=SimpleNamespace(epochs=0, use_names=True), record={}, phase=lambda name: nullcontext())
    found = SimpleNamespace(loo_accuracy=.5, n=4, alpha=1.)
    learn = SimpleNamespace(choice=choice, prior=None, probe=lambda *a, **k: found)
    table = text_steps.probe(run, learn, SimpleNamespace(hints={}))
    assert table['leave-one-out error'].to_dict() == {'layers 3 to 6': .5, 'layers 4 to 6': .6, 'layer 1': .7}


def test_a_wrong_request_names_its_place(tmp_path):
    wrong = {'fine-tuning is judged on validation texts': dict(epochs=1), '`labels` is 1': dict(labels=1),
             'Accepted: up to': dict(labels=10000), "'x' is no label:name pair": dict(names='x'),
             "Did you mean 'negative'?": dict(hints='negativ:bad'), "no column 'body' for `text`": dict(text='body'),
             '`nowhere.csv` does not exist': dict(data='nowhere.csv'), 'minilm_l6': dict(backbone='minilm')}
    said = refusals('reviews', [*wrong.values()], tmp_path)
    assert [says for says,message in zip(wrong, said) if says not in message] == [], said


def test_a_wrong_request_ends_with_2_and_leaves_nothing(tmp_path):
    done = tl('run', 'reviews', '--out', 'o', '-p', 'labels=10000', cwd=tmp_path)
    assert done.returncode == 2 and 'Accepted: up to' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'o'/'reviews').exists()


def test_all_layers_are_read_after_some_were(capfd):
    "A cut that was found for some layers does not serve others: nothing is refused, and each layer is what it is alone"
    d = draw_labels(read_texts(sample_path('reviews')), 8, 0)
    learn = text_learner(d, 'minilm_l6', layers=[5, 6], seed=0, precision='fp32', max_tokens=16)
    with learn.no_bar():
        some, _ = learn.features(learn.dls[0].new(shuffle=False, drop_last=False))
        every = learn.read_layers()[0]
    assert 'this store takes' not in capfd.readouterr().err
    found, wanted = (np.sort(t.reshape(len(t), -1).sum(1).numpy()) for t in (every[:,4:6], some))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
