"A detector that is handed on finds what its folder finds, with suppression inside the file."
import numpy as np
import onnxruntime
import pytest
from conftest import tl
from PIL import Image
from test_detection import tiny
from test_serve import ask, form, serving

import tl_notebooks  # noqa: F401  before timm
import torch
from tl_notebooks.core import InputError
from tl_notebooks.data.boxes import overlaps, read_boxes
from tl_notebooks.data.samples import make_scenes
from tl_notebooks.learn.detection import detection_learner
from tl_notebooks.models import export as door
from tl_notebooks.models.folder import Model, save_model

torch.set_num_threads(1)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return read_boxes(make_scenes(tmp_path_factory.mktemp('scenes')/'s', n=12, size=128), progress=False)


def same_boxes(got, want):
    "Boxes, scores and classes, best first; both of one image"
    assert len(got['scores']) == len(want['scores']) > 3
    np.testing.assert_allclose(got['scores'], want['scores'], atol=1e-4)
    best = overlaps(got['boxes'], want['boxes'])*(got['classes'][:, None] == want['labels'][None])
    assert (best.max(1) > .98).all() and (best.max(0) > .98).all()


@pytest.mark.parametrize('arch,resize,to', [('fcos', 'pad', 'onnx'), ('retinanet', 'squish', 'onnx'),
                                            ('ssdlite', 'squish', 'openvino')])
def test_boxes_of_a_file_are_those_of_predict(scenes, tmp_path, arch, resize, to):
    "`predict` suppresses by torchvision's own code"
    least = dict(fcos=.0105, retinanet=.0102, ssdlite=.3)[arch]  # random weights score low
    learn = detection_learner(scenes, arch, backbone='timm/resnet18', weights='random', size=128, channels=64, convs=1,
                              bs=4, views=1, resize=resize, seed=0)
    save_model(tmp_path/'m', learn.model, learn.info, scenes.classes, head=dict(kind='trained', threshold=least))
    files = scenes.files('test')[:2]
    Image.open(files[0]).resize((300, 90)).save(tmp_path/'wide.png')
    files = [*files, tmp_path/'wide.png']
    done = door.export(tmp_path/'m', tmp_path/'e', to, items=[str(f) for f in files])
    assert done.parity.passed and 'boxes on 3 given images are found by both' in done.parity.says
    model = door.Exported(tmp_path/'e')
    want = Model(tmp_path/'m').predict(files)
    for got, w in zip(model.answers([model.take(f) for f in files]), want): same_boxes(got, w.found)
    if to == 'onnx':  # any program may ask for surer ones, and gets arrays of one size for several images
        session = onnxruntime.InferenceSession(tmp_path/'e'/'model.onnx')
        image = np.asarray(Image.open(files[0]).convert('RGB'))
        high = np.float32(np.median(want[0].found['scores']))
        boxes, scores, classes = session.run(None, dict(images=np.stack([image]*3), threshold=np.array(high)))
        assert boxes.shape[:2] == scores.shape == classes.shape and np.allclose(scores, scores[:1], atol=1e-5)
        assert 0 < (scores[0] > 0).sum() <= (want[0].found['scores'] >= high).sum() + 1


def test_a_server_finds_the_boxes_of_predict(scenes, tmp_path):
    pytest.importorskip('fastapi')
    learn = detection_learner(scenes, backbone='timm/resnet18', weights='random', size=128, channels=32, convs=1, bs=4,
                              views=1, seed=0)
    save_model(tmp_path/'m', learn.model, learn.info, scenes.classes, head=dict(kind='trained', threshold=.0105))
    files = scenes.files('test')[:2]
    served = door.export(tmp_path/'m', tmp_path/'e', items=[str(f) for f in files]).folder
    with serving(served) as (_, port):
        status, found = ask(port, 'POST', '/predict', *form(*[f.read_bytes() for f in files], b'no image'))
    assert status == 200 and 'cannot be read' in found['predictions'][2]['error']
    for got, p in zip(found['predictions'], Model(tmp_path/'m').predict(files)):
        want = [*zip(*(p.found[k] for k in ('labels', 'scores', 'boxes')))]
        assert len(got['boxes']) == len(want) > 3
        for b in got['boxes']:  # in hundredths of a pixel
            assert any(scenes.classes[k] == b['label'] and abs(s - b['score']) < 1e-4
                       and np.abs(box - b['box']).max() < .02 for k,s,box in want), b
    done = tl('serve', tmp_path/'m', '--port', 0, cwd=tmp_path)
    assert done.returncode == 2 and 'is the folder of a detector; accepted by a server: an export' in done.stderr


@pytest.mark.parametrize('kind', ['rt_detr_v2', 'd_fine', 'detr'])
def test_a_detector_of_transformers_goes_back_there(scenes, tmp_path, kind):
    "What its `pipeline` finds, which rounds boxes to pixels, is what `predict` finds"
    from transformers import AutoModelForObjectDetection, pipeline
    torch.manual_seed(0)
    AutoModelForObjectDetection.from_config(tiny(kind)).save_pretrained(tmp_path/'tiny')
    learn = detection_learner(scenes, str(tmp_path/'tiny'), size=64, bs=4, views=1, seed=0)
    for n,p in learn.model.named_parameters():
        if any(w in n for w in ('class_embed', 'score_head', 'labels_classifier')): torch.nn.init.normal_(p, 0, .5)
    save_model(tmp_path/'m', learn.model.eval(), learn.info, scenes.classes, head=dict(kind='trained', threshold=.3))
    files = scenes.files('test')[:2]
    done = door.export(tmp_path/'m', tmp_path/'hf', 'huggingface', items=[str(f) for f in files])
    assert done.parity.passed and 'pipeline_tag: object-detection' in (tmp_path/'hf'/'README.md').read_text()
    ask = pipeline('object-detection', model=str(tmp_path/'hf'), device='cpu')
    for f, p in zip(files, Model(tmp_path/'m').predict(files)):
        got, want = max(ask(str(f), threshold=.3), key=lambda b: b['score']), p.found
        assert got['label'] == scenes.classes[want['labels'][0]] and abs(got['score'] - want['scores'][0]) < 5e-3
        assert np.abs(want['boxes'] - [*got['box'].values()]).max(1).min() <= 1.01


def test_a_body_that_is_an_onnx_file_and_huggingface_are_refused(scenes, tmp_path):
    learn = detection_learner(scenes, backbone='timm/resnet18', weights='random', size=128, channels=32, convs=1, bs=4,
                              views=1)
    save_model(tmp_path/'m', learn.model, learn.info, scenes.classes)
    done = tl('export', tmp_path/'m', '--to', 'huggingface', '--out', tmp_path/'e', cwd=tmp_path)
    assert done.returncode == 2 and 'Accepted for it: `--to onnx` and `--to openvino`' in done.stderr
    assert not (tmp_path/'e').exists()
    model = Model(tmp_path/'m')
    del model.net.per_place; model.net.arch = 'maps'
    with pytest.raises(InputError, match="of the kind 'maps'"): door.export(model, tmp_path/'e')
    with pytest.raises(InputError, match='have a place in transformers.$'): # no way out is named that is none
        door.export(model, tmp_path/'e', to='huggingface')


def test_thresholds_of_each_class_are_not_lost_without_a_word(scenes, tmp_path):
    "`predict` obeys each of them; a file has one for all"
    learn = detection_learner(scenes, backbone='timm/resnet18', weights='random', size=128, channels=32, convs=1, bs=4,
                              views=1)
    each = {c: .1 + .1*i for i,c in enumerate(scenes.classes)}
    save_model(tmp_path/'m', learn.model, learn.info, scenes.classes, head=dict(kind='trained', threshold=.1,
                                                                               thresholds=each))
    with pytest.raises(InputError, match='a threshold for each class'): door.export(tmp_path/'m', tmp_path/'e')
    assert not (tmp_path/'e').exists()
