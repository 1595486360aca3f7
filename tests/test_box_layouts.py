"""Boxes in the layouts that tools and people leave: each is read right, down to the pixels that were painted, or
refused with a message that says what to do. A row of the table of layouts in the documentation is a test here."""
import json
import math
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from test_boxes import COLORS, H, MAKERS, NAMES, W, coco, coco_dict, kitti, objects, pictures, read, voc, yolo
from tl_notebooks.core import InputError
from tl_notebooks.data.boxes import FORMATS
from tl_notebooks.data.decode import open_image

N = 8


def painted(d):
    "Whether every box is the extent of its class's colour in its own image, and every painted thing has a box"
    for n, r in enumerate(d.items.itertuples()):
        a = np.asarray(Image.open(d.root/r.path).convert('RGB')).astype(int)
        found = d.boxes[d.boxes.image == n]
        for c in NAMES:
            ys, xs = np.nonzero((abs(a - COLORS[c]) < 40).all(-1)) # JPEG too
            boxes = found[found.label == c][['x1', 'y1', 'x2', 'y2']].to_numpy()
            if len(xs) < 30: assert not len(boxes), f'{r.path} has no {c}'; continue
            assert len(boxes) == 1, f'{r.path}: {len(boxes)} of {c}'
            assert np.allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=.6), f'{r.path} {c}'
    return d


def share(x1, y1, x2, y2):
    return f'{(x1 + x2)/2/W:.6f} {(y1 + y2)/2/H:.6f} {(x2 - x1)/W:.6f} {(y2 - y1)/H:.6f}'


def points(*xy): return ' '.join(f'{v/s:.6f}' for v,s in zip(xy, (W, H)*len(xy)))


def corners(x1, y1, x2, y2): return x1, y1, x2, y1, x2, y2, x1, y2


def labels(folder, line=lambda k, *xy: f'{k} {share(*xy)}', n=N, start=0, names=NAMES, name='{}'):
    "Label files as YOLO has them, each line by `line(class, corners)`"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        text = ''.join(line(names.index(c), *xy) + '\n' for c,*xy in objects(i))
        (folder/f'{name.format(i)}.txt').write_text(text)


def scenes(folder, n=N, start=0, name='{}.png'):
    "`pictures` under other numbers and names"
    pictures(folder/'all', start + n)
    for i in range(start, start + n): (folder/'all'/f'{i}.png').rename(folder/name.format(i))
    shutil.rmtree(folder/'all')


def darknet(root, lists='obj.names'):
    scenes(root/'obj'); labels(root/'obj')
    (root/lists).write_text('\n'.join(NAMES) + '\n')
    (root/'train.txt').write_text(''.join(f'data/obj/{i}.png\n' for i in range(6)))
    (root/'valid.txt').write_text('data/obj/6.png\ndata/obj/7.png\n')
    return root


def roboflow(root):
    for k, s in enumerate(('train', 'valid')): scenes(root/s/'images', start=N*k); labels(root/s/'labels', start=N*k)
    (root/'data.yaml').write_text(f'train: ../train/images\nval: ../valid/images\nnc: 2\nnames: {[*NAMES]}\n')
    return root


def coco128(root):
    root = yolo(root)
    (root/'data.yaml').write_text('path: ../datasets/coco128\ntrain: images\nval: images\nnames:\n  0: car\n  '
                                  '1: pedestrian\n')
    return root


def labelimg(root):
    "Two folders, each with images, labels and a list of its own, in the order in which classes were drawn there"
    for k, (s, names) in enumerate((('anna', NAMES), ('ben', NAMES[::-1]))):
        scenes(root/s, start=N*k); labels(root/s, start=N*k, names=names)
        (root/s/'classes.txt').write_text('\n'.join(names) + '\n')
    return root


def backgrounds(root):
    root = yolo(root)
    for i in range(2): Image.new('RGB', (W, H), (90*i, 90, 9)).save(root/f'images/b{i}.png')
    return root


def by_lines(line, more=''):
    def make(root):
        root = yolo(root); labels(root/'labels', line)
        (root/'data.yaml').write_text(f'names: {[*NAMES]}\n{more}')
        return root
    return make


def polygons(root):
    d = coco_dict()
    for a in d['annotations']:
        x, y, w, h = a.pop('bbox')
        a['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return coco(root, d)


def moved(name):
    "COCO whose names are paths of another machine"
    def make(root):
        d = coco_dict()
        for i in d['images']: i['file_name'] = name.format(i['file_name'])
        return coco(root, d)
    return make


def cvat(root):
    pictures(root/'images')
    text = '<annotations><meta><task><labels><label><name>car</name></label></labels></task></meta>'
    for i in range(N):
        text += f'<image id="{i}" name="{i}.png" width="{W}" height="{H}">'
        for c, x1, y1, x2, y2 in objects(i):
            text += (f'<box label="{c}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>' if c == 'car' else
                     f'<polygon label="{c}" points="{x1},{y1};{x2},{y1};{x2},{y2}"/><tag label="day"/>')
        text += '</image>'
    (root/'annotations.xml').write_text(text + '</annotations>')
    return root


def studio(root, short=False):
    "Label Studio's JSON, whole or JSON-MIN, over the files as they were uploaded"
    pictures(root/'pictures'); tasks = []
    for i in range(N):
        drawn = []
        for c, x1, y1, x2, y2 in objects(i):
            of = [100*x1/W, 100*y1/H, 100*x2/W, 100*y2/H]
            value = dict(x=of[0], y=of[1], width=of[2] - of[0], height=of[3] - of[1], rotation=0, rectanglelabels=[c])
            if c != 'car': value = dict(points=[of[:2], [of[2], of[1]], of[2:]], polygonlabels=[c])
            drawn.append(dict(original_width=W, original_height=H, **value) if short else
                         dict(original_width=W, original_height=H, type='labels', value=value))
        image = f'/data/upload/4/7b3f2a1c-{i}.png'
        tasks.append(dict(id=i, image=image, label=drawn) if short else
                     dict(id=i, data=dict(image=image), annotations=[dict(result=drawn, was_cancelled=False)]))
    (root/'export.json').write_text(json.dumps(tasks))
    return root


LAYOUTS = { # a row of the table each: what it is → maker
    'coco': coco, 'coco, outlines only': polygons, 'voc': voc, 'yolo': yolo, 'kitti': kitti, 'cvat': cvat,
    'label studio': studio, 'label studio, min': lambda root: studio(root, short=True),
    'coco128': coco128, 'roboflow': roboflow, 'darknet': darknet,
    'darknet labels': lambda root: darknet(root, '_darknet.labels'), 'labelimg': labelimg, 'backgrounds': backgrounds,
    'outlines': by_lines(lambda k, *xy: f'{k} {points(*corners(*xy))}'),
    'outlines and boxes': by_lines(lambda k, *xy: f'{k} {points(*corners(*xy)) if k else share(*xy)}'),
    'key points, 17 × 3': by_lines(lambda k, x, y, *xy: f'{k} {share(x, y, *xy)} {points(x, y)} 2 0 0 0'
                                   + f' {points(*xy)} 1'*15, 'kpt_shape: [17, 3]\n'),
    'key points, 4 × 2': by_lines(lambda k, *xy: f'{k} {share(*xy)} {points(*corners(*xy))}', 'kpt_shape: [4, 2]\n'),
    'confidences': by_lines(lambda k, *xy: f'{k} {share(*xy)} 0.{90 + k}'),
    'tracks': by_lines(lambda k, *xy: f'{k} {share(*xy)} {k + 7}'),
    'confidences and tracks': by_lines(lambda k, *xy: f'{k} {share(*xy)} 0.91 {k + 1}'),
    'absolute paths': moved('/home/me/pictures/{}'), 'paths of windows': moved('C:\\Users\\me\\{}'),
    'addresses': moved('https://example.org/a/{}?token=1'), 'paths that lead out': moved('..\\..\\media\\4\\{}'),
    'prefixes of label studio': moved('/data/upload/1/0a1b2c3d-{}'), 'local files': moved('/data/local-files/?d=a/{}'),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_layout_is_read_to_the_pixels(name, tmp_path):
    d = painted(read(LAYOUTS[name](tmp_path/'data')))
    numbers = [int(Path(p).stem) for p in d.items.path if Path(p).stem.isdigit()]
    assert d.classes == [*NAMES] and len(numbers) >= N and len(d.boxes) == sum(len(objects(i)) for i in numbers)


def test_a_list_of_classes_counts_for_its_own_folder(tmp_path):
    d = read(labelimg(tmp_path))
    assert any('`ben/classes.txt` pedestrian, car' in n for n in d.notes)
    (tmp_path/'data.yaml').write_text(f'names: {[*NAMES]}\n') # agrees with one of the two only
    with pytest.raises(InputError) as e: read(tmp_path)
    for part in ('`data.yaml` says 0 car, 1 pedestrian', '`ben/classes.txt` says 0 pedestrian, 1 car'):
        assert part in str(e.value)


@pytest.mark.parametrize('other', ['labels/classes.txt', 'classes.txt', 'config/classes.txt', 'old.yaml', 'x.names'])
def test_lists_of_classes_that_disagree_are_both_named(other, tmp_path):
    root = yolo(tmp_path); (root/other).parent.mkdir(exist_ok=True)
    swapped = f'names: {[*NAMES[::-1]]}\n' if other.endswith('yaml') else '\n'.join(NAMES[::-1])
    (root/other).write_text(swapped)
    with pytest.raises(InputError) as e: read(root)
    assert '`data.yaml` says 0 car, 1 pedestrian' in str(e.value) and f'`{other}` says 0 pedestrian' in str(e.value)
    (root/other).write_text(swapped.replace('pedestrian', 'x').replace('car', 'pedestrian').replace('x', 'car'))
    assert len(painted(read(root)).items) == N # agrees now


def test_a_data_yaml_that_is_named_wins_over_its_like(tmp_path):
    root = yolo(tmp_path); (root/'old.yaml').write_text(f'names: {[*NAMES[::-1]]}\n')
    painted(read(root/'data.yaml'))


NAMES_OF = {'{"0": car, "1": pedestrian}': ['car', 'pedestrian'], '[no, 1]': ['1', 'no'], '[on, 1.0]': ['1.0', 'on'],
            '\n- car\n- pedestrian': ['car', 'pedestrian']}

@pytest.mark.parametrize('text', NAMES_OF)
def test_names_are_text_whatever_yaml_makes_of_them(text, tmp_path):
    root = yolo(tmp_path); (root/'data.yaml').write_text(f'names: {text}\n')
    assert read(root).classes == NAMES_OF[text]


@pytest.mark.parametrize('text,found', [('"car pedestrian"', "'car pedestrian'"),
                                        ('\n  0:car\n  1:bike', "'0:car 1:bike'"),
                                        ('[[a], [b]]', 'a list or mapping of other things')])
def test_names_that_are_none_are_shown(text, found, tmp_path):
    root = yolo(tmp_path); (root/'data.yaml').write_text(f'names: {text}\n')
    with pytest.raises(InputError) as e: read(root)
    assert found in str(e.value) and 'with a space after the colon' in str(e.value)
    (root/'data.yaml').write_text('train: images\nnc: 2\n')
    with pytest.raises(InputError, match='`data.yaml` has no `names`'): read(root)


def test_a_blank_line_keeps_the_numbers_of_those_below_it(tmp_path):
    root = yolo(tmp_path); (root/'data.yaml').unlink()
    (root/'classes.txt').write_text('\ncar\npedestrian\n\n')
    with pytest.raises(InputError, match="'0' is the number of no class"): read(root)


def test_the_same_folder_for_train_and_val_is_no_split(tmp_path):
    d = read(coco128(tmp_path))
    assert d.made == ['valid', 'test'] and any('same images for train and for valid' in n for n in d.notes)
    (tmp_path/'images/val').mkdir(); Image.new('RGB', (W, H)).save(tmp_path/'images/val/x.png')
    (tmp_path/'labels/val').mkdir(); (tmp_path/'labels/val/x.txt').write_text('0 .5 .5 .1 .1')
    (tmp_path/'data.yaml').write_text('train: images\nval: images/val\nnames: [car, pedestrian]\n')
    with pytest.raises(InputError, match='images/val/x.png: `data.yaml` has it in train and in valid'): read(tmp_path)


# Lines of many numbers

DOUBTFUL = { # what stays open: lines, what data.yaml may say about it
    'key points': lambda k, x, y, *xy: f'{k} {share(x, y, *xy)} {points(x, y)} {points(*xy)}',
    'key points that may be hidden': lambda k, x, y, *xy: f'{k} {share(x, y, *xy)} {points(x, y)} 2 0 0 0',
    'one key point': lambda k, x, y, *xy: f'{k} {share(x, y, *xy)} {points(x, y)}',
    'confidence first': lambda k, *xy: f'{k} 0.55 {share(*xy)}', 'track first': lambda k, *xy: f'{k} 3 {share(*xy)}',
    'angle': lambda k, *xy: f'{k} {share(*xy)} 1.57', 'outline and confidence': lambda k, *xy: (
            f'{k} {points(*corners(*xy))} 0.9'),
    'key points and confidences, 17 × 3': lambda k, x, y, *xy: f'{k} {share(x, y, *xy)}' + f' {points(x, y)} 0.8'*17
            + ' 0.91',
    'key points with confidences, 4 × 3': lambda k, x, y, *xy: f'{k} {share(x, y, *xy)}' + f' {points(*xy)} 0.77'*4,
    'key points beyond the box, 4 × 2': lambda k, *xy: f'{k} {share(*xy)} {points(*corners(5, 5, 90, 60))}',
    'key points beside plain boxes': lambda k, *xy: f'{k} {share(*xy)}' + f' {points(*xy)} {points(9, 9, *xy)}'*k,
    'faces without landmarks': lambda k, *xy: f'{k} {share(*xy)}' + (' -1'*10 if k else f' {points(*xy[:2])}'*5),
    'two confidences': lambda k, *xy: f'{k} {share(*xy)} 0.8 0.93',
}

@pytest.mark.parametrize('name', DOUBTFUL)
def test_numbers_that_may_mean_two_things_are_refused(name, tmp_path):
    root = by_lines(DOUBTFUL[name])(tmp_path)
    for f in (root/'labels/0.txt', root/'images/0.png'): f.unlink() # fills its image, as no second thing could
    with pytest.raises(InputError) as e: read(root)
    assert 'numbers after the class' in str(e.value) and '`labels/1.txt` line ' in str(e.value)


@pytest.mark.parametrize('n', [3, 5, 12])
def test_outlines_of_any_length_are_their_extent(n, tmp_path):
    def line(k, x1, y1, x2, y2):
        round_ = [v for a in np.arange(n)*2*math.pi/n for v in ((x1 + x2)/2 + (x2 - x1)/2*math.cos(a),
                                                               (y1 + y2)/2 + (y2 - y1)/2*math.sin(a))]
        return f'{k} {points(x1, y1, x2, y2, *round_[:2*n - 4])}'
    painted(read(by_lines(line)(tmp_path)))


def test_outlines_of_many_lengths_are_outlines_wherever_they_lie(tmp_path):
    "All in the upper left, where two of their points could be a box"
    root = yolo(tmp_path)
    for i in range(N):
        more = [(.2 + .01*j, .3 + .02*j) for j in range(i % 4)]
        outline = [(.2, .2), (.3, .21), (.31, .3), *more]
        (root/f'labels/{i}.txt').write_text('0 ' + ' '.join(f'{v:.4f}' for xy in outline for v in xy))
    d = read(root)
    assert any(f'outlines taken by their extent: {N}' in n for n in d.notes)
    assert np.allclose(d.boxes[['x1', 'y1', 'x2']], [.2*W, .2*H, .31*W])


def test_key_points_stated_obey_their_shape(tmp_path):
    root = by_lines(DOUBTFUL['key points'], 'kpt_shape: [2, 2]\n')(tmp_path)
    painted(read(root))
    (root/'data.yaml').write_text(f'names: {[*NAMES]}\nkpt_shape: [3, 2]\n')
    with pytest.raises(InputError, match=r'line 1 \(8 numbers\)'): read(root)
    (root/'data.yaml').write_text(f'names: {[*NAMES]}\nkpt_shape: many\n')
    with pytest.raises(InputError, match="`kpt_shape` is 'many'"): read(root)


def test_a_damaged_line_is_a_line_and_not_another_form(tmp_path):
    root = yolo(tmp_path)
    (root/'labels/1.txt').write_text('0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n')
    with pytest.raises(InputError, match=r'images/1.png: `labels/1.txt` line 1 \(7 numbers\)'): read(root)
    (root/'labels/1.txt').write_text('0 0,5 0,5 0,1 0,1\n')
    with pytest.raises(InputError, match='decimal commas'): read(root)


# Which image?

def test_a_voc_file_that_is_called_like_one_image_and_names_another(tmp_path):
    root = voc(tmp_path)
    f = root/'Annotations/3.xml'; f.write_text(f.read_text().replace('>3.png<', '>5.png<'))
    with pytest.raises(InputError, match=r"JPEGImages/3.png: `Annotations/3.xml` .* `JPEGImages/5.png`: which of the"):
        read(root)
    d = painted(read(root, on_bad='skip'))
    assert 'JPEGImages/3.png' not in {*d.items.path} and 'JPEGImages/5.png' in {*d.items.path}
    (root/'Annotations/5.xml').unlink() # now 5.png might have the boxes of 3.xml; it is no background
    assert not {'JPEGImages/3.png', 'JPEGImages/5.png'} & {*painted(read(root, on_bad='skip')).items.path}


def test_a_voc_file_whose_own_name_two_images_have(tmp_path):
    root = voc(tmp_path); shutil.copy(root/'JPEGImages/3.png', root/'JPEGImages/3.bmp')
    d = read(root) # says 3.png
    assert len(d.items) == N and 'JPEGImages/3.bmp' not in {*d.items.path}
    f = root/'Annotations/3.xml'; text = f.read_text(); f.write_text(text.replace('>3.png<', '>5.png<'))
    with pytest.raises(InputError, match=r"`Annotations/3.xml` .* `JPEGImages/5.png`: which of the"): read(root)
    f.write_text(text.replace('>3.png<', '>3<'))
    with pytest.raises(InputError, match=r"could be 'JPEGImages/3.bmp', 'JPEGImages/3.png'"): read(root)


@pytest.mark.parametrize('name', ['{}.jpg', '{}', 'C:\\Users\\me\\{}.png', '/home/me/{}.png', '../{}.png',
                                  '7b3f2a1c-{}.png'])
def test_a_voc_file_may_name_its_image_by_another_path(name, tmp_path):
    root = voc(tmp_path)
    for i in range(N):
        f = root/f'Annotations/{i}.xml'
        f.write_text(f.read_text().replace(f'>{i}.png<', f'>{name.format(i)}<'))
    painted(read(root))


def test_labels_of_the_left_camera_are_not_for_the_right_one(tmp_path):
    root = kitti(tmp_path); shutil.copytree(root/'image_2', root/'image_3')
    for f in (root/'image_3').iterdir(): Image.new('RGB', (W, H), (int(f.stem)*20, 50, 50)).save(f)
    d = painted(read(root))
    assert len(d.items) == N and all(p.startswith('image_2/') for p in d.items.path)
    (root/'image_2/3.png').unlink()
    with pytest.raises(InputError, match='label_2/3.txt: there is no image'): read(root)


def test_an_image_that_is_missing_is_not_one_of_the_same_name_elsewhere(tmp_path):
    d = coco_dict(); root = tmp_path
    for i in d['images']: i['file_name'] = '/home/me/data/train/' + i['file_name']
    for s in ('train', 'val'): pictures(root/s)
    (root/'train.json').write_text(json.dumps(d))
    painted(read(root))
    (root/'train/3.png').unlink()
    with pytest.raises(InputError, match='/home/me/data/train/3.png'): read(root)
    for i in d['images']: i['file_name'] = i['file_name'].split('/')[-1]
    (root/'train.json').write_text(json.dumps(d))
    with pytest.raises(InputError, match='train/3.png: no such image'): read(root)


def test_names_that_fit_two_folders_are_refused(tmp_path):
    root = coco(tmp_path); shutil.copytree(root/'images', root/'more')
    with pytest.raises(InputError, match="any of 2 folders: 'images', 'more'"): read(root)


def test_another_augmented_copy_is_not_the_one_that_is_missing(tmp_path):
    d = coco_dict(); pictures(tmp_path)
    for k, i in enumerate(d['images']):
        name = f'{k}_png.rf.{"0a"*16}.png'
        (tmp_path/f'{k}.png').rename(tmp_path/name); i['file_name'] = name
    (tmp_path/f'3_png.rf.{"0a"*16}.png').rename(tmp_path/f'3_png.rf.{"0b"*16}.png')
    (tmp_path/'a.json').write_text(json.dumps(d))
    with pytest.raises(InputError, match='3_png.rf.0a.*: no such image'): read(tmp_path)


@pytest.mark.parametrize('kind', ['coco', 'voc', 'yolo', 'kitti'])
def test_accents_are_the_same_however_a_system_writes_them(kind, tmp_path):
    nfc, nfd = (unicodedata.normalize(f, 'Grün') for f in ('NFC', 'NFD'))
    root = MAKERS[kind](tmp_path/'data')
    for f in [*root.rglob('*')]:
        if f.suffix == '.png': f.rename(f.with_name(f'{nfd}{f.stem}{f.suffix}'))
        elif f.parent.name in ('labels', 'label_2', 'Annotations'): f.rename(f.with_name(nfc + f.name))
    for f in [*root.rglob('*.xml'), *root.rglob('*.json')]:
        text = f.read_text()
        for i in range(N): text = text.replace(f'"{i}.png"', f'"{nfc}{i}.png"').replace(f'>{i}.png<', f'>{nfc}{i}.png<')
        f.write_text(text)
    d = read(root)
    assert len(d.items) == N and len(d.boxes) == 2*N - 1 and not d.problems
    for p, t in zip(d.items.path, d.boxes.groupby('image')):
        want = [tuple(map(float, xy)) for _,*xy in objects(int(p[:-4].split('n')[-1]))]
        assert np.allclose(sorted(map(tuple, t[1][['x1', 'y1', 'x2', 'y2']].to_numpy())), sorted(want), atol=1e-3)


def test_litter_of_a_mac_is_no_data(tmp_path):
    root = yolo(tmp_path); (root/'__MACOSX/labels').mkdir(parents=True)
    (root/'__MACOSX/labels/1.txt').write_text('0 .5 .5 .1 .1'); (root/'__MACOSX/data.yaml').write_text('names: [x]')
    shutil.copy(root/'images/1.png', root/'__MACOSX/labels'); (root/'labels/._1.txt').write_bytes(b'\0\5\x16')
    assert len(painted(read(root)).items) == N


# Images that nothing speaks of

def test_images_without_a_label_are_backgrounds_for_yolo_and_left_out_elsewhere(tmp_path):
    d = read(backgrounds(tmp_path/'y'))
    assert len(d.items) == N + 2 and any(n.startswith('images without a file of labels, taken to show nothing: 2')
                                         for n in d.notes)
    (tmp_path/'y/docs').mkdir(); Image.new('RGB', (50, 50)).save(tmp_path/'y/docs/shot.png')
    assert len(read(tmp_path/'y').items) == N + 2 # lies where no images of the data are
    for make in (coco, voc, kitti):
        root = make(tmp_path/make.__name__); home = next(root.rglob('1.png')).parent
        Image.new('RGB', (W, H), 'green').save(home/'new.png')
        d = painted(read(root))
        assert len(d.items) == N
        assert any(n.startswith('images that no annotation speaks of, left out: 1') and 'new.png' in n for n in d.notes)


def test_a_split_without_any_label_is_no_set_of_backgrounds(tmp_path):
    root = roboflow(tmp_path); shutil.rmtree(root/'valid/labels')
    d = read(root)
    assert len(d.items) == N and any('left out: 8' in n for n in d.notes)


# What else is offered

def turned(root, turn):
    "Images with an EXIF orientation, pixels and boxes as they were"
    for f in [*root.rglob('*.png')]:
        exif = Image.Exif(); exif[0x0112] = turn
        with Image.open(f) as im: im.load()
        im.save(f, exif=exif)
    return root


@pytest.mark.parametrize('turn', range(2, 9))
@pytest.mark.parametrize('make', [coco, yolo, voc])
def test_boxes_on_images_that_exif_turns(make, turn, tmp_path):
    root = turned(make(tmp_path), turn)
    with pytest.raises(InputError) as e: read(root)
    assert f'1.png: its EXIF orientation ({turn}) turns it' in str(e.value) and '`-p exif=stored`' in str(e.value)
    known = make is not yolo and turn >= 5 # the stated size tells
    assert ('so the boxes were drawn before that' in str(e.value)) == known
    d = read(root, exif='stored')
    for n, r in enumerate(d.items.itertuples()):
        a = np.asarray(open_image(d.root/r.path))
        for b in d.boxes[d.boxes.image == n].itertuples():
            ys, xs = np.nonzero((a == COLORS[b.label]).all(-1))
            assert np.allclose([b.x1, b.y1, b.x2, b.y2], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=.01)


def test_boxes_on_upright_images_are_told_by_the_stated_size(tmp_path):
    root = coco(tmp_path); d = coco_dict()
    for f in [*root.rglob('*.png')]: # what a phone stores of this scene: turned back, and how to turn it
        exif = Image.Exif(); exif[0x0112] = 6
        with Image.open(f) as im: im.transpose(Image.Transpose.ROTATE_90).save(f, exif=exif)
    assert read(root).boxes.equals(read(coco(tmp_path/'plain')).boxes)
    for i in d['images']: del i['width'], i['height']
    (root/'labels.json').write_text(json.dumps(d)); shutil.rmtree(root/'plain')
    with pytest.raises(InputError, match='nothing says whether'): read(root)
    assert len(read(root, exif='upright').boxes) == 2*N - 1


@pytest.mark.parametrize('text,part', [
    ('{"version": "5", "shapes": [], "imagePath": "0.png"}', 'in the format of labelme'),
    ('{"_via_img_metadata": {}}', 'in the format of VGG Image Annotator')])
def test_other_formats_are_named(text, part, tmp_path):
    pictures(tmp_path, 1); (tmp_path/'0.json').write_text(text)
    with pytest.raises(InputError, match=part): read(tmp_path)
    (tmp_path/'0.json').unlink(); (tmp_path/'labels.zip').write_bytes(b'PK\5\6')
    with pytest.raises(InputError, match='`labels.zip` is an archive: unpack it first'): read(tmp_path)
    with pytest.raises(InputError, match='unpack it first'): read(tmp_path/'labels.zip')


def test_tracks_of_cvat_are_refused_and_other_shapes_are_told(tmp_path):
    root = cvat(tmp_path); f = root/'annotations.xml'; text = f.read_text()
    f.write_text(text.replace('<box label="car"', '<polyline label="car" points="1,1;2,2"/><box label="car"', 1))
    assert "left out, being no boxes: 1 of 'polyline'" in read(root).notes
    f.write_text(text.replace('</annotations>', '<track id="0" label="car"/></annotations>'))
    with pytest.raises(InputError, match='CVAT for video. Export the task as CVAT for images, COCO or YOLO'): read(root)


def test_a_box_without_a_class_is_a_problem(tmp_path):
    root = cvat(tmp_path/'c'); f = root/'annotations.xml'
    f.write_text(f.read_text().replace('<box label="car"', '<box label=""', 1))
    with pytest.raises(InputError, match='0.png: `annotations.xml` image id 0 box 1 has no name of a class'): read(root)
    root = voc(tmp_path/'v'); f = root/'Annotations/1.xml'
    f.write_text(f.read_text().replace('<name>car</name>', '', 1))
    with pytest.raises(InputError, match='1.png: `Annotations/1.xml` object 1 has no name of a class'): read(root)


def test_boxes_that_are_turned_are_their_extent(tmp_path):
    root = cvat(tmp_path); f = root/'annotations.xml'
    _, x1, y1, x2, y2 = objects(1)[0]
    box = f'xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"'
    assert box in f.read_text()
    mx, my, w, h = (x1 + x2)/2, (y1 + y2)/2, x2 - x1, y2 - y1 # the same extent, before a quarter of a turn
    f.write_text(f.read_text().replace(box, f'xtl="{mx - h/2}" ytl="{my - w/2}" xbr="{mx + h/2}" ybr="{my + w/2}" '
                                            'rotation="90"', 1))
    painted(read(root))


def test_tasks_that_nobody_finished_or_two_did(tmp_path):
    root = studio(tmp_path); f = root/'export.json'; tasks = json.loads(f.read_text())
    tasks[1]['annotations'] = []; tasks[2]['annotations'][0]['was_cancelled'] = True
    f.write_text(json.dumps(tasks))
    d = painted(read(root))
    assert len(d.items) == N - 2 and 'tasks that nobody annotated, left out: 2' in d.notes
    tasks[3]['annotations'] *= 2; f.write_text(json.dumps(tasks))
    with pytest.raises(InputError, match='task 3 has 2 annotations'): read(root)


def test_what_messages_offer_exists_in_the_use_case():
    from tl_notebooks.runs.params import find_usecase, usecase_params
    spec = usecase_params(find_usecase('crossing'))
    assert {'format', 'clip', 'exif', 'annotations', 'on_bad', 'max_pixels', 'group'} <= spec.keys()
    assert spec['format'].choices == ('auto', *FORMATS) and spec['clip'].type == 'bool'


def test_two_formats_are_told_apart_by_format(tmp_path):
    voc(tmp_path)
    labels(tmp_path/'JPEGImages'); (tmp_path/'JPEGImages/classes.txt').write_text('\n'.join(NAMES))
    with pytest.raises(InputError, match='`-p format=voc` or `-p format=yolo`'): read(tmp_path)
    for kind in ('voc', 'yolo'): painted(read(tmp_path, format=kind))


def test_links_are_followed(tmp_path):
    "What DVC leaves: files, or folders, that are links to places elsewhere"
    root, cache, data = yolo(tmp_path/'all'), tmp_path/'cache', tmp_path/'data'
    cache.mkdir()
    for k, f in enumerate(sorted(f for f in root.rglob('*') if f.is_file())):
        f.rename(cache/str(k)); to = data/f.relative_to(root)
        to.parent.mkdir(parents=True, exist_ok=True); to.symlink_to(cache/str(k))
    assert len(painted(read(data)).items) == N == len(painted(read(data/'data.yaml')).items)
    (tmp_path/'linked').symlink_to(data)
    assert len(painted(read(tmp_path/'linked')).items) == N
    coco(tmp_path/'c'); (tmp_path/'d').mkdir()
    for n in ('images', 'labels.json'): (tmp_path/'d'/n).symlink_to(tmp_path/'c'/n)
    assert len(painted(read(tmp_path/'d')).items) == N == len(painted(read(tmp_path/'d/labels.json')).items)


def test_thumbnails_are_no_backgrounds(tmp_path):
    root = yolo(tmp_path)
    for i in range(3):
        with Image.open(root/f'images/{i}.png') as im: im.resize((24, 16)).save(root/f'images/{i}_thumb.png')
    assert len(painted(read(root)).items) == N


ODD = [[1], [[1], 2], {'id': 1}, None, True, 'x', '', 1e400, -1, 0, 10**400]

@pytest.mark.parametrize('odd', ODD, ids=range(len(ODD)))
@pytest.mark.parametrize('short', [False, True])
def test_odd_values_in_label_studio_are_a_problem_and_no_crash(odd, short, tmp_path):
    root = studio(tmp_path, short); f = root/'export.json'
    def places(v, way=()):
        if way: yield way
        for k, w in (v.items() if isinstance(v, dict) else enumerate(v) if isinstance(v, list) else ()):
            yield from places(w, (*way, k))
    for way in places(json.loads(f.read_text())[1:2], ()):
        tasks = json.loads(f.read_text())
        at = tasks[1:2]; part = at
        for k in way[:-1]: part = part[k]
        part[way[-1]] = odd
        (root/'odd.json').write_text(json.dumps([tasks[0], *at, *tasks[2:]]))
        try: d = read(root, annotations='odd.json')
        except InputError: continue
        assert np.isfinite(d.boxes[['x1', 'y1', 'x2', 'y2']].to_numpy(float)).all(), way


@pytest.mark.parametrize('odd', ['', 'x', 'nan', '-5', '1e999', '1,2;;3'])
def test_odd_values_in_cvat_are_a_problem_and_no_crash(odd, tmp_path):
    root = cvat(tmp_path); text = (root/'annotations.xml').read_text()
    for attribute in ('id', 'name', 'width', 'label', 'xtl', 'ybr', 'points'):
        good = text.split(f' {attribute}="')
        (root/'annotations.xml').write_text(f' {attribute}="'.join([good[0], odd + '"' + good[1].split('"', 1)[1],
                                                                    *good[2:]]))
        try: d = read(root)
        except InputError: continue
        assert np.isfinite(d.boxes[['x1', 'y1', 'x2', 'y2']].to_numpy(float)).all(), attribute


def test_images_of_few_bits_are_not_black(tmp_path):
    "A camera of 12 bits stores them in 16: what the network gets is what 8 bits of the same scene give"
    from tl_notebooks.learn.detection import BoxSet
    for name, scale in (('eight', 1), ('twelve', 16)):
        root = coco(tmp_path/name)
        for f in (root/'images').iterdir():
            grey = np.asarray(Image.open(f).convert('L'))
            Image.fromarray(grey.astype('uint16')*scale if scale > 1 else grey).save(f)
    a, b = (read(tmp_path/n) for n in ('eight', 'twelve'))
    assert (a.depth, b.depth) == (0, 12) and any('use 12 of them' in n for n in b.notes)
    for one, other in zip(BoxSet(a, 'train', 64), BoxSet(b, 'train', 64)): assert (one[0] == other[0]).all()
    assert BoxSet(a, 'train', 64)[0][0].max() > 50
