"""Boxes mean the same in every format, everything wrong with them is said at once, copies of an image never stand on
two sides."""
import hashlib
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance

from conftest import need
from tl_notebooks.data.boxes import as_coco, read_boxes, write_coco
from tl_notebooks.data.copies import near_pairs, thumbnail
from tl_notebooks.core import InputError
from tl_notebooks.data.problems import KINDS
from tl_notebooks.data.samples import SCENE_CLASSES, make_scenes, sample_path
from torchvision.ops import box_convert

W, H, NAMES = 96, 64, ('car', 'pedestrian')
COLORS = dict(car=(255, 0, 0), pedestrian=(0, 0, 255))


def noise(seed, size=(W, H)):
    return Image.fromarray(np.random.default_rng(seed).integers(40, 200, (8, 12, 3), 'uint8')).resize(size,
            Image.Resampling.BICUBIC)


def objects(i):
    "Two boxes that do not touch: (class, x1, y1, x2, y2)"
    r = random.Random(i)
    a = [('car', x := r.randint(0, 20), y := r.randint(0, 30), x + r.randint(8, 24), y + r.randint(6, 30)),
         ('pedestrian', x := r.randint(48, 70), y := r.randint(0, 30), x + r.randint(4, 20), y + r.randint(8, 30))]
    return a if i else [('car', 0, 0, W, H)] # the first fills its image, edge to edge


def pictures(folder, n=8):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        im = noise(i)
        for c, *xy in objects(i): ImageDraw.Draw(im).rectangle([xy[0], xy[1], xy[2] - 1, xy[3] - 1], fill=COLORS[c])
        im.save(folder/f'{i}.png')


def coco_dict(n=8):
    boxes = [(i, c, xy) for i in range(n) for c,*xy in objects(i)]
    return dict(images=[dict(id=i + 10, file_name=f'{i}.png', width=W, height=H) for i in range(n)],
                annotations=[dict(id=k, image_id=i + 10, category_id=NAMES.index(c) + 1, iscrowd=0,
                                  bbox=box_convert(torch.tensor(xy), 'xyxy', 'xywh').tolist())
                             for k,(i,c,xy) in enumerate(boxes)],
                categories=[dict(id=k + 1, name=c) for k,c in enumerate(NAMES)])


def coco(root, d=None, n=8):
    pictures(root/'images', n)
    (root/'labels.json').write_text(json.dumps(d or coco_dict(n)))
    return root


def voc(root, n=8):
    pictures(root/'JPEGImages', n); (root/'Annotations').mkdir()
    for i in range(n):
        things = ''.join(
                f'<object><name>{c}</name><difficult>0</difficult><bndbox><xmin>{x1+1}</xmin><ymin>{y1+1}</ymin>'
                f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
                         for c,x1,y1,x2,y2 in objects(i))
        (root/f'Annotations/{i}.xml').write_text(
                f'<annotation><filename>{i}.png</filename><size><width>{W}</width><height>{H}</height></size>'
                f'{things}</annotation>')
    return root


def yolo(root, n=8):
    pictures(root/'images', n); (root/'labels').mkdir()
    for i in range(n):
        rows = [(c, *(box_convert(torch.tensor(xy, dtype=torch.float64), 'xyxy',
                                  'cxcywh')/torch.tensor([W, H, W, H])).tolist()) for c,*xy in objects(i)]
        (root/f'labels/{i}.txt').write_text(''.join(f"{NAMES.index(c)} {' '.join(f'{v:.6f}' for v in v)}\n" for c,
                                                    *v in rows))
    (root/'data.yaml').write_text(f'names: {list(NAMES)}\n')
    return root


def kitti(root, n=8):
    pictures(root/'image_2', n); (root/'label_2').mkdir()
    for i in range(n):
        lines = [f'{c} 0.00 0 -1.57 {x1}.00 {y1}.00 {x2}.00 {y2}.00 1 1 1 0 1 9 0' for c,x1,y1,x2,y2 in objects(i)]
        (root/f'label_2/{i}.txt').write_text('\n'.join([*lines,
                                                        'DontCare -1 -1 -10 1 1 9 9 -1 -1 -1 -1000 -1000 -1000 -10']))
    return root


MAKERS = dict(coco=coco, voc=voc, yolo=yolo, kitti=kitti)


def read(path, *args, **kw): return read_boxes(path, *args, progress=False, **kw)


@pytest.mark.parametrize('name', MAKERS)
def test_every_format_gives_the_pixels_that_were_painted(name, tmp_path):
    "The oracle is the image: the extent of the colour that PIL drew"
    d = read(MAKERS[name](tmp_path))
    assert d.classes == [*NAMES] and len(d.items) == 8 and len(d.boxes) == 15
    for r in d.boxes.itertuples():
        a = np.asarray(Image.open(d.root/d.items.path[r.image]).convert('RGB'))
        ys, xs = np.nonzero((a == COLORS[r.label]).all(-1))
        assert np.allclose([r.x1, r.y1, r.x2, r.y2], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1e-3)


def test_splits_keep_their_shares_and_targets_follow_the_files(tmp_path):
    d = read(coco(tmp_path, n=20, d=coco_dict(20)))
    assert [int((d.items.split == s).sum()) for s in ('train', 'valid', 'test')] == [12, 4, 4]
    for s in ('train', 'valid', 'test'):
        for path, t in zip(d.files(s), d.targets(s)):
            want = [(NAMES.index(c), *xy) for c,*xy in objects(int(path.stem))]
            assert sorted(zip(t['labels'].tolist(), *t['boxes'].T.tolist())) == sorted(want)
    assert read(tmp_path, seed=1).fingerprint != d.fingerprint == read(tmp_path).fingerprint
    assert sum(d.counts()['train'].values()) == sum(len(l) for l in d.labels('train'))


def test_what_is_written_as_coco_is_read_by_others_and_comes_back(tmp_path):
    src = coco_dict(); src['annotations'][3]['iscrowd'] = 1
    d = read(coco(tmp_path/'a', src))
    file = write_coco(d, tmp_path/'a/ours.json')
    again = read(tmp_path/'a', annotations='ours.json')
    assert again.fingerprint == d.fingerprint and as_coco(again) == as_coco(d) == json.loads(file.read_text())
    assert sorted((*a['bbox'], a['iscrowd']) for a in as_coco(again)['annotations']) == sorted((*map(float, a['bbox']),
            a['iscrowd']) for a in src['annotations'])
    assert all(a['area'] == a['bbox'][2]*a['bbox'][3] for a in as_coco(d)['annotations'])
    one = as_coco(d, 'valid')
    assert {a['image_id'] for a in one['annotations']} == {i['id']
                                                           for i in one['images']} and len(
            one['images']) == len(d.files('valid'))
    assert [t['crowd'].sum() for t in d.targets('train')] and sum(len(t['boxes'])
            for t in d.targets('train', crowd=False)) <= sum(len(t['boxes']) for t in d.targets('train'))


def test_the_coco_evaluator_finds_a_perfect_score(tmp_path):
    tools = pytest.importorskip('pycocotools.coco', reason='pycocotools is not installed')
    from pycocotools.cocoeval import COCOeval
    d = read(coco(tmp_path))
    gt = tools.COCO(str(write_coco(d, tmp_path/'all.json')))
    ev = COCOeval(gt, gt.loadRes([{**a, 'score': 1.} for a in as_coco(d)['annotations']]), 'bbox')
    ev.evaluate(); ev.accumulate(); ev.summarize()
    assert ev.stats[0] == 1


# What can be wrong. Each defect changes a good COCO set; `picture` is what skipping leaves out ('' for only a box).

def change(k, **kw): return lambda d, root: d['annotations'][k].update(kw)
DEFECTS = { # name: (change, kind, part of the message, images that go)
    'nan': (change(1, bbox=[float('nan'), 1, 5, 5]), 'bad box', 'annotation id 1', '1'),
    'three': (change(3, bbox=[1, 2, 3]), 'bad box', 'annotation id 3', '2'),
    'swapped': (change(5, bbox=[40, 10, -20, 5]), 'bad box', 'has swapped corners: (40, 10) to (20, 15)', '3'),
    'outside': (change(7, bbox=[80, 10, 40, 20]), 'outside box',
                '(80, 10) to (120, 30); the image has 96 × 64 pixels', '4'),
    'empty': (change(9, bbox=[8, 8, 0, 5]), 'empty box', '(8, 8) to (8, 13) has no area', ''),
    'double': (lambda d, root: d['annotations'].append({**d['annotations'][11], 'id': 900}), 'double box',
               'annotation id 900', ''),
    'category': (change(12, category_id=77), 'no class', 'there is no category id 77', '6'),
    'image': (lambda d, root: d['annotations'].append(dict(id=901, image_id=555, category_id=1, bbox=[1, 1, 2, 2])),
              'missing', 'there is no image id 555', ''),
    'gone': (lambda d, root: d['images'].append(dict(id=99, file_name='no.png')), 'missing', 'no.png: no such image',
             ''),
    'id': (lambda d, root: d['annotations'].append({**d['annotations'][13], 'id': 14, 'bbox': [1, 1, 3, 3]}),
           'used twice', 'annotation id 14 is that of several boxes', '7'),
    'out': (lambda d, root: d['images'].append(dict(id=98, file_name='../../../etc/passwd')), 'outside',
            'leads out of the data', ''),
    'absolute': (lambda d, root: d['images'].append(dict(id=97, file_name='/etc/passwd')), 'outside',
                 'an absolute path', ''),
    'size': (lambda d, root: d['images'][8].update(width=64, height=96), 'other size', 'has 96 × 64 pixels', '8'),
    'damaged': (lambda d, root: (root/'images/9.png').write_bytes((root/'images/9.png').read_bytes()[:90]), 'truncated',
                '9.png', '9'),
    'image id': (lambda d, root: d['images'].append({**d['images'][10], 'file_name': '11.png'}) or d['images'].pop(11),
                 'used twice', 'is that of several images', '10 11'),
}
ALL = 20


def spoil(root, names):
    "A set with these defects, and the images that skipping should leave"
    pictures(root/'images', ALL)
    d = coco_dict(ALL)
    for n in names: DEFECTS[n][0](d, root)
    (root/'labels.json').write_text(json.dumps(d))
    gone = {g for n in names for g in DEFECTS[n][3].split()}
    return root, sorted(f'images/{i}.png' for i in map(str, range(ALL)) if i not in gone)


@pytest.mark.parametrize('name', DEFECTS)
def test_a_defect_is_named_and_skipping_leaves_out_that_and_nothing_else(name, tmp_path):
    root, left = spoil(tmp_path, [name])
    with pytest.raises(InputError) as e: read(root)
    _, kind, part, _ = DEFECTS[name]
    assert part in str(e.value) and f'\n{kind} (' in str(e.value)
    d = read(root, on_bad='skip')
    assert sorted(d.items.path) == left and kind in {p.kind for p in d.problems}
    lost = 1 if kind == 'empty box' else 0
    assert len(d.boxes) == sum(len(objects(int(Path(p).stem))) for p in left) - lost


def test_all_defects_are_in_one_message(tmp_path):
    root, left = spoil(tmp_path, DEFECTS)
    with pytest.raises(InputError) as e: read(root)
    for _, kind, part, _ in DEFECTS.values(): assert part in str(e.value) and f'\n{kind} (' in str(e.value)
    assert sorted(read(root, on_bad='skip').items.path) == left


@pytest.mark.parametrize('seed', range(6))
def test_any_mixture_of_defects(seed, tmp_path):
    names = random.Random(seed).sample([*DEFECTS], 5)
    root, left = spoil(tmp_path, names)
    with pytest.raises(InputError) as e: read(root)
    assert all(DEFECTS[n][2] in str(e.value) for n in names)
    once = read(root, on_bad='skip')
    assert sorted(once.items.path) == left
    assert {p.kind for p in once.problems} >= {DEFECTS[n][1] for n in names} and all(p.kind in KINDS
            for p in once.problems)
    json.dumps(once.as_json(), allow_nan=False)


def test_boxes_are_cut_at_the_edge_when_asked(tmp_path):
    root, _ = spoil(tmp_path, ['outside'])
    d = read(root, clip=True)
    assert len(d.items) == ALL and d.boxes.x2.max() == W and any('cut at the edge: 1' in n for n in d.notes)


@pytest.mark.parametrize('text,part', [('{"images": [], "annotations": [1], "categories": []}',
                                        "'annotations' is no list of objects"),
                                       ('{"images": [], "annotations": [{"bbox": [}\n', 'line 1, column')])
def test_damaged_json_is_named_with_its_line(text, part, tmp_path):
    (tmp_path/'x.json').write_text(text); noise(0).save(tmp_path/'0.png')
    with pytest.raises(InputError, match='x.json') as e: read(tmp_path/'x.json')
    assert part in str(e.value)


@pytest.mark.parametrize('odd', [[1], {'id': 1}, None, True, 'x', 1e400, 10**400])
def test_odd_values_anywhere_are_a_problem_and_no_crash(odd, tmp_path):
    root = coco(tmp_path)
    for part, field in [(p, f) for p in ('images', 'annotations', 'categories')
                        for f in ('id', 'file_name', 'width', 'image_id', 'category_id', 'bbox', 'iscrowd', 'name')]:
        d = coco_dict(); d[part][0][field] = odd
        (root/'labels.json').write_text(json.dumps(d))
        try: data = read(root)
        except InputError as e: assert 'labels.json' in str(e), (part, field) # the place is named
        else:
            assert set(data.boxes.label) <= set(data.classes) and np.isfinite(data.boxes[['x1', 'y1', 'x2',
                    'y2']].to_numpy(float)).all(), (part, field)


@pytest.mark.parametrize('images', [[], [dict(id=1, file_name='no.png')]])
def test_nothing_left_is_said(images, tmp_path):
    pictures(tmp_path, 1)
    (tmp_path/'a.json').write_text(json.dumps(dict(images=images, annotations=[], categories=[])))
    for on_bad in ('error', 'skip'):
        with pytest.raises(InputError, match='there is no box at all'): read(tmp_path, on_bad=on_bad)


YOLO_BAD = {'0 0.5 0.5 nan 0.1': ('bad box', 'line 2'), '0 0.5 0.5 0.1': ('bad box', 'line 2'),
            '9 0.5 0.5 0.1 0.1': ('no class', "'9' is the number of no class"),
            'car 0.5 0.5 0.1 0.1': ('no class', "'car'"), '0 0.5 0.5 -0.1 0.1': ('bad box', 'swapped corners'),
            '0 0.98 0.5 0.2 0.1': ('outside box', 'line 2')}

@pytest.mark.parametrize('line', YOLO_BAD)
def test_a_bad_line_of_yolo_is_named(line, tmp_path):
    root = yolo(tmp_path)
    (root/'labels/1.txt').write_text('0 0.5 0.5 0.1 0.1\n' + line)
    kind, part = YOLO_BAD[line]
    with pytest.raises(InputError) as e: read(root)
    assert 'images/1.png: `labels/1.txt` line 2' in str(
            e.value) and part in str(e.value) and f'\n{kind} (' in str(e.value)
    assert 'images/1.png' not in {*read(root, on_bad='skip').items.path}


def test_outlines_names_and_splits_of_yolo(tmp_path):
    root = yolo(tmp_path)
    (root/'labels/1.txt').write_text('0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75')
    (root/'train.txt').write_text('\n'.join(f'./images/{i}.png' for i in range(6)))
    (root/'val.txt').write_text('images/6.png\nimages/7.png')
    d = read(root, test_pct=0.)
    assert [*map(len, map(d.subset, ('train', 'valid', 'test')))] == [6, 2, 0]
    b = d.boxes[d.boxes.image == 1]
    assert b[['x1', 'y1', 'x2', 'y2']].to_numpy().tolist() == [[W/4, H/4, W*3/4, H*3/4]]
    (root/'data.yaml').unlink()
    with pytest.raises(InputError, match='nothing says what their numbers mean'): read(root)
    (root/'classes.txt').write_text('a\nb\n')
    assert read(root).classes == ['a', 'b']
    (root/'data.yaml').write_text('a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n')
    with pytest.raises(InputError, match='`names` is not understood'): read(root)
    (root/'data.yaml').write_text('names: !!python/object/apply:os.system ["touch boom"]\n')
    with pytest.raises(InputError, match='not YAML'): read(root)


def test_xml_that_grows_or_reaches_out_is_refused(tmp_path):
    root = voc(tmp_path)
    laughs = ''.join(f'<!ENTITY l{i} "{f"&l{i-1};"*10 if i else "ha"}">' for i in range(12))
    (root/'Annotations/1.xml').write_text(f'<!DOCTYPE annotation '
                                          f'[{laughs}]><annotation><filename>&l11;</filename></annotation>')
    (root/'Annotations/2.xml').write_text('<!DOCTYPE a [<!ENTITY x SYSTEM '
                                          '"file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>')
    (root/'Annotations/3.xml').write_text('<annotation>\n<object>\n</annotation>')
    (root/'Annotations/4.xml').write_text((root/'Annotations/4.xml').read_text().replace('4.png', '../../secret/x.png'))
    t = time.time()
    with pytest.raises(InputError) as e: read(root)
    assert time.time() - t < 60 # written out, it would be a million million times `ha`
    for part in ('`Annotations/1.xml` declares a document type', '`Annotations/2.xml` declares',
                 '`Annotations/3.xml` line 3', 'leads out of the data (`Annotations/4.xml`)'):
        assert part in str(e.value)
    assert 'root:' not in str(e.value)
    assert sorted(read(root, on_bad='skip').items.path) == [f'JPEGImages/{i}.png' for i in (0, 5, 6, 7)]


def test_voc_counted_from_zero_is_noticed(tmp_path):
    root = voc(tmp_path)
    f = root/'Annotations/0.xml'
    f.write_text(f.read_text().replace('<xmin>1<', '<xmin>0<').replace('<ymin>1<', '<ymin>0<'))
    d = read(root)
    assert any('counted from 0' in n for n in d.notes) and d.boxes.x1.iloc[1] == objects(1)[0][1] + 1


@pytest.mark.parametrize('a,b', [('coco', 'yolo'), ('voc', 'kitti'), ('yolo', 'kitti')])
def test_two_formats_in_one_folder_are_for_a_person_to_sort_out(a, b, tmp_path):
    MAKERS[a](tmp_path/'a'); MAKERS[b](tmp_path/'b')
    with pytest.raises(InputError) as e: read(tmp_path)
    assert f'`-p format={a}`' in str(e.value) and f'`-p format={b}`' in str(e.value)
    # now it knows; the other's images are strays
    d = read(tmp_path, format=a)
    assert len(d.items) == 8 and any(n.startswith('images that no annotation speaks of, left out: 8') for n in d.notes)


def test_classes_are_mapped_joined_and_dropped(tmp_path):
    root = coco(tmp_path)
    d = read(root, 'vehicle=car')
    assert d.classes == [
            'vehicle'] and len(d.boxes) == 8 and "left out, not being asked for: 7 of 'pedestrian'" in d.notes
    assert read(root, {'thing': ['car', 'pedestrian']}).counts()['train'].keys() == {'thing'}
    assert read(root, 'pedestrian,car').classes == ['pedestrian', 'car']
    with pytest.raises(InputError, match="has no class 'cat'. Did you mean 'car'"): read(root, 'x=cat')


def test_fingerprint_does_not_know_order_but_knows_every_box_and_pixel(tmp_path):
    root, seen = coco(tmp_path), set()
    good = read(root).fingerprint
    d = coco_dict()
    for part in d.values(): random.Random(3).shuffle(part)
    new = {old['id']: k for k,old in enumerate(d['images'])}
    for i in d['images']: i['id'] = new[i['id']]
    for k,a in enumerate(d['annotations']): a |= dict(id=500 - k, image_id=new[a['image_id']])
    (root/'labels.json').write_text(json.dumps(d))
    assert read(root).fingerprint == good
    for k,a in enumerate(d['annotations']):
        for field, value in (('bbox', [*a['bbox'][:2], a['bbox'][2] - .01, a['bbox'][3]]), ('iscrowd', 1)):
            changed = json.loads(json.dumps(d)); changed['annotations'][k][field] = value
            (root/'labels.json').write_text(json.dumps(changed)); seen.add(read(root).fingerprint)
    (root/'labels.json').write_text(json.dumps(d))
    im = Image.open(root/'images/2.png'); im.load(); im.putpixel((90, 60), tuple(v ^ 1 for v in im.getpixel((90, 60))))
    im.save(root/'images/2.png')
    seen.add(read(root).fingerprint)
    assert good not in seen and len(seen) == 2*15 + 1


# Copies

CHANGES = dict(mirror=lambda im: im.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
               upside=lambda im: im.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
               turn=lambda im: im.rotate(90, expand=True),
               half=lambda im: im.resize((208, 160)), crop=lambda im: im.crop((8, 20, 382, 308)),
               bright=lambda im: ImageEnhance.Brightness(im).enhance(.8),
               dull=lambda im: ImageEnhance.Contrast(im).enhance(.7), same=lambda im: im)


def scene(i):
    "A junction of the samples, as large as a camera's"
    return Image.open(sample_path('scenes')/'train'/f'{i + 1:04d}.jpg').resize((416, 320))


@pytest.mark.parametrize('name', CHANGES)
def test_copies_are_found_across_splits(name, tmp_path):
    "The copy is also stored as a JPEG of another quality"
    d = dict(images=[], annotations=[], categories=[dict(id=1, name='thing')])
    for i in range(12):
        split = 'train' if i < 8 else 'valid'
        im = CHANGES[name](scene(3)) if i == 9 else scene(i)
        (tmp_path/split).mkdir(exist_ok=True); im.save(tmp_path/split/f'{i}.jpg', quality=60 + 2*i)
        d['images'].append(dict(id=i, file_name=f'{split}/{i}.jpg'))
        d['annotations'].append(dict(id=i, image_id=i, category_id=1, bbox=[9, 9, 50, 50]))
    (tmp_path/'a.json').write_text(json.dumps(d))
    with pytest.raises(InputError, match=r'train/3.jpg: in train; almost the same image as `valid/9.jpg` in valid'):
        read(tmp_path)
    assert sorted(p.path for p in read(tmp_path, on_bad='skip').problems) == ['train/3.jpg']


def test_two_moments_of_one_camera_are_not_copies():
    a = scene(0)
    moved = a.copy(); ImageDraw.Draw(moved).rectangle([100, 200, 130, 260], fill=(20, 20, 20))
    three = a, moved, ImageEnhance.Brightness(a).enhance(.9)
    assert near_pairs([thumbnail(im) for im in three], [min(im.size) for im in three]).T.tolist() == [[0, 2]]


def test_copies_by_name_stay_on_one_side(tmp_path):
    d, sources = coco_dict(24), {}
    pictures(tmp_path/'images', 24)
    for i,im in enumerate(d['images']):
        name = f"street{i//3}_jpg.rf.{hashlib.md5(str(i).encode()).hexdigest()}.png"
        (tmp_path/'images'/im['file_name']).rename(tmp_path/'images'/name); im['file_name'] = name
    (tmp_path/'a.json').write_text(json.dumps(d))
    for seed in range(5):
        items = read(tmp_path, seed=seed).items
        assert items.groupby(
                'group').split.nunique().max() == 1 and items.group.nunique() == 8 and items.split.nunique() == 3
    for s in ('train', 'valid'): (tmp_path/s).mkdir()
    for i,im in enumerate(d['images']):
        s = 'valid' if i > 15 else 'train' # cuts through the copies of street5
        (tmp_path/'images'/im['file_name']).rename(tmp_path/s/im['file_name'])
        im['file_name'] = f"{s}/{im['file_name']}"
    (tmp_path/'a.json').write_text(json.dumps(d))
    with pytest.raises(InputError, match='made from the same source') as e: read(tmp_path)
    assert '1 problem in 24 images' in str(e.value)


# Real data

def test_street_coco():
    root = need('street_coco')
    with pytest.raises(InputError, match='4 COCO files'): read(root)
    with pytest.raises(InputError) as e: read(root, annotations='_annotations.coco.json')
    assert '1 problem in 403 images' in str(
            e.value) and 'Clases0000_jpg.rf.a968008492a77ec63e8325b8dc137706.jpg: no such image' in str(e.value)
    d = read(root, 'car=Vehiculo,pedestrian=Peaton,cyclist=Moto', annotations='annotations_clean.json', test_pct=0.)
    assert d.counts() == {'train': {'car': 1563, 'pedestrian': 723, 'cyclist': 144},
                          'valid': {'car': 124, 'pedestrian': 41, 'cyclist': 10}, 'test': dict.fromkeys(d.classes, 0)}
    assert d.items[d.items.split == 'train'].group.nunique() == 123 # as its PROVENANCE says
    assert read(root, 'car=Vehiculo,pedestrian=Peaton,cyclist=Moto', annotations='_annotations.coco.json', test_pct=0.,
                on_bad='skip').fingerprint == d.fingerprint


def test_a_test_split_of_street_coco_is_made_of_whole_sources_or_not_at_all():
    "The given splits stay; the name before .rf. tells the source, as PROVENANCE says"
    root, classes = need('street_coco'), 'car=Vehiculo,pedestrian=Peaton,cyclist=Moto'
    kind = dict(classes=classes, annotations='annotations_clean.json')
    made = read(root, **kind)
    d, few = made.merge_small_test(), made.merge_small_test(30)
    def sources(data, split): return [p.name.split('.rf.')[0] for p in data.files(split)]
    given = sorted(p.name.split('.rf.')[0] for p in (root/'valid').glob('*.jpg'))
    for data in (d, few): assert sorted(sources(data, 'valid')) == given
    assert not {*sources(d, 'test')} & {*sources(d, 'train')} and len({*sources(d, 'test')}) == 25
    assert len({*d.families('test')}) == 25 and len({*d.families('valid')}) == 35
    assert not few.files('test') and len(few.files('train')) == 368 and few.made == []
    assert 'no test split is made: it would have 25 distinct images, fewer than 30' in few.notes
    assert few.fingerprint == read(root, test_pct=0., **kind).fingerprint != made.fingerprint
    assert read(root/'train', **kind).made == ['valid', 'test'] and d.fingerprint == made.fingerprint


def test_kitti_sample():
    d = read(need('kitti_sample'), valid_pct=0., test_pct=0.)
    assert d.counts()['train'] == {'Car': 2, 'Cyclist': 1, 'Misc': 1, 'Pedestrian': 1,
                                   'Truck': 1} and 'regions marked DontCare, left out: 4' in d.notes
    assert d.boxes[d.boxes.label == 'Cyclist'][['x1', 'y1', 'x2', 'y2']].to_numpy().tolist() == [[676.60, 163.95,
            688.98, 193.93]]


# Sample scenes

def test_a_set_of_scenes_is_read_without_a_complaint(tmp_path):
    d = read(make_scenes(tmp_path/'s', n=36, size=208))
    assert [len(d.subset(s)) for s in ('train', 'valid', 'test')] == [24, 6, 6] and d.classes == sorted(SCENE_CLASSES)
    assert all(v > 10 for v in d.counts()['train'].values()) and not d.problems
    assert read(make_scenes(tmp_path/'t', n=36, size=208)).fingerprint == d.fingerprint
    whole = read(sample_path('scenes'))
    assert len(whole.items) == 150 and not whole.problems
    assert read(make_scenes(tmp_path/'u')).fingerprint == whole.fingerprint
