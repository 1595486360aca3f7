"""Expansion with proof: the head of joint training from new data alone, old logits that keep their bits, certificates
that can fail."""
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import tl
from safetensors.torch import load_file
from ridge_oracle import joint_logits
from scipy.stats import binomtest

import tl_notebooks  # noqa: F401  before fastai: it guards torchvision

from tl_notebooks.models.folder import Model, take_feature_map, read_manifest, save_model
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.judge.certificate import Limits
from tl_notebooks.expand.classes import Tuning, expand_model, family_tree, merge_models
from tl_notebooks.heads.statistics import ClassStatistics, statistics_state
from tl_notebooks.data.samples import PARTS, make_parts, sample_path
from tl_notebooks.learn.text import text_learner
from tl_notebooks.data.texts import read_texts
from tl_notebooks.learn.vision import image_learner, image_net

KINDS = PARTS[:5]


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "Images of five kinds of parts, in a folder of all and one of each; a model that knows the first two"
    root = tmp_path_factory.mktemp('expand')
    make_parts(root/'all', kinds=KINDS, n=14, size=96)
    for i,k in enumerate(KINDS):
        for p in sorted((root/'all'/k).iterdir()):
            # some of each are kept to judge by
            place = root/('judge' if p.stem[-1] in '13' else 'first' if i < 2 else k)/k/p.name
            place.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, place)
    data = read_images(root/'first', valid_pct=.2, test_pct=0.)
    learn = image_learner(data, 'efficientnet_lite0', size=96, precision='fp32', seed=0)
    with learn.no_bar():
        learn.probe(); learn.thaw_progressively([]); head = learn.refit()
    save_model(root/'model', learn.model, learn.info, data.classes, statistics=statistics_state(learn.statistics),
               head=dict(kind='solved', alpha=head.alpha))
    return root


@pytest.fixture(scope='module')
def projected(work):
    "The same on the last three blocks, with a random projection beside them"
    data = read_images(work/'first', valid_pct=.2, test_pct=0.)
    learn = image_learner(data, 'efficientnet_lite0', size=96, precision='fp32', seed=0, features='blocks')
    with learn.no_bar(): learn.probe(project=300, seed=5); learn.thaw_progressively([]); head = learn.refit()
    model = Model(work/'model')
    return save_model(work/'projected', learn.model, learn.info, data.classes,
                      statistics=statistics_state(learn.statistics), head=dict(kind='solved', alpha=head.alpha),
                      memory=model.take(*items_of(work/'first'), 6))


def expand(work, parent, new, out, **kwargs): return expand_model(work/parent, work/new, out, test_pct=0., **kwargs)


def judge(work, classes):
    d = read_images(work/'judge', valid_pct=0., test_pct=0., addition=True)
    return [f for f,l in zip(d.files('train'), d.subset('train').label) if l in classes]


@pytest.mark.parametrize('first', ['model', 'projected'])
def test_growing_step_by_step_is_joint_training(work, projected, first, tmp_path):
    """In any order: the head, its strength and its confidence that scikit-learn comes to on the features of all
    images together"""
    model = Model(work/first)
    assert model.net.n_features == model.statistics().d == dict(model=2560, projected=1548)[first]
    outs = []
    for order in (KINDS[2:], KINDS[:1:-1]):
        parent = first
        for k in order: parent = expand(work, parent, k, tmp_path/f"{''.join(order)}-{k}").folder
        outs.append(Model(parent))
    files, labels = [], []
    for name in ('first', *KINDS[2:]):
        d = read_images(work/name, valid_pct=0., test_pct=0., addition=True)
        files += d.files('train'); labels += list(d.subset('train').label)
    x, test = model.features(files).double().numpy(), model.features(judge(work, KINDS))
    for grown in outs:
        head, y = grown.manifest['head'], np.array([grown.classes.index(l) for l in labels])
        want, alpha = joint_logits(x, y, 5, test.double().numpy())
        assert head['alpha'] == pytest.approx(alpha, rel=1e-3)
        with torch.inference_mode(): got = grown.net.head(test).double().numpy()
        np.testing.assert_allclose(got, want, atol=1e-3*max(1, np.abs(want).max()))
    a, b = outs
    assert sorted(a.classes) == sorted(
            b.classes) and a.manifest['head']['alpha'] == pytest.approx(b.manifest['head']['alpha'], rel=1e-9)
    assert [p.label for p in a.predict(files)] == [p.label for p in b.predict(files)]


def test_the_statistics_are_those_of_the_saved_bodys_features(work):
    """The learner's features come from kept activations of a body with folded normalisations, so they may differ by
    float32 rounding, and by no more"""
    model = Model(work/'model'); s = model.statistics()
    d = read_images(work/'first', valid_pct=0., test_pct=0.)
    want = ClassStatistics.from_features(model.features(d.files('train')), d.labels('train'), 2)
    np.testing.assert_array_equal(s.counts, want.counts)
    np.testing.assert_allclose(s.means, want.means, atol=1e-5*np.abs(want.means).max())
    np.testing.assert_allclose(s.scatter, want.scatter, atol=1e-5*np.abs(want.scatter).max())


def test_ten_expansions_and_the_way_back(work, tmp_path):
    "Ten steps, then all that was added is removed: the model one began with"
    parent = work/'model'
    for i in range(5):
        parent = expand(work, parent, KINDS[2 + i % 3], tmp_path/f'a{i}').folder
        parent = expand_model(parent, out=tmp_path/f'b{i}', rename={KINDS[2 + i % 3]: f'kind {i}'}).folder
    grown = Model(parent)
    assert len(grown.classes) == 7 and len(grown.manifest['lineage']) == 10
    back = Model(expand_model(parent, out=tmp_path/'back', remove=[f'kind {i}' for i in range(5)]).folder)
    first, files = Model(work/'model'), judge(work, KINDS)
    for a, b in zip(back.statistics().rows, first.statistics().rows): np.testing.assert_array_equal(a, b)
    for a, b in zip(back.predict(files), first.predict(files)):
        assert a.label == b.label and a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
    lines = family_tree(tmp_path/'back')
    assert len(lines) == 13 and 'efficientnet_lite0' in lines[
            0] and read_manifest(work/'model')['sha256'][:16] in lines[1]


@pytest.mark.parametrize('kind', ['solved', 'trained', 'kept, with a part', 'without statistics'])
def test_a_new_name_changes_no_bit_of_any_logit(work, kind, tmp_path):
    "Whatever the head is: nothing is solved where no row comes, goes or changes its class"
    folder, files = work/'model', judge(work, KINDS)
    if kind == 'kept, with a part': folder = expand(work, 'model', KINDS[2], tmp_path/'kept', mode='keep-scores').folder
    elif kind != 'solved':
        model = Model(folder)
        with torch.no_grad(): model.net.head[1].weight.mul_(1.3).add_(.01) # no solution of anything
        statistics = None if kind == 'without statistics' else statistics_state(model.statistics())
        info = model.manifest['backbone'] | model.manifest['preprocessing']
        folder = save_model(tmp_path/'trained', model.net, info, model.classes, statistics=statistics,
                            head=dict(kind='trained'))
    before = Model(folder)
    done = expand_model(folder, out=tmp_path/'named', rename={before.classes[0]: 'bolt'})
    after = Model(done.folder)
    assert after.classes == ['bolt', *before.classes[1:]] and after.manifest['head'] == before.manifest['head']
    x = torch.stack([before.task.take(f) for f in files])
    with torch.inference_mode(): assert torch.equal(before.net(before.task.normal(x)), after.net(after.task.normal(x)))
    printed = [[*p.probabilities.values()] for m in (before, after) for p in m.predict(files)]
    assert printed[:len(files)] == printed[len(files):]


@pytest.mark.parametrize('steps', [1, 2])
def test_keep_scores_keeps_every_bit_of_every_old_logit(work, tmp_path, steps):
    parent = work/'model'
    files = judge(work, KINDS)
    for i in range(steps):
        before = Model(parent)
        done = expand(work, parent, KINDS[2+i], tmp_path/str(i), mode='keep-scores',
                      old=judge_folder(work, before.classes, tmp_path/f'j{i}'), limits=Limits(max_logit_change=0.))
        assert done.passed and done.certificate['old_logits_bit_identical']
        after = Model(done.folder)
        # through the whole network, one by one and together
        for x in (*(after.task.take(f)[None] for f in files[:6]), torch.stack([after.task.take(f) for f in files])):
            with torch.inference_mode(): a, b = (m.net(m.task.normal(x)) for m in (before, after))
            assert torch.equal(a, b[:,:a.shape[1]])
        parent = done.folder
    new = [f for f in files if f.parent.name == KINDS[2]]
    assert np.mean([p.label == KINDS[2] for p in after.predict(new)]) >= .5 # the arbiter gives new classes their chance


def test_a_projected_model_grows_in_every_mode(work, projected, tmp_path):
    old, files = judge_folder(work, KINDS[:2], tmp_path/'old'), judge(work, KINDS[:3])
    before = Model(projected)
    signs = np.unpackbits(np.random.PCG64(5).random_raw(1248*300//64).astype('<u8').view(np.uint8)).reshape(1248,
            300)*2. - 1
    x = before.net.feature_map.std.double(
            ).numpy(), before.net.feature_map.mean.double().numpy(), before.features(files).double().numpy()
    np.testing.assert_allclose(x[2][:,1248:], np.maximum((x[2][:,:1248] - x[1])/x[0] @ signs/1248**.5, 0), atol=1e-4)
    kept = expand(work, 'projected', KINDS[2], tmp_path/'kept', mode='keep-scores', old=old,
                  limits=Limits(max_logit_change=0.))
    tuned = expand(work, 'projected', KINDS[2], tmp_path/'tuned', mode='fine-tune', old=old,
                   tuning=Tuning(thaw=2, epochs=2, lr=1e-3, sure=-1000.))
    assert kept.passed and kept.certificate['mode'] == 'keep-scores' and tuned.certificate['mode'] == 'fine-tune'
    for done in (kept, tuned):
        after = Model(done.folder)
        assert after.net.n_features == 1548 and torch.equal(after.net.feature_map.signs, before.net.feature_map.signs)
        assert np.mean([p.label == f.parent.name for p,f in zip(after.predict(files), files)]) >= .5 # of three kinds
    a, b = (expand(work, 'projected', k, tmp_path/k).folder for k in KINDS[2:4])
    both, one = Model(merge_models(a, b, tmp_path/'both', common=projected)), Model(expand(work, a, KINDS[3],
            tmp_path/'one').folder)
    with pytest.raises(InputError, match='different bodies, features or random projections'):
        merge_models(work/'model', projected, tmp_path/'other')
    z = both.features(files)
    with torch.inference_mode(): np.testing.assert_allclose(both.net.head(z), one.net.head(z), atol=1e-4)
    state = load_file(projected/'weights.safetensors')
    for wrong in ([2**40, 5], [300, -1], [300]):
        net = image_net('efficientnet_lite0', 2, size=96, features='blocks')[0]
        with pytest.raises(InputError, match='does not fit the head'):
            take_feature_map(net, state | {'feature_map.made': torch.tensor(wrong)}, projected)


def judge_folder(work, classes, to):
    for c in classes: shutil.copytree(work/'judge'/c, to/c)
    return to


def test_the_certificate_says_what_the_models_say(work, tmp_path):
    old = judge_folder(work, KINDS[:2], tmp_path/'old')
    done = expand_model(work/'model', work/KINDS[2], tmp_path/'grown', old=old, test_pct=.3,
                        limits=Limits(max_old_drop=.5, min_new_accuracy=1.1))
    c = json.loads((done.folder/'certificate.json').read_text())
    before, after = Model(work/'model'), Model(done.folder)
    files = [p for k in KINDS[:2] for p in sorted((old/k).iterdir())]
    right = [np.array([p.label == f.parent.name for p,f in zip(m.predict(files), files)]) for m in (before, after)]
    assert c['old_accuracy_before'][
            'value'] == right[
            0].mean() and c['old_accuracy_after']['value'] == right[1].mean() and c['judged_by']['old'] == len(files)
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert c['mcnemar_p'] == pytest.approx(binomtest(only[0], sum(only)).pvalue if sum(only) else 1.)
    assert c['parent'][
            'sha256'] == before.manifest[
            'sha256'] and after.manifest['parent'] == before.manifest['sha256'] and c['body_bit_identical']
    assert c['child']['weights_sha256'] == after.manifest['weights_sha256']
    assert c['status'] == 'fail' and [l['passed'] for l in c['limits']] == [True, False] # nobody has more than all
    page = (done.folder/'certificate.html').read_text()
    assert 'fail' in page and page.count('data:image/png;base64') == 2 and 'src="http' not in page
    text = bytearray((done.folder/'certificate.json').read_bytes()); text[100] ^= 1
    (done.folder/'certificate.json').write_bytes(text)
    with pytest.raises(InputError, match='certificate.json` was changed'): Model(done.folder)


def test_what_is_learned_from_does_not_judge(work, tmp_path):
    "New images of old classes that are also among those to judge by"
    old = judge_folder(work, KINDS[:2], tmp_path/'old')
    new = tmp_path/'new'
    for i,k in enumerate(KINDS[:3]):
        (new/k).mkdir(parents=True)
        for p in sorted((work/'judge'/k).iterdir())[:1]: shutil.copy(p, new/k/p.name)
    done = expand_model(work/'model', new, tmp_path/'grown', old=old, test_pct=0.)
    n = sum(len(list((old/k).iterdir())) for k in KINDS[:2])
    assert done.certificate['judged_by']['old'] == n - 2 and done.certificate['judged_by']['new'] == 0
    assert Model(done.folder).statistics().counts[:2].sum() == Model(work/'model').statistics().counts.sum() + 2
    assert any('one item only' in note for note in done.certificate['notes'])


def test_an_old_class_under_a_new_name_is_noticed(work, tmp_path):
    new = tmp_path/'new'; (new/'fastener').mkdir(parents=True)
    for p in sorted((work/'first'/KINDS[0]).iterdir()): shutil.copy(p, new/'fastener'/p.name)
    c = expand_model(work/'model', new, tmp_path/'grown', test_pct=0.).certificate
    assert c['close_pairs'] and (c['close_pairs'][0]['new'], c['close_pairs'][0]['other'],
                                 c['close_pairs'][0]['duplicate']) == ('fastener', KINDS[0], True)
    assert 'is the new class one that is there already' in c['notes'][0]
    honest = expand(work, 'model', KINDS[2], tmp_path/'honest').certificate
    assert not any(p['duplicate'] for p in honest['close_pairs'])


def test_names_that_differ_by_case_are_refused(work, tmp_path):
    shutil.copytree(work/KINDS[2], tmp_path/'new'); (tmp_path/'new'/KINDS[2]).rename(tmp_path/'new'/KINDS[0].upper())
    with pytest.raises(InputError, match='only in case'): expand_model(work/'model', tmp_path/'new', tmp_path/'out')
    assert not (tmp_path/'out').exists()


def test_two_sites_give_one_model(work, tmp_path):
    a = expand(work, 'model', KINDS[2], tmp_path/'a').folder
    b = expand(work, 'model', KINDS[3], tmp_path/'b').folder
    one = Model(expand(work, a, KINDS[3], tmp_path/'one').folder)
    both = Model(merge_models(a, b, tmp_path/'both', common=work/'model'))
    x = both.features(judge(work, KINDS))
    with torch.inference_mode(): np.testing.assert_allclose(both.net.head(x), one.net.head(x), atol=1e-4)
    with pytest.raises(InputError, match='count twice'): merge_models(a, b, tmp_path/'twice')
    with pytest.raises(InputError, match='count twice'): merge_models(a, b, tmp_path/'twice', common=a)


def test_a_text_model_grows_with_its_names(tmp_path):
    d = read_texts(sample_path('reviews'), valid_pct=0.)
    table = d.items[['text', 'label', 'split']]
    learn = text_learner(d, 'minilm_l6', seed=0)
    with learn.no_bar():
        learn.probe(); learn.thaw_progressively([]); head = learn.refit()
    assert learn.prior is not None
    save_model(tmp_path/'model', learn.model, learn.info, d.classes, statistics=statistics_state(learn.statistics),
               head=dict(kind='solved', alpha=head.alpha), tok=learn.tok)
    mails = read_texts(sample_path('mails'), valid_pct=0.).items
    mails[mails.label == mails.label.iloc[0]].assign(label='mail')[['text', 'label',
            'split']].to_csv(tmp_path/'new.csv', index=False)
    table[table.split == 'test'].to_csv(tmp_path/'old.csv', index=False)
    done = expand_model(tmp_path/'model', tmp_path/'new.csv', tmp_path/'grown', old=tmp_path/'old.csv')
    c = done.certificate
    assert c['child']['classes'] == [*d.classes,
                                     'mail'] and c[
            'new_accuracy']['value'] > .9 and c['judged_by']['old'] == (table.split == 'test').sum()
    assert c['old_accuracy_after']['value'] > c['old_accuracy_before']['value'] - .05
    assert Model(done.folder).statistics().prior.shape[0] == 3


def test_on_the_command_line(work, tmp_path):
    old = judge_folder(work, KINDS[:2], tmp_path/'old')
    done = tl('expand', work/'model', '--data', work/KINDS[2], '--old', old, '--out', tmp_path/'grown',
              '--max-old-drop', '0.5', cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path/'grown'), done.stderr
    assert 'old classes' in done.stderr and 'new classes' in done.stderr
    done = tl('expand', work/'model', '--data', work/KINDS[2], '--max-old-drop', '0.5', cwd=tmp_path)
    assert done.returncode == 1 and 'NOT MET: max_old_drop' in done.stderr and (
            tmp_path/done.stdout.strip()/'certificate.json').is_file()
    assert done.stdout.startswith('outputs/expand/')
    done = tl('show', tmp_path/'grown', cwd=tmp_path)
    assert done.returncode == 0 and f'+ {KINDS[2]}' in done.stdout
    label = tl('predict', tmp_path/'grown', next((work/'judge'/KINDS[2]).iterdir()), cwd=tmp_path)
    assert label.returncode == 0 and KINDS[2] in label.stdout.splitlines()[0]
    for args, says in ((['--data', 'nowhere'], 'nowhere'), (['--remove', 'nothing'], "no class 'nothing'"),
                       ([], 'nothing to do')):
        done = tl('expand', work/'model', *args, '--out', tmp_path/'bad', cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr and not (
                tmp_path/'bad').exists(), done.stderr


def test_two_at_once_and_one_interrupted_leave_whole_folders_only(work, tmp_path):
    "Of two expansions into one folder one wins; Ctrl-C leaves nothing; the parent keeps its bytes"
    before = {p.name: p.read_bytes() for p in (work/'model').iterdir()}
    command = [sys.executable, '-m', 'tl_notebooks', 'expand', str(work/'model'), '--data', str(work/KINDS[2]), '--out',
               str(tmp_path/'one')]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [p.communicate(timeout=200)[1] for p in both]
    assert sorted(p.returncode for p in both) == [0, 2], errors
    Model(tmp_path/'one')
    hurry = [*command[:-1], str(tmp_path/'never')]
    p = subprocess.Popen(hurry, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    # half-way: the model is being written
    while not list(tmp_path.glob('.never*')) and p.poll() is None: time.sleep(.001)
    p.send_signal(signal.SIGINT); _, error = p.communicate(timeout=60)
    assert p.returncode == 130 or p.returncode == 0 and (tmp_path/'never').exists(), (p.returncode, error)
    if (tmp_path/'never').exists(): Model(tmp_path/'never')     # renamed a moment before: then it is whole
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith('.')] == []
    assert {p.name: p.read_bytes() for p in (work/'model').iterdir()} == before


def items_of(path):
    d = read_images(path, valid_pct=0., test_pct=0., addition=True)
    return d.files('train'), list(d.subset('train').label)


@pytest.fixture(scope='module')
def remembering(work):
    "The first model with three old images of each class that stay with it"
    model = Model(work/'model'); m = model.manifest
    memory = model.take(*items_of(work/'first'), 6)
    return save_model(work/'remembering', model.net, m['backbone'] | m['preprocessing'], model.classes,
                      statistics=statistics_state(model.statistics()), head=m['head'], memory=memory)


def test_a_bounded_memory_grows_with_the_model(work, remembering, tmp_path):
    "As many of each class, the same ones in any order of steps; without being asked nothing stays"
    found = []
    for order in (KINDS[2:4], KINDS[3:1:-1]):
        parent = remembering
        for k in order: parent = expand(work, parent, k, tmp_path/f'{order[0]}-{k}').folder
        e = Model(parent).exemplars()
        assert {c: e.labels.count(c) for c in e.labels} == dict.fromkeys(KINDS[:4], 6)
        found.append({(l, i.numpy().tobytes()) for i,l in zip(e.items, e.labels)})
    assert found[0] == found[1]
    files, labels = items_of(work/KINDS[2])
    seen = {Model(work/'model').task.take(f).numpy().tobytes() for f in files}
    assert all(content in seen for label,content in found[0] if label == KINDS[2])
    less = expand_model(tmp_path/f'{KINDS[2]}-{KINDS[3]}', out=tmp_path/'less', remove=[KINDS[0]],
                        rename={KINDS[1]: 'other'}, memory=2).folder
    assert sorted(Model(less).exemplars().labels) == sorted([*['other']*2, *[KINDS[2]]*2, *[KINDS[3]]*2])
    assert not (expand(work, 'model', KINDS[2], tmp_path/'none').folder/'memory.safetensors').exists()
    assert not (expand(work, remembering, KINDS[2], tmp_path/'forgets', memory=0).folder/'memory.safetensors').exists()


def test_fine_tuning_that_is_kept_moves_the_last_groups_only(work, remembering, tmp_path):
    old = judge_folder(work, KINDS[:2], tmp_path/'old')
    tuning = Tuning(thaw=2, epochs=6, lr=3e-3, sure=-1000.) # kept whatever comes out
    done = [expand(work, remembering, KINDS[2], tmp_path/str(i), mode='fine-tune', old=old, tuning=tuning)
            for i in range(2)]
    c, before, after = done[0].certificate, Model(remembering), Model(done[0].folder)
    assert c['mode'] == 'fine-tune' and not c['body_bit_identical']
    moved = [any(not torch.equal(p, q) for p,q in zip(g, h)) for g,h in zip(before.net.body.groups,
            after.net.body.groups)]
    assert moved == [False]*(len(moved) - 1) + [True]
    assert Model(done[1].folder).manifest['weights_sha256'] == after.manifest['weights_sha256'] # twice, to the bit
    assert before.manifest['sha256'] == read_manifest(remembering)['sha256'] and after.classes == list(KINDS[:3])
    files = [p for k in KINDS[:2] for p in sorted((old/k).iterdir())]
    assert np.mean([p.label == f.parent.name for p,f in zip(after.predict(files),
                                                            files)]) == c['old_accuracy_after']['value']
    assert after.statistics().counts.tolist() == [*before.statistics().counts, len(items_of(work/KINDS[2])[0])]
    assert any('estimates' in n for n in c['notes']) and after.manifest['head']['carried'] <= 1
    # goes on, and does not forget what it stands on
    later = expand(work, done[0].folder, KINDS[3], tmp_path/'later').certificate
    assert any('estimates' in n for n in later['notes'])


def test_fine_tuning_that_does_harm_is_undone(work, remembering, tmp_path):
    done = expand(work, remembering, KINDS[2], tmp_path/'a', mode='fine-tune', tuning=Tuning(thaw=2, epochs=1, lr=50.))
    exact = expand(work, remembering, KINDS[2], tmp_path/'b')
    assert Model(done.folder).manifest[
            'weights_sha256'] == Model(exact.folder).manifest['weights_sha256'] and done.certificate['mode'] == 'exact'
    assert done.certificate['tried'][0]['status'] == 'undone' and any('was undone' in n
            for n in done.certificate['notes'])


def test_auto_takes_the_cheap_way_unless_something_asks_for_more(work, remembering, tmp_path):
    old = judge_folder(work, KINDS[:2], tmp_path/'old')
    plain = expand(work, remembering, KINDS[2], tmp_path/'plain', mode='auto', old=old).certificate
    assert (plain['mode'], [t['mode'] for t in plain['tried']]) == ('exact',
            ['exact']) and any('auto took exact' in n for n in plain['notes'])
    bound = expand(work, remembering, KINDS[2], tmp_path/'bound', mode='auto', old=old,
                   limits=Limits(max_logit_change=0.)).certificate
    assert bound['mode'] == 'keep-scores' and bound['status'] == 'pass' and bound['old_logits_bit_identical']
    # an old class once more: no head can tell these two apart
    new = tmp_path/'new'; (new/'fastener').mkdir(parents=True)
    for p in sorted((work/'first'/KINDS[0]).iterdir()): shutil.copy(p, new/'fastener'/p.name)
    hard = expand_model(remembering, new, tmp_path/'hard', mode='auto', old=old, test_pct=.3,
                        tuning=Tuning(thaw=2, epochs=1), limits=Limits(min_new_accuracy=1.1)).certificate
    # nothing can meet it
    assert [t['mode'] for t in hard['tried']] == ['exact', 'keep-scores', 'fine-tune'] and (hard['mode'],
            hard['status']) == ('exact', 'fail')
    assert any('pairs of a new class and another are close' in n and 'judged by the same items' in n
               for n in hard['notes'])
    without = expand_model(work/'model', new, tmp_path/'without', mode='auto', test_pct=0.).certificate
    assert [t['mode'] for t in without['tried']] == ['exact'] and any('needs some old items' in n
            for n in without['notes'])


def test_corrected_labels_are_as_if_they_had_always_been_right(work, tmp_path):
    files, labels = items_of(work/'first')
    model = Model(work/'model'); m, x = model.manifest, model.features(files)
    wrong = [KINDS[1 - KINDS.index(l)] if i in (0, 3) else l for i,l in enumerate(labels)]
    right, off = (ClassStatistics.from_features(x, [KINDS.index(l) for l in ls], 2) for ls in (labels, wrong))
    save_model(tmp_path/'off', model.net, m['backbone'] | m['preprocessing'], model.classes,
               statistics=statistics_state(off), head=m['head'])
    (tmp_path/'fix.csv').write_text('path,was,now\n' + ''.join(f'{files[i]},{wrong[i]},{labels[i]}\n' for i in (0, 3)))
    done = tl('expand', tmp_path/'off', '--correct', tmp_path/'fix.csv', '--out', tmp_path/'fixed', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    s = Model(tmp_path/'fixed').statistics()
    assert s.counts.tolist() == right.counts.tolist()
    np.testing.assert_allclose(s.scatter, right.scatter, atol=1e-6*np.abs(right.scatter).max())
    np.testing.assert_allclose(s.means, right.means, atol=1e-6)
    said = json.loads((tmp_path/'fixed'/'certificate.json').read_text())['corrected']
    assert said == [dict(item=str(files[i]), was=wrong[i], now=labels[i]) for i in (0, 3)]
    assert str(files[3]) in (tmp_path/'fixed'/'certificate.html').read_text(encoding='utf-8')
    (tmp_path/'bad.csv').write_text('path,was,now\nx.png,bolt,botl\n')
    for file, says in (('bad.csv', 'Did you mean' if 'bolt' in KINDS[:2] else 'no class'),
                       ('none.csv', 'cannot be read'), (files[0], 'cannot be read')):
        done = tl('expand', work/'model', '--correct', tmp_path/file, '--out', tmp_path/'x', cwd=tmp_path)
        assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr and not (
                tmp_path/'x').exists(), done.stderr


def test_corrections_of_items_that_were_not_learned_from_are_named_and_change_nothing(work, tmp_path):
    import tl_notebooks.models.save # noqa: F401  gives learners `save_model`
    data = read_images(work/'first', valid_pct=.2, test_pct=.3)
    learn = image_learner(data, 'efficientnet_lite0', size=96, precision='fp32', seed=0)
    with learn.no_bar(): learn.probe(); learn.calibrate()
    learn.save_model(tmp_path/'model', {})
    rows = lambda *splits: [(data.files(s)[0], l, KINDS[1 - KINDS.index(l)]) for s in splits
                            for l in [data.subset(s).label.iloc[0]]]
    was, test = Model(tmp_path/'model').statistics().counts, data.files('test')[0]
    done = expand_model(tmp_path/'model', '', tmp_path/'a', correct=rows('train', 'test'))
    assert [c['item'] for c in done.certificate['corrected']] == [str(data.files('train')[0])]
    assert any(str(test) in n and 'change nothing' in n for n in done.certificate['notes'])
    assert np.abs(Model(tmp_path/'a').statistics().counts - was).tolist() == [1, 1]
    with pytest.raises(InputError, match='learned from none of the 1 items.*corrected in the data'):
        expand_model(tmp_path/'model', '', tmp_path/'b', correct=rows('test'))
    assert not (tmp_path/'b').exists()


def test_fine_tuning_needs_old_items_and_says_so(work, tmp_path):
    with pytest.raises(InputError, match='some old ones'):
        expand(work, 'model', KINDS[2], tmp_path/'x', mode='fine-tune')
    with pytest.raises(InputError, match="`replay`: class 'gear'" if KINDS[2] == 'gear' else '`replay`: class'):
        expand(work, 'model', KINDS[2], tmp_path/'x', mode='fine-tune', tuning=Tuning(replay=work/KINDS[3]))
    with pytest.raises(InputError, match='`memory` is -1'): expand(work, 'model', KINDS[2], tmp_path/'x', memory=-1)
    assert not (tmp_path/'x').exists()
    done = expand(work, 'model', KINDS[2], tmp_path/'y', mode='fine-tune', memory=2,
                  tuning=Tuning(thaw=1, epochs=1, replay=work/'first'))
    assert Model(done.folder).exemplars().labels.count(KINDS[0]) == 2
