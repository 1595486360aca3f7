"""Copies that no hash of bytes finds: planted with Pillow, in images made here and in real ones; and near twins that
are none."""
import io
import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import need, page
from PIL import Image, ImageEnhance, ImageOps

from tl_notebooks.data.copies import ImageHashes, near_pairs, thumbnail
from tl_notebooks.core import InputError
from tl_notebooks.data.images import read_images
from tl_notebooks.data.known import known_images
from tl_notebooks.data.learned import Learned, learned_from, learned_items, learned_state, looks_of


def encoded(im, quality):
    "As a JPEG of that quality comes back"
    im.save(f := io.BytesIO(), 'JPEG', quality=quality)
    return Image.open(f).convert('RGB')


def cropped(im, share, left=.5, top=.5):
    "The part with `share` of each side, at a place from 0 (left, top) to 1"
    (w, h), (cw, ch) = im.size, (round(im.width*share), round(im.height*share))
    x, y = round((w - cw)*left), round((h - ch)*top)
    return im.crop((x, y, x + cw, y + ch))


CHANGES = dict(jpeg=lambda im: encoded(im, 40), crop=lambda im: encoded(cropped(im, .9), 90),
               corner=lambda im: encoded(cropped(im, .9, .15, .8), 90),
               half=lambda im: encoded(im.resize((im.width//2, im.height//2)), 90),
               darker=lambda im: encoded(ImageEnhance.Brightness(im).enhance(.8), 90),
               brighter=lambda im: encoded(ImageEnhance.Brightness(im).enhance(1.2), 90),
               mirror=lambda im: encoded(ImageOps.mirror(im), 90))


def scene(seed, size=(320, 240)):
    """Like a photograph: shapes whose contrast falls as their size does, in all sizes (the 1/f spectrum of natural
    images)"""
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(3, size[1], size[0])), axes=(1, 2))
    f = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None])
    a = np.fft.irfft2(spectrum/np.maximum(f, 1/max(size))**1.3, s=size[::-1], axes=(1, 2))
    a = .35*a + a.mean(0) # the colours of a scene go together
    return Image.fromarray(np.clip(128 + 48*(a - a.mean())/a.std(), 0, 255).astype('uint8').transpose(1, 2, 0))


def planted(originals, n=40, seed=0):
    "Images with `n` changed copies at the end, and the pairs that these make"
    rows = np.random.default_rng(seed).permutation(len(originals))[:n]
    copies = [list(CHANGES.values())[k % len(CHANGES)](originals[i]) for k,i in enumerate(rows)]
    return [*originals, *copies], {(int(i), len(originals) + k) for k,i in enumerate(rows)}


def found(images):
    return {tuple(p) for p in near_pairs(np.stack([*map(thumbnail, images)]), [min(i.size) for i in images]).T.tolist()}


@pytest.mark.parametrize('name', CHANGES)
def test_each_kind_of_copy_is_found(name):
    originals = [scene(i) for i in range(12)]
    got = found([*originals, *map(CHANGES[name], originals)])
    assert got == {(i, 12 + i) for i in range(12)}


def test_forty_among_two_hundred_and_no_other():
    images, want = planted([scene(1000 + i, (160, 120)) for i in range(200)])
    got = found(images)
    assert len(got & want) >= 38 and not got - want


REAL = dict(cifar10_small=300, lego6=200, electronic_components=200, street_coco=150)

def real(name, n, seed=0):
    files = sorted(f for f in need(name).rglob('*') if f.suffix in ('.jpg', '.bmp') and f.parent.name != 'background')
    if name == 'street_coco': files = [*{f.name.split('_jpg')[0]: f for f in files}.values()] # one of each source
    return [Image.open(files[i]).convert('RGB') for i in np.random.default_rng(seed).permutation(len(files))[:n]]

@pytest.mark.parametrize('name', REAL)
def test_forty_among_real_photographs(name):
    """Also bricks in one machine, which are alike and yet none is a copy: pairs of such that would be joined are at
    most as many as without copies"""
    originals = real(name, REAL[name])
    alike = found(originals)
    images, want = planted(originals)
    got = found(images)
    assert len(got & want) >= 38, sorted(want - got)
    if name in ('cifar10_small', 'lego6', 'street_coco'): assert not alike and len(got - want) <= 2

def test_thousands_of_unrelated_photographs():
    "Of the eight million pairs of 4,000 images at most two are false"
    files = sorted(need('cifar10_small').rglob('*.jpg'))
    images = [Image.open(f) for f in files]
    assert len(images) == 4000 and len(found(images)) <= 2

def test_bricks_in_one_machine():
    "800,000 pairs of photographs of the same few bricks on the same disc"
    assert len(found([Image.open(f) for f in sorted(need('lego6').rglob('*.jpg'))])) <= 2


def test_two_moments_of_one_camera_are_no_copies():
    a = scene(5)
    moved = a.copy(); moved.paste(scene(6).crop((0, 0, 24, 24)), (150, 100))
    assert not found([a, moved]) and found([a, encoded(a, 40), moved]) == {(0, 1)}


def test_one_colour_is_like_nothing():
    flat = [Image.new('RGB', (99, 99), (v, v, v)) for v in (0, 0, 128, 255)]
    assert not found(flat) and not found([*flat, scene(0)])


# A data set

def folder(root, images, split=lambda k, i: ''):
    "Class folders a and b; images are drawn in turn"
    for k,im in enumerate(images):
        place = root/split(k, im)/'ab'[k % 2]; place.mkdir(parents=True, exist_ok=True)
        im.save(place/f'{k:03}.{"jpg" if k >= 40 else "png"}', **(dict(quality=90) if k >= 40 else {}))
    return root


@pytest.fixture
def with_copies(tmp_path):
    "Forty images, and each of the first twelve once more, changed, under the same label"
    originals = [scene(i, (160, 120)) for i in range(40)]
    kinds = list(CHANGES.values())
    return folder(tmp_path/'set', [*originals, *(kinds[i % len(kinds)](originals[i]) for i in range(12))])


@pytest.mark.parametrize('seed', range(5))
def test_copies_stay_on_one_side_of_a_split_that_is_made(with_copies, seed):
    d = read_images(with_copies, seed=seed)
    split = dict(zip(d.items.path.str[2:5].astype(int), d.items.split))
    assert all(split[i] == split[40 + i] for i in range(12)) and {*split.values()} == {'train', 'valid', 'test'}
    assert d.near['families'] == 12 and d.near['images'] == 24 and d.near['across_splits'] == 0
    assert any("24 images look like near copies, in 12 families" in n for n in d.notes)
    assert "near copies" in d.describe()
    assert d.as_json()['near_copies']['families'] == 12 and json.dumps(d.as_json())


def test_a_users_own_groups_stay_whole_too(with_copies, tmp_path):
    "A family and a group that share one image are one unit"
    rows = sorted(p.relative_to(with_copies).as_posix() for p in with_copies.rglob('*.*'))
    groups = {'000': 'g', '002': 'g', '001': 'h', '013': 'h'}
    (with_copies/'list.csv').write_text('path,label,group\n' + ''.join(f"{r},{r[0]},{groups.get(r[2:5], '')}\n"
            for r in rows))
    for seed in range(5):
        d = read_images(with_copies/'list.csv', seed=seed)
        split = dict(zip(d.items.path.str[2:5].astype(int), d.items.split))
        assert len({split[k] for k in (0, 40, 2, 42)}) == 1 and len({split[k] for k in (1, 41, 13)}) == 1


def test_given_splits_are_kept_and_what_crosses_them_is_said(tmp_path):
    originals = [scene(i, (160, 120)) for i in range(40)]
    kinds = list(CHANGES.values())
    images = [*originals, *(kinds[i % len(kinds)](originals[i]) for i in range(6))]
    root = folder(tmp_path/'set', images, lambda k, _: 'test' if k >= 30 else 'train')
    d = read_images(root, valid_pct=0.)
    assert (d.items.split == 'test').sum() == 16 and (d.items.split == 'train').sum() == 30 and not d.problems
    assert d.near['across_splits'] == 6
    note = next(n for n in d.notes if 'cross the splits' in n)
    assert note.startswith(
            '6 of these') and 'train/a/000.png ~ test/a/040.jpg' in note or 'test/a/040.jpg ~ train/a/000.png' in note


def test_a_class_of_copies_alone_is_divided_and_that_is_said(tmp_path):
    "Ten views of one thing: kept together, two of three splits would lack the class"
    one = scene(3, (160, 120))
    for i in range(12):
        for c,im in (('same', ImageEnhance.Brightness(one).enhance(.7 + .04*i)), ('other', scene(100 + i, (160, 120)))):
            (tmp_path/'set'/c).mkdir(parents=True, exist_ok=True); im.save(tmp_path/'set'/c/f'{i}.png')
    d = read_images(tmp_path/'set')
    assert all(n for s in d.counts().values() for n in s.values())
    assert any("near copies of 'same' were divided" in n for n in d.notes)


def test_without_copies_splits_are_as_they_were(tmp_path):
    "Recorded before near copies were looked for"
    d = read_images(folder(tmp_path/'set', [scene(i, (64, 48)) for i in range(20)]))
    assert d.near['families'] == 0 and not any('near' in n for n in d.notes)
    assert d.items.split.value_counts().to_dict() == {'train': 12, 'valid': 4, 'test': 4}


def test_pairs_are_found_once(with_copies, tmp_path, monkeypatch):
    "A set that is read again is neither decoded nor compared again"
    from tl_notebooks.data import images, splits
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    for i in range(160): scene(500 + i, (48, 48)).save(with_copies/'ab'[i % 2]/f'more{i}.png')
    first = read_images(with_copies)
    assert known_images().is_file()
    def never(*_): raise AssertionError('done again')
    monkeypatch.setattr(splits, 'near_pairs', never); monkeypatch.setattr(images, 'decode_image', never)
    assert read_images(with_copies).near == first.near and first.near['families'] == 12


# Hashes that stay

def test_hashes_alone_know_copies_and_nothing_else():
    known, others = [scene(i, (160, 120)) for i in range(60)], [scene(5000 + i, (160, 120)) for i in range(60)]
    h = ImageHashes.of(np.stack([*map(thumbnail, known)]), [120]*60)
    for name,change in CHANGES.items():
        assert h.know(np.stack([thumbnail(change(im)) for im in known])).mean() >= .95, name
    assert h.know(np.stack([*map(thumbnail, others)])).sum() == 0


@pytest.mark.parametrize('name', ['cifar10_small', 'lego6', 'street_coco'])
def test_hashes_alone_on_real_photographs(name):
    """Re-encoded, smaller, darker and mirrored ones are known; of others at most one in twenty is taken for known,
    although bricks are alike"""
    images = real(name, 300, seed=1)
    known, others = images[:len(images)*2//3], images[len(images)*2//3:]
    h = ImageHashes.of(np.stack([*map(thumbnail, known)]), [min(i.size) for i in known])
    # hashes of bricks are too alike to tell a crop
    wanted = ['jpeg', 'darker', 'mirror'] + ['half']*(name != 'cifar10_small') + ['crop']*(name != 'lego6')
    for k in wanted: assert h.know(np.stack([thumbnail(CHANGES[k](im)) for im in known[:60]])).mean() >= .9, k
    assert h.know(np.stack([*map(thumbnail, others)])).mean() <= .05


def test_what_stays_shows_nothing_and_is_checked(with_copies):
    d = read_images(with_copies)
    learned = learned_items(d)
    state = learned_state(learned)
    n = (d.items.split != 'test').sum()
    # a thumbnail alone has 4,096
    assert sum(t.nelement()*t.element_size()
               for t in state.values()) <= 300*n and learned_from(state).keys == learned.keys
    assert learned.know(looks_of(d.files('train')
                                 + d.files('valid'))).all() and not learned.know(looks_of(d.files('test'))).any()
    for k in state:
        # folders of before have no texts without a label apart
        with pytest.raises(InputError, match='learned.safetensors') if k != 'unlabelled' else nullcontext():
            learned_from({a: b for a,b in state.items() if a != k})
        with pytest.raises(InputError, match='learned.safetensors'): learned_from(state | {k: torch.zeros(3, 5)})
    both = learned + Learned(complete=False)
    assert not learned_from(learned_state(both)).complete and both.know(looks_of(d.files('train'))).all()


# What judges

@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """A model of two kinds of drawn parts that keeps hashes of what it learned from; images of two kinds to come, and
    some of each to judge by"""
    from tl_notebooks.models.folder import save_model
    from tl_notebooks.heads.statistics import statistics_state
    from tl_notebooks.data.samples import PARTS, make_parts
    from tl_notebooks.learn.vision import image_learner
    root = tmp_path_factory.mktemp('parts')
    make_parts(root/'all', kinds=PARTS[:4], n=14, size=128)
    for i,k in enumerate(PARTS[:4]):
        for p in sorted((root/'all'/k).iterdir()):
            to = root/('judge' if p.stem[-1] in '13' else 'first' if i < 2 else k)/k/p.name
            to.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, to)
    data = read_images(root/'first', valid_pct=.2, test_pct=0.)
    learn = image_learner(data, 'efficientnet_lite0', size=96, precision='fp32', seed=0)
    with learn.no_bar(): learn.probe(); learn.thaw_progressively([]); head = learn.refit()
    save_model(root/'model', learn.model, learn.info, data.classes, statistics=statistics_state(learn.statistics),
               head=dict(kind='solved', alpha=head.alpha), learned=data)
    save_model(root/'unknowing', learn.model, learn.info, data.classes, statistics=statistics_state(learn.statistics),
               head=dict(kind='solved', alpha=head.alpha))
    return root, PARTS[:4]


def old_set(root, kinds, to, n=2):
    """Images to judge by, and for each kind `n` that were learned from and `n` of these once more, encoded anew and
    darker"""
    for k in kinds:
        shutil.copytree(root/'judge'/k, to/k)
        for i,p in enumerate(sorted((root/'first'/k).iterdir())[:2*n]):
            if i < n: shutil.copy(p, to/k/f'exact{p.name}')
            else:
                encoded(ImageEnhance.Brightness(Image.open(p).convert('RGB')).enhance(.85),
                        60).save(to/k/f'again{p.stem}.png')
    return to


def accuracy(folder, files):
    "What the model itself says"
    from tl_notebooks.models.folder import Model
    return np.mean([p.label == f.parent.name for p,f in zip(Model(folder).predict(files), files)])


def test_what_the_parent_learned_from_does_not_judge(parts, tmp_path):
    "Neither as it was nor encoded anew; the figure is that of the others alone, also for the child's child"
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    old = old_set(root, kinds[:2], tmp_path/'old')
    honest = [p for k in kinds[:2] for p in sorted((root/'judge'/k).iterdir())]
    done = expand_model(root/'model', root/kinds[2], tmp_path/'child', old=old, test_pct=0.)
    c = json.loads((done.folder/'certificate.json').read_text())
    assert c['judged_by'][
            'old'] == len(honest) and c['judged_by']['left_out']['old'] == {'what the parent learned from': 8}
    assert c['old_accuracy_after']['value'] == accuracy(done.folder,
                                                        honest) and c['old_accuracy_after']['n'] == len(honest)
    assert any(f'8 of {len(honest) + 8} items do not judge' in n
               for n in c['notes']) and not any('could not be checked' in n for n in c['notes'])
    assert '8 that are or copy what the parent learned from' in page(done.folder/'certificate.html')
    shutil.copytree(root/kinds[2]/kinds[2], old/kinds[2])    # what the child learned from
    shutil.copy(next((root/'judge'/kinds[2]).iterdir()), old/kinds[2]/'unseen.png')
    second = expand_model(done.folder, root/kinds[3], tmp_path/'second', old=old, test_pct=0.).certificate
    assert second['judged_by'][
            'old'] == len(honest) + 1 and second['judged_by']['left_out']['old'] == {'what the parent learned from': 8
            + len([*(root/kinds[2]/kinds[2]).iterdir()])}


def test_what_was_learned_from_does_not_count_twice(parts, tmp_path):
    """A grown folder, old classes with all their images plus a new one: the child's head is scikit-learn's from each
    image once"""
    from sklearn.linear_model import Ridge
    from tl_notebooks.expand.classes import expand_model
    from tl_notebooks.models.folder import Model
    root, kinds = parts
    grown = tmp_path/'grown'
    for k in kinds[:2]: shutil.copytree(root/'first'/k, grown/k)
    shutil.copytree(root/kinds[2]/kinds[2], grown/kinds[2])
    done = expand_model(root/'model', grown, tmp_path/'child', test_pct=0.)
    alone = expand_model(root/'model', root/kinds[2], tmp_path/'alone', test_pct=0.)
    files = [p for k in kinds[:3] for p in sorted((grown/k).iterdir())]
    new = len([*(grown/kinds[2]).iterdir()])
    each = [len([*(grown/k).iterdir()]) for k in kinds[:3]]
    assert Model(done.folder).statistics().counts.tolist() == each
    assert any(f'{len(files) - new} of {len(files)} items to learn from are left out' in n
               for n in done.certificate['notes'])
    a, b = (Model(e.folder).predict(files) for e in (done, alone))
    assert [p.probabilities for p in a] == [p.probabilities for p in b]
    # the same from raw features, by other code
    model, y = Model(done.folder), np.repeat(range(3), each)
    x, s = model.features(files).double().numpy(), model.statistics()
    by = np.sqrt(s.std*np.median(s.std))
    theirs = Ridge(model.manifest['head']['alpha']).fit((x - x.mean(0))/by, 2.*np.eye(3)[y] - 1)
    logits = model.net.head(torch.tensor(x, dtype=torch.float32)).detach().double().numpy()
    assert np.allclose(logits/model.manifest['head']['scale'], theirs.predict((x - x.mean(0))/by), atol=2e-3)


def test_expanding_twice_by_the_same_says_that_nothing_is_new(parts, tmp_path):
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    child = expand_model(root/'model', root/kinds[2], tmp_path/'child').folder
    with pytest.raises(InputError, match='learned from all .* items already'):
        expand_model(child, root/kinds[2], tmp_path/'again')
    assert not (tmp_path/'again').exists()


def test_a_rename_meets_limits_on_old_answers(parts, tmp_path):
    from tl_notebooks.judge.certificate import Limits
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    c = expand_model(root/'model', out=tmp_path/'named', rename={kinds[0]: 'other'},
                     limits=Limits(max_old_drop=0., max_logit_change=0.)).certificate
    assert c['status'] == 'pass' and all(l['value'] == 0 for l in c['limits'])
    c = expand_model(root/'model', root/kinds[2], tmp_path/'more', test_pct=0., limits=Limits(max_old_drop=0.))
    assert c.certificate['status'] == 'fail', 'nothing was given to judge by, and the head is another'


def test_a_wrong_path_is_named_with_its_parameter(parts, tmp_path):
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    with pytest.raises(InputError, match='^`old`: .*nope'):
        expand_model(root/'model', root/kinds[2], tmp_path/'a', old=tmp_path/'nope')


def test_copies_of_given_validation_images_stay_out_of_the_made_test(tmp_path):
    "Where a folder names train and valid, test is made of train, without near copies of what is in valid"
    for k,c in enumerate('ab'):
        for i in range(30):
            for split in ('train', 'valid') if i < 8 else ('train',):
                to = tmp_path/split/c/f'{i}.png'
                to.parent.mkdir(parents=True, exist_ok=True)
                im = scene(100*k + i, (160, 120))
                (encoded(im, 60) if split == 'valid' else im).save(to)
    d = read_images(tmp_path, test_pct=.3)
    test = {(p.parent.name, int(p.stem)) for p in d.files('test')}
    assert len(test) > 8 and not any(i < 8 for _,i in test)
    assert d.near['across_splits'] == 16 and any('that the data gives' in n for n in d.notes)


def test_where_all_was_learned_from_nothing_is_judged(parts, tmp_path):
    from tl_notebooks.judge.certificate import Limits
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    done = expand_model(root/'model', root/kinds[2], tmp_path/'child', old=root/'first', test_pct=0.,
                        limits=Limits(max_old_drop=1.))
    n, c = sum(len([*(root/'first'/k).iterdir()]) for k in kinds[:2]), done.certificate
    assert not done.passed and c['limits'] == [dict(name='max_old_drop', limit=1., value=None,
                                                    passed=False)] and 'old_accuracy_after' not in c
    assert any(f'not judged: all {n} items were learned from' in note for note in c['notes'])
    assert f'not judged: all {n} items were learned from' in page(done.folder/'certificate.html')


def test_new_items_that_were_learned_from_do_not_judge_either(parts, tmp_path):
    "A split given by folders, with a copy on both sides; and one whose test is all copies"
    from tl_notebooks.judge.certificate import Limits
    from tl_notebooks.expand.classes import expand_model
    root, kinds = parts
    k, fresh = kinds[2], sorted((root/'judge'/kinds[2]).iterdir())
    for name,tests in (('some', fresh), ('none', [])):
        new = tmp_path/name
        shutil.copytree(root/k/k, new/'train'/k); (new/'test'/k).mkdir(parents=True)
        for p in tests: shutil.copy(p, new/'test'/k/p.name)
        for p in sorted((root/k/k).iterdir())[:2]:
            encoded(ImageOps.mirror(Image.open(p).convert('RGB')), 70).save(new/'test'/k/f'mirror{p.stem}.png')
        done = expand_model(root/'model', new, tmp_path/f'{name}-out', limits=Limits(min_new_accuracy=0.))
        c = done.certificate
        assert c['judged_by'][
                'new'] == len(tests) and c['judged_by']['left_out']['new'] == {'new items to learn from': 2}
        assert done.passed == bool(tests) and any('not judged: all 2 items' in n for n in c['notes']) == (not tests)


def test_replayed_and_remembered_items_do_not_judge(parts, tmp_path):
    "Also of a model that was saved without hashes, which says that it cannot know the rest"
    from tl_notebooks.models.folder import Model, save_model
    from tl_notebooks.expand.classes import Tuning, expand_model
    root, kinds = parts
    m = Model(root/'unknowing')
    first = read_images(root/'first', valid_pct=0., test_pct=0.)
    files, labels = first.files('train'), first.subset('train').label.tolist()
    memory = m.take(files[:3], labels[:3], 3)
    keeps = save_model(tmp_path/'keeps', m.net, m.manifest['backbone'] | m.manifest['preprocessing'], m.classes,
                       statistics=statistics(m), head=m.manifest['head'], memory=memory)
    for p in files[-4:]:
        to = tmp_path/'replay'/p.parent.name/p.name; to.parent.mkdir(parents=True, exist_ok=True); shutil.copy(p, to)
    old = tmp_path/'old'
    for k in kinds[:2]: shutil.copytree(root/'judge'/k, old/k)
    for p in files[:3] + files[-4:]:
        encoded(Image.open(p).convert('RGB'), 85).save(old/p.parent.name/f'again{p.stem}.png')
    done = expand_model(keeps, root/kinds[2], tmp_path/'child', old=old, test_pct=0.,
                        tuning=Tuning(replay=tmp_path/'replay'))
    c = done.certificate
    assert c['judged_by']['left_out']['old'] == {'items to replay': 4, 'items that stayed with the model': 3}
    assert c['judged_by']['old'] == sum(len([*(root/'judge'/k).iterdir()]) for k in kinds[:2])
    assert any('could not be checked' in n for n in c['notes']) and not Model(done.folder).learned().complete


def statistics(m):
    from tl_notebooks.heads.statistics import statistics_state
    return statistics_state(m.statistics())


def test_texts_that_were_learned_from_do_not_judge(tmp_path):
    "In other cases and blanks, too; vocabulary and classes alike"
    from tl_notebooks.models.folder import save_model
    from tl_notebooks.expand.classes import expand_model
    from tl_notebooks.heads.statistics import statistics_state
    from tl_notebooks.data.samples import sample_path
    from tl_notebooks.learn.text import text_learner
    from tl_notebooks.data.texts import read_texts
    from tl_notebooks.expand.words import expand_words
    d = read_texts(sample_path('reviews'), valid_pct=0.)
    learn = text_learner(d, 'minilm_l6', max_tokens=16, seed=0, precision='fp32', engine='torch')
    with learn.no_bar(): learn.probe(); learn.thaw_progressively([]); head = learn.refit()
    save_model(tmp_path/'model', learn.model, learn.info, d.classes, statistics=statistics_state(learn.statistics),
               head=dict(kind='solved', alpha=head.alpha), tok=learn.tok, learned=d)
    seen, tests = d.items[d.items.split == 'train'].groupby('label').head(3), d.items[d.items.split == 'test']
    old = [*zip(seen.text.str.upper() + '  ', seen.label), *zip(tests.text, tests.label)]
    (tmp_path/'old.jsonl').write_text('\n'.join(json.dumps(dict(text=t, label=l)) for t,l in old))
    mails = read_texts(sample_path('mails'), valid_pct=0.).items
    mails[mails.label == mails.label.iloc[0]].assign(label='mail')[['text', 'label',
            'split']].to_csv(tmp_path/'new.csv', index=False)
    c = expand_model(tmp_path/'model', tmp_path/'new.csv', tmp_path/'grown', old=tmp_path/'old.jsonl').certificate
    assert c['judged_by'][
            'old'] == len(tests) and c['judged_by']['left_out']['old'] == {'what the parent learned from': len(seen)}
    w = expand_words(tmp_path/'model', tmp_path/'words', words=['gefitinib'], data=tmp_path/'old.jsonl').certificate
    assert w['judged_by'][
            'old'] == len(
            tests) == w['old_accuracy_after']['n'] and w['judged_by']['left_out']['old'] == {'what the parent learned '
            'from': len(seen)}


def test_the_hashes_are_part_of_the_folder(parts, tmp_path):
    "Named and hashed in the manifest like every file; a changed byte is noticed"
    from tl_notebooks.models.folder import Model
    shutil.copytree(parts[0]/'model', tmp_path/'m')
    assert 'learned.safetensors' in Model(tmp_path/'m').manifest['files']
    b = bytearray((tmp_path/'m'/'learned.safetensors').read_bytes()); b[-1] ^= 1
    (tmp_path/'m'/'learned.safetensors').write_bytes(b)
    with pytest.raises(InputError, match='learned.safetensors` was changed'): Model(tmp_path/'m')
