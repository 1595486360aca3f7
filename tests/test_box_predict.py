"`tl predict` says of images and videos what the learner said of them, in rows, in COCO's results and in drawings."
import csv
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from faster_coco_eval import COCO
from PIL import Image, ImageChops, ImageDraw

from tl_notebooks.cli import main


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    from tl_notebooks.data.boxes import read_boxes
    from tl_notebooks.data.samples import make_scenes
    return read_boxes(make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=12, size=128), progress=False)


@pytest.fixture(scope='module')
def learner(scenes):
    "Random, but always the same: what it finds means nothing and must come out the same on every way"
    from tl_notebooks.learn.detection import detection_learner
    return detection_learner(scenes, backbone='timm/resnet18', weights='random', size=128, channels=64, convs=1, bs=4,
                             views=1, resize='pad')


@pytest.fixture(scope='module')
def model(learner, scenes, tmp_path_factory):
    from tl_notebooks.models.folder import save_model
    return save_model(tmp_path_factory.mktemp('model')/'model', learner.model, learner.info, scenes.classes,
                      head=dict(kind='trained', threshold=LEAST))


LEAST = .0105 # random weights score low


def said(capsys, *args):
    code = main(['predict', *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_rows_and_results_are_what_the_learner_found(model, learner, scenes, capsys):
    from tl_notebooks.learn.detection import boxes_dl
    expected = learner.get_boxes(dl=boxes_dl(scenes, 'test', learner.dls.valid), score=LEAST)
    # not in the padding
    for e in expected: real = (e['boxes'][:, 2:] > e['boxes'][:, :2]).all(1); e |= {k: v[real] for k,v in e.items()}
    files = scenes.files('test')
    assert sum(len(e['boxes']) for e in expected) > 20
    code, out, _ = said(capsys, model, *files, '--format', 'json')
    results = json.loads(out.splitlines()[-1])
    assert code == 0 and len(results) == sum(len(e['boxes']) for e in expected)
    for n, (f, e) in enumerate(zip(files, expected), 1):
        mine = [r for r in results if r['file_name'] == str(f)]
        assert {r['image_id'] for r in mine} == {n}
        xywh = np.array([r['bbox'] for r in mine])
        np.testing.assert_allclose(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), e['boxes'], atol=.05)
        np.testing.assert_allclose([r['score'] for r in mine], e['scores'], atol=1e-4)
        assert [r['category_id'] - 1 for r in mine] == e['labels'].tolist()
        assert [r['category'] for r in mine] == [scenes.classes[k] for k in e['labels']]
    code, out, _ = said(capsys, model, *files, '--bs', '3')
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(r['path'], r['label']) for r in rows] == [(r['file_name'], r['category']) for r in results]
    np.testing.assert_allclose([[float(r[k]) for k in ('score', 'x1', 'y1')] for r in rows],
                               [[r['score'], *r['bbox'][:2]] for r in results], atol=.02)


def test_the_evaluator_reads_the_results(model, scenes, capsys):
    "COCO's own loader accepts the list beside annotations with these ids"
    files = scenes.files('valid')
    results = json.loads(said(capsys, model, *files, '--format', 'json')[1].splitlines()[-1])
    gt = COCO()
    gt.dataset = dict(images=[dict(id=n, file_name=str(f)) for n,f in enumerate(files, 1)], annotations=[],
                      categories=[dict(id=k, name=c) for k,c in enumerate(scenes.classes, 1)])
    gt.createIndex()
    assert len(gt.loadRes(results).anns) == len(results)


def test_threshold_draw_and_what_cannot_be_read(model, scenes, tmp_path, capsys):
    (tmp_path/'in'/'deep').mkdir(parents=True)
    a, b = (Image.open(f) for f in scenes.files('test'))
    a.save(tmp_path/'in'/'a.png'); b.save(tmp_path/'in'/'deep'/'b.bmp'); (tmp_path/'in'/'c.jpg').write_bytes(b'nothing')
    code, out, err = said(capsys, model, tmp_path/'in', '--draw', tmp_path/'out')
    assert code == 1 and 'c.jpg' in err and '1 of 3 files could not be read' in err
    assert [r['path'].endswith('c.jpg') for r in csv.DictReader(io.StringIO(out)) if r['error']] == [True]
    assert sorted(str(p.relative_to(tmp_path/'out')) for p in (tmp_path/'out').rglob('*.*')) == ['a.png', 'deep/b.png']
    rows = [r for r in csv.DictReader(io.StringIO(out)) if r['path'].endswith('a.png')]
    changed = ImageChops.difference(Image.open(tmp_path/'out'/'a.png').convert('RGB'), a.convert('RGB')).convert('L')
    assert len(rows) and changed.getbbox()
    x1, y1, _, y2 = max(([float(r[k]) for k in ('x1', 'y1', 'x2', 'y2')] for r in rows), key=lambda b: b[3] - b[1])
    # the left side of the tallest is drawn
    assert y2 - y1 > 4 and changed.crop((int(x1), int(y1), int(x1) + 3, int(y2))).getbbox()
    high = said(capsys, model, tmp_path/'in'/'a.png', '--threshold', '0.99')
    assert high[:2] == (0, 'path,label,score,x1,y1,x2,y2\n')
    code, out, err = said(capsys, model, tmp_path/'in', '--draw', tmp_path/'out')
    assert (code, out) == (2, '') and 'exists already' in err


def test_each_file_has_a_row_or_a_reason(model, scenes, tmp_path, capsys):
    home = tmp_path/'in'; home.mkdir()
    shutil.copy(scenes.files('test')[0], home/f"a{scenes.files('test')[0].suffix}")
    (home/'a.txt').write_text('no image'); (home/'b.jpg').write_bytes(b'nothing'); (home/'.hidden').write_text('x')
    code, out, err = said(capsys, model, home, '--draw', tmp_path/'out')
    rows = list(csv.DictReader(io.StringIO(out)))
    why = {r['path'].split('/')[-1]: r['error'] for r in rows if r['error']}
    assert code == 1 and why.keys() == {'a.txt', 'b.jpg'}
    assert all('cannot be read as an image' in v for v in why.values())
    assert any(r['score'] and not r['error'] for r in rows) and '2 of 3 files could not be read' in err
    code, out, err = said(capsys, model, home, '--format', 'json')
    assert code == 1 and json.loads(out) and 'a.txt' in err # COCO has no place for reasons
    code, out, err = said(capsys, model, home/'b.jpg')
    assert (code, out) == (2, '') and 'none of 1 input can be read' in err
    code, out, err = said(capsys, model, home/'none.jpg')
    assert (code, out) == (2, '') and 'does not exist' in err
    code, out, err = said(capsys, model, *scenes.files('test')[:1], '--max-pixels', '100')
    assert code == 2 and 'pixels; accepted: 100' in err


def test_slices_find_in_parts_what_is_found_in_pictures_of_their_size(model, scenes, tmp_path, capsys):
    "Four scenes in one image, cut where they meet: each part is one scene, and its boxes move with it"
    four = [Image.open(f).convert('RGB').crop((0, 0, 96, 96)) for f in (scenes.files('train')
            + scenes.files('valid'))[:4]]
    sheet = Image.new('RGB', (192, 192))
    for k,im in enumerate(four): sheet.paste(im, (k % 2*96, k//2*96))
    sheet.save(tmp_path/'sheet.png')
    from tl_notebooks.models.folder import Model
    from tl_notebooks.learn.detection import image_detector
    from tl_notebooks.learn.slices import predict_sliced
    m = Model(model)
    look = image_detector(m.net, 128, 'pad', LEAST)
    parts = predict_sliced(look, sheet, 96, overlap=0, whole=False)
    whole = 0
    for k,f in enumerate(look(four)):
        inside = [(b > 3).all() and (b < 93).all() for b in f['boxes']] # pieces may go
        whole += sum(inside)
        for b in f['boxes'][inside]:
            assert np.abs(parts['boxes'] - (b + np.tile([k % 2*96, k//2*96], 2))).max(1).min() < .01
    assert whole > 10
    code, out, _ = said(capsys, model, tmp_path/'sheet.png', '--slice', '96')
    assert code == 0 and len(out.splitlines()) > 1 and out != said(capsys, model, tmp_path/'sheet.png')[1]


def test_a_folder_that_remembers_parts_is_looked_at_so(model, learner, scenes, tmp_path, capsys):
    from tl_notebooks.models.folder import save_model
    head = dict(kind='trained', threshold=LEAST, slice=dict(size=64, threshold=2*LEAST))
    other = save_model(tmp_path/'model', learner.model, learner.info, scenes.classes, head=head)
    file = scenes.files('test')[0]
    rows = lambda *args: said(capsys, *args)[1]
    assert rows(other, file) == rows(model, file, '--slice', '64', '--threshold', 2*LEAST) != rows(model, file)
    assert rows(other, file, '--slice', '0') == rows(model, file)
    assert len(rows(other, file, '--slice', '0').splitlines()) > 2
    assert 'parts of 64 pixels' in said(capsys, other, file)[2] and not said(capsys, other, file, '--slice', '0')[2]


def test_a_video_is_its_frames(model, scenes, tmp_path, capsys):
    """Frames read back by OpenCV, saved as images, give the same boxes; the drawing has as many frames, and the speed
    is told"""
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
    writer = cv2.VideoWriter(str(tmp_path/'clip.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 12, (128, 98))
    base = np.asarray(Image.open(scenes.files('test')[0]).convert('RGB').resize((128, 98)))
    for i in range(7): writer.write(np.ascontiguousarray(np.roll(base, 4*i, 1)[..., ::-1]))
    writer.release()
    file, frames = cv2.VideoCapture(str(tmp_path/'clip.avi')), []
    while (got := file.read())[0]:
        Image.fromarray(got[1][..., ::-1]).save(tmp_path/f'{len(frames)}.png')
        frames.append(tmp_path/f'{len(frames)}.png')
    code, out, err = said(capsys, model, tmp_path/'clip.avi', '--draw', tmp_path/'out', '--bs', '3')
    assert code == 0 and '7 frames in' in err and 'frames per second' in err
    rows, alone = (list(csv.reader(io.StringIO(o)))[1:] for o in (out, said(capsys, model, *frames)[1]))
    assert len(frames) == 7 and {r[0].split('#')[1] for r in rows} <= {str(i) for i in range(7)}
    assert [r[1] for r in rows] == [r[1] for r in alone]
    np.testing.assert_allclose([[*map(float, r[2:])] for r in rows], [[*map(float, r[2:])] for r in alone], atol=.02)
    drawn = cv2.VideoCapture(str(tmp_path/'out'/'clip.mp4'))
    assert (drawn.get(cv2.CAP_PROP_FRAME_COUNT), drawn.get(cv2.CAP_PROP_FPS)) == (7, 12)
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['clip.mp4']


def test_a_film_is_counted_by_the_minute(model, scenes, tmp_path, capsys):
    "The same frames one by one, counted with pandas, and without what stands at the left"
    cv2 = pytest.importorskip('cv2', reason='OpenCV is not installed')
    film = tmp_path/'clip.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), .1, (128, 98)) # a frame every 10 seconds
    base = np.asarray(Image.open(scenes.files('test')[0]).convert('RGB').resize((128, 98)))
    for i in range(8): writer.write(np.ascontiguousarray(np.roll(base, 4*i, 1)[..., ::-1]))
    writer.release()
    boxes = pd.read_csv(io.StringIO(said(capsys, model, film)[1]))
    for options, boxes in ([], boxes), (['--ignore', '0,0 64,98'], boxes[(boxes.x1 + boxes.x2)/2 > 64]):
        to = tmp_path/f'to{len(options)}'
        code, out, _ = said(capsys, model, film, '--counts', to, *options)
        assert code == 0 and out == (to/'counts.csv').read_text() and (to/'clip.png').is_file()
        found = pd.read_csv(io.StringIO(out)).set_index(['minute', 'kind'])
        minute = boxes.path.str.split('#').str[1].astype(int)//6
        assert found.frames.groupby('minute').first().to_dict() == {0: 6, 1: 2}
        for (m, kind), row in found.iterrows():
            each = boxes[(minute == m) & (boxes.label == kind)].groupby('path').size()
            assert (row.boxes, row['max']) == (each.sum(), each.max() if len(each) else 0)
            assert abs(row['mean'] - each.sum()/row.frames) < 1e-3
    assert len(boxes)
    for options, says in (([film, '--counts', tmp_path/'to0'], 'exists already'),
                          ([scenes.files('test')[0], '--counts', tmp_path/'x'], 'about films'),
                          ([film, '--ignore', '0,0'], 'corners in pixels')):
        code, out, err = said(capsys, model, *options)
        assert (code, out) == (2, '') and says in err and not (tmp_path/'x').exists()


def test_what_is_about_boxes_is_refused_elsewhere(model, tmp_path, capsys):
    from tl_notebooks.models.folder import save_model
    from tl_notebooks.learn.vision import image_net
    net, info = image_net('resnet18', 2, weights='random', size=64)
    plain = save_model(tmp_path/'plain', net, info | dict(resize='squish', precision='fp32'), ['a', 'b'])
    im = Image.new('RGB', (64, 64)); ImageDraw.Draw(im).rectangle([9, 9, 20, 20], fill='red'); im.save(tmp_path/'x.png')
    for option in (['--draw', tmp_path/'o'], ['--threshold', '.5'], ['--slice', '64'], ['--counts', tmp_path/'c'],
                   ['--ignore', '0,0 9,9']):
        code, out, err = said(capsys, plain, tmp_path/'x.png', *option)
        assert (code, out) == (2, '') and 'is about boxes' in err
    for option, says in ((['--threshold', '2'], 'from 0 to 1'), (['--slice', '3'], 'at least 32'),
                         (['--bs', '0'], 'at least 1')):
        code, out, err = said(capsys, model, tmp_path/'x.png', *option)
        assert code == 2 and says in err
