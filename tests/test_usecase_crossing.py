"The crossing use case, through a real papermill kernel: what a run leaves, that it repeats, and what is refused."
import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import page as text_of, record, tl
from tl_notebooks.data.samples import make_scenes

QUICK = ['-p', 'size=96', '-p', 'bs=4', '-p', 'epochs=2', '-p', 'views=2', '-p', 'thaw=1', '-p', 'precision=fp32', '-p',
         'threads=1', '-p', 'slices=0']


def unsplit(root, n, size):
    "Junctions in one folder, with nothing that says which of them are for what"
    from tl_notebooks.data.boxes import as_coco, read_boxes
    from tl_notebooks.core import write_json
    made = read_boxes(make_scenes(root/'made', n=n, size=size), min_per_class=1, progress=False)
    coco, flat = as_coco(made), root/'flat'
    flat.mkdir()
    for i in coco['images']:
        to = f"{i['id']:03}{Path(i['file_name']).suffix}"
        shutil.copy(made.root/i['file_name'], flat/to)
        i |= {'file_name': to}; del i['split']
    write_json(flat/'boxes.json', coco)
    return flat


@pytest.fixture(scope='module')
def scenes(tmp_path_factory): return unsplit(tmp_path_factory.mktemp('scenes'), 24, 160)


@pytest.fixture(scope='module')
def run(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')
    done = tl('run', 'crossing', '--data', scenes, '--out', out, '--seed', 5, *QUICK, '-p', 'control=yes', cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


def test_a_run_leaves_figures_with_intervals_and_a_control(run):
    rec = record(run)
    assert rec['status'] == 'ok' and next(iter(rec['metrics'])) == 'map50' and next(iter(rec['control'])) == 'map50'
    for m in [*rec['metrics'].values(), *rec['control'].values()]:
        assert 0 <= m['low'] <= m['value'] <= m['high'] <= 1 and m['n'] > 0
    assert {f'map50/{c}' for c in ('car', 'pedestrian', 'cyclist')} <= rec['metrics'].keys()
    assert 0 < rec['threshold'] < 1 and sum(rec['outcomes'].values()) > 0 and len(rec['losses']) == 2
    assert rec['losses'][-1]['train'] < rec['losses'][0]['train'] and rec['frozen'][0]['views'] == 2
    assert {p.stem for p in (run/'figures').iterdir()} >= {'samples', 'counts', 'augmented', 'map50', 'classes',
                                                           'curves', 'confusion', 'mistakes'}
    page = (run/'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and 'tl run crossing --data' in page
    shown = text_of(run/'mistakes.html')
    said = re.findall('<img alt="[^"]*(missed|false alarm|confused)', shown)
    assert shown.count('<figure') == len(said) > 1


def page_and_output(run):
    "The report without its images, and what the notebook printed"
    page = text_of(run/'report.html')
    cells = json.loads((run/'notebook.ipynb').read_text())['cells']
    return page, ''.join(''.join(o.get('text', '')) for c in cells for o in c.get('outputs', []))


def test_few_pictures_are_judged_on_validation_and_every_place_says_so(run, scenes):
    "24 images leave no ten for a test; nothing calls what judged a test"
    from tl_notebooks.data.boxes import read_boxes
    rec, (page, printed) = record(run), page_and_output(run)
    assert rec['judged_on'] == 'valid' and not any(rec['data']['counts']['test'].values())
    n = rec['metrics']['map50']['n']
    assert f'map50 on {n} validation images' in page and f'on {n} validation images with 95' in page
    assert ' test images' not in page.replace('No test images', '')
    assert re.search(r'judged on \d+ validation images, with thresholds of', printed)
    assert 'no test split is made' in printed
    assert rec['valid'] == rec['metrics']
    boxes = read_boxes(scenes, seed=5, progress=False).merge_small_test().targets('valid', crowd=False)
    seen = sum(rec['outcomes'][k] for k in ('hits', 'confused', 'missed'))
    assert seen == sum(len(t['labels']) for t in boxes) # each once


def test_more_pictures_are_judged_on_a_test_split_and_validation_stands_beside(tmp_path):
    data = unsplit(tmp_path, 56, 128)
    quick = [q.replace('epochs=2', 'epochs=1') for q in QUICK]
    done = tl('run', 'crossing', '--data', data, '--out', tmp_path, *quick, '-p', 'control=no', cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(done.stdout.strip().splitlines()[-1])
    rec, (page, printed) = record(folder), page_and_output(folder)
    assert rec['judged_on'] == 'test' and f"map50 on {rec['metrics']['map50']['n']} test images" in page
    assert not re.search(r'\d validation images', page) and re.search(r'judged on \d\d test images\n', printed)
    assert rec['valid'].keys() >= {'map50', 'map', 'map50/car'} and rec['valid']['map50'] != rec['metrics']['map50']
    for m in rec['valid'].values():
        assert {*m} == {'value', 'low', 'high', 'n'} and 0 <= m['low'] <= m['value'] <= m['high'] <= 1


def test_its_model_loads_and_answers(run, scenes):
    import tl_notebooks # noqa: F401
    import torch
    from tl_notebooks.models.folder import Model
    from tl_notebooks.core import hash_state
    model = Model(run/'model')
    assert model.manifest['task'] == 'boxes' and model.manifest['head']['threshold'] == record(run)['threshold']
    assert hash_state(model.net.state_dict()) == record(run)['model']['artifact_sha256']
    found = model.net.detect(model.net(torch.zeros(1, 3, 96, 96, dtype=torch.uint8)))
    assert [*found[0]] == ['boxes', 'scores', 'labels']


def test_a_detector_that_looks_at_parts_is_judged_as_it_will_answer(tmp_path):
    "COCO's evaluator says of the boxes that `tl predict` gives what the run says of itself"
    from faster_coco_eval import COCO, COCOeval_faster
    from tl_notebooks.data.boxes import read_boxes
    data = unsplit(tmp_path, 24, 160)
    quick = [q.replace('slices=0', 'slices=96').replace('epochs=2', 'epochs=1') for q in QUICK]
    done = tl('run', 'crossing', '--data', data, '--out', tmp_path, '--seed', 5, *quick, '-p', 'control=no',
              cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = Path(done.stdout.strip().splitlines()[-1])
    rec, head = record(run), json.loads((run/'model'/'manifest.json').read_text())['head']
    assert head['slice']['size'] == rec['slices']['size'] == 96 and head['slice']['threshold'] == rec['threshold']
    assert rec['whole_images']['map'] != rec['metrics']['map']
    assert 'parts of 96 pixels' in text_of(run/'report.html')
    boxes = read_boxes(data, seed=5, progress=False).merge_small_test()
    files, truth = boxes.files('valid'), boxes.targets('valid')
    xywh = lambda b: [*map(float, (b[0], b[1], b[2] - b[0], b[3] - b[1]))]
    drawn = [(n, xywh(b), int(k) + 1) for n,t in enumerate(truth, 1) for b,k in zip(t['boxes'], t['labels'])]
    gt = COCO()
    gt.dataset = dict(images=[dict(id=n, width=160, height=160) for n in range(1, len(files) + 1)],
                      categories=[dict(id=k, name=c) for k,c in enumerate(boxes.classes, 1)],
                      annotations=[dict(id=i, image_id=n, category_id=k, bbox=b, iscrowd=0, area=b[2]*b[3])
                                   for i,(n, b, k) in enumerate(drawn, 1)])
    gt.createIndex()

    def judged(*more):
        out = tl('predict', run, *files, '--format', 'json', '--threshold', '.02', *more, cwd=tmp_path)
        judge = COCOeval_faster(gt, gt.loadRes(json.loads(out.stdout.splitlines()[-1])), 'bbox')
        judge.evaluate(); judge.accumulate(); judge.summarize()
        return dict(map=judge.stats[0], map50=judge.stats[1])

    for found,group in ((judged(), 'metrics'), (judged('--slice', '0'), 'whole_images')):
        assert {k: round(float(v), 3) for k,v in found.items()} == {k: round(rec[group][k]['value'], 3) for k in found}


def test_the_same_command_gives_the_same_bits(run, scenes, tmp_path):
    done = tl('run', 'crossing', '--data', scenes, '--out', tmp_path, '--seed', 5, *QUICK, '-p', 'control=no',
              cwd=tmp_path)
    again = Path(done.stdout.strip().splitlines()[-1])
    assert record(again)['metrics'] == record(run)['metrics'] and not record(again)['control']
    assert (again/'model'/'weights.safetensors').read_bytes() == (run/'model'/'weights.safetensors').read_bytes()


def test_bad_boxes_are_a_wrong_request_and_leave_nothing(scenes, tmp_path):
    done = tl('run', 'crossing', '--data', scenes, '--out', 'runs', *QUICK, '-p', 'classes=car:Truck', cwd=tmp_path)
    assert done.returncode == 2 and 'Truck' in done.stderr and 'Traceback' not in done.stderr and not list(
            tmp_path.glob('runs/**/*'))
    done = tl('run', 'crossing', '--data', scenes, '--out', 'runs', '-p', 'slices=17', cwd=tmp_path)
    assert done.returncode == 2 and 'at least 32 pixels' in done.stderr and not list(tmp_path.glob('runs/**/*'))
