"Copies that no hash of bytes finds: planted with Pillow, in pictures made here and in real ones; and near twins that are none."
import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import need
from PIL import Image, ImageEnhance, ImageOps

from tl_notebooks.copies import ImageHashes, near_pairs, thumbnail
from tl_notebooks.core import InputError
from tl_notebooks.data import read_images, known_pictures
from tl_notebooks.learned import Learned, learned_from, learned_items, learned_state, looks_of


def encoded(im, quality):
    "As a JPEG of that quality comes back"
    im.save(f := io.BytesIO(), 'JPEG', quality=quality)
    return Image.open(f).convert('RGB')


def cropped(im, share, left=.5, top=.5):
    "The part with `share` of each side, at a place from 0 (left, top) to 1"
    (w, h), (cw, ch) = im.size, (round(im.width*share), round(im.height*share))
    x, y = round((w - cw)*left), round((h - ch)*top)
    return im.crop((x, y, x + cw, y + ch))


CHANGES = dict(jpeg=lambda im: encoded(im, 40), crop=lambda im: encoded(cropped(im, .9), 90), corner=lambda im: encoded(cropped(im, .9, .15, .8), 90),
               half=lambda im: encoded(im.resize((im.width//2, im.height//2)), 90), darker=lambda im: encoded(ImageEnhance.Brightness(im).enhance(.8), 90),
               brighter=lambda im: encoded(ImageEnhance.Brightness(im).enhance(1.2), 90), mirror=lambda im: encoded(ImageOps.mirror(im), 90))


def scene(seed, size=(320, 240)):
    "Like a photograph: shapes whose contrast falls as their size does, in all sizes (the 1/f spectrum of natural images)"
    rng = np.random.default_rng(seed)
    spectrum = np.fft.rfft2(rng.normal(size=(3, size[1], size[0])), axes=(1, 2))
    f = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None])
    a = np.fft.irfft2(spectrum/np.maximum(f, 1/max(size))**1.3, s=size[::-1], axes=(1, 2))
    a = .35*a + a.mean(0) # the colours of a scene go together
    return Image.fromarray(np.clip(128 + 48*(a - a.mean())/a.std(), 0, 255).astype('uint8').transpose(1, 2, 0))


def planted(originals, n=40, seed=0):
    "Pictures with `n` changed copies at the end, and the pairs that these make"
    rows = np.random.default_rng(seed).permutation(len(originals))[:n]
    copies = [list(CHANGES.values())[k % len(CHANGES)](originals[i]) for k,i in enumerate(rows)]
    return [*originals, *copies], {(int(i), len(originals) + k) for k,i in enumerate(rows)}


def found(images): return {tuple(p) for p in near_pairs(np.stack([*map(thumbnail, images)]), [min(i.size) for i in images]).T.tolist()}


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
    "Also bricks in one machine, which are alike and yet none is a copy: pairs of such that would be joined are at most as many as without copies"
    originals = real(name, REAL[name])
    alike = found(originals)
    images, want = planted(originals)
    got = found(images)
    assert len(got & want) >= 38, sorted(want - got)
    if name in ('cifar10_small', 'lego6', 'street_coco'): assert not alike and len(got - want) <= 2

def test_thousands_of_unrelated_photographs():
    "Of the eight million pairs of 4,000 pictures at most two are false"
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
    "Forty pictures, and each of the first twelve once more, changed, under the same label"
    originals = [scene(i, (160, 120)) for i in range(40)]
    kinds = list(CHANGES.values())
    return folder(tmp_path/'set', [*originals, *(kinds[i % len(kinds)](originals[i]) for i in range(12))])


@pytest.mark.parametrize('seed', range(5))
def test_copies_stay_on_one_side_of_a_split_that_is_made(with_copies, seed):
    d = read_images(with_copies, seed=seed)
    split = dict(zip(d.items.path.str[2:5].astype(int), d.items.split))
    assert all(split[i] == split[40 + i] for i in range(12)) and {*split.values()} == {'train', 'valid', 'test'}
    assert d.near['families'] == 12 and d.near['images'] == 24 and d.near['across_splits'] == 0
    assert any('24 images are near copies, in 12 families' in n for n in d.notes) and 'near copies' in d.describe()
    assert d.as_json()['near_copies']['families'] == 12 and json.dumps(d.as_json())


def test_a_users_own_groups_stay_whole_too(with_copies, tmp_path):
    "A family and a group that share one picture are one unit"
    rows = sorted(p.relative_to(with_copies).as_posix() for p in with_copies.rglob('*.*'))
    groups = {'000': 'g', '002': 'g', '001': 'h', '013': 'h'}
    (with_copies/'list.csv').write_text('path,label,group\n' + ''.join(f"{r},{r[0]},{groups.get(r[2:5], '')}\n" for r in rows))
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
    assert note.startswith('6 of these') and 'train/a/000.png ~ test/a/040.jpg' in note or 'test/a/040.jpg ~ train/a/000.png' in note


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
    from tl_notebooks import data
    monkeypatch.setenv('TL_NOTEBOOKS_CACHE', str(tmp_path/'cache'))
    for i in range(160): scene(500 + i, (48, 48)).save(with_copies/'ab'[i % 2]/f'more{i}.png')
    first = read_images(with_copies)
    assert known_pictures().is_file()
    def never(*_): raise AssertionError('done again')
    monkeypatch.setattr(data, 'near_pairs', never); monkeypatch.setattr(data, '_decode', never)
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
    "Re-encoded, smaller, darker and mirrored ones are known; of others at most one in twenty is taken for known, although bricks are alike"
    images = real(name, 300, seed=1)
    known, others = images[:len(images)*2//3], images[len(images)*2//3:]
    h = ImageHashes.of(np.stack([*map(thumbnail, known)]), [min(i.size) for i in known])
    wanted = ['jpeg', 'darker', 'mirror'] + ['half']*(name != 'cifar10_small') + ['crop']*(name != 'lego6') # hashes of bricks are too alike to tell a crop
    for k in wanted: assert h.know(np.stack([thumbnail(CHANGES[k](im)) for im in known[:60]])).mean() >= .9, k
    assert h.know(np.stack([*map(thumbnail, others)])).mean() <= .05


def test_what_stays_shows_nothing_and_is_checked(with_copies):
    d = read_images(with_copies)
    learned = learned_items(d)
    state = learned_state(learned)
    n = (d.items.split != 'test').sum()
    assert sum(t.nelement()*t.element_size() for t in state.values()) <= 300*n and learned_from(state).keys == learned.keys # a thumbnail alone has 4,096
    assert learned.know(looks_of(d.files('train') + d.files('valid'))).all() and not learned.know(looks_of(d.files('test'))).any()
    for k in state:
        with pytest.raises(InputError, match='learned.safetensors'): learned_from({a: b for a,b in state.items() if a != k})
        with pytest.raises(InputError, match='learned.safetensors'): learned_from(state | {k: torch.zeros(3, 5)})
    both = learned + Learned(complete=False)
    assert not learned_from(learned_state(both)).complete and both.know(looks_of(d.files('train'))).all()
