"""A torchvision that cannot load is made to work by importing tl_notebooks first; one that can load is left exactly as
it is."""
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

root = Path(__file__).parents[1]

PACKAGES = sysconfig.get_path('purelib')

def python(code, *path, flags=()):
    "Run `code` in a fresh interpreter that looks into `path` first"
    # without dynamo: torchvision compiles its Python roi_align, half a minute for one call
    env = os.environ | {'PYTHONPATH': os.pathsep.join([*map(str, path), str(root)]), 'HF_HUB_OFFLINE': '1',
                        'OMP_NUM_THREADS': '1', 'TORCHDYNAMO_DISABLE': '1'}
    return subprocess.run([sys.executable, *flags, '-c', code], env=env, capture_output=True, text=True)

def bare(code):
    "As `python`, but no `.pth` file is obeyed: `make` may have written the guard into this environment"
    return python(code, PACKAGES, flags=['-S'])

@pytest.fixture(scope='session')
def works_alone(): return bare('import torchvision').returncode == 0

USES = {
    'fastai': "from fastai.vision.all import vision_learner, resnet18",
    'timm': "import timm, torch; assert timm.create_model('resnet18').eval()(torch.rand(1, 3, 32, 32)).shape == (1, "
            "1000)",
    'transformers': "import torch; from transformers import BertConfig, BertModel; "
                    "c = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1); "
                    "assert BertModel(c)(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 8)",
    'fcos': "import torch, torchvision; torch.manual_seed(0); "
            "m = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2, "
            "min_size=64);"
            " m.score_thresh = 0.; o = m.eval()([torch.rand(3, 64, 64)])[0]; assert len(o['boxes']) > 1; "
            "iou = torchvision.ops.box_iou(o['boxes'], o['boxes']) * (o['labels'][:, None] == o['labels']); "
            "assert (iou - torch.eye(len(iou))).nan_to_num().max() <= m.nms_thresh + 1e-5",
    'roi_align': "import torch, torchvision; x = torch.full((1, 1, 8, 8), 3.); "
                 "o = torchvision.ops.roi_align(x, torch.tensor([[0., 1., 1., 6., 6.]]), 2); "
                 "assert torch.allclose(o, torch.full((1, 1, 2, 2), 3.))",
}

@pytest.mark.parametrize('use', USES)
def test_works_after_tl_notebooks(use):
    p = python('import tl_notebooks\n' + USES[use])
    assert p.returncode == 0, p.stderr[-2000:]

@pytest.mark.parametrize('use', ['fastai', 'timm', 'transformers', 'fcos'])
def test_fails_without_it(use, works_alone):
    "Otherwise the test above would show nothing"
    if works_alone: pytest.skip('torchvision loads by itself beside this torch: there is nothing to guard against')
    p = bare(USES[use])
    assert p.returncode != 0 and 'torchvision' in p.stderr

# --- a stand-in for torchvision, so that each case is tested on each machine

REPORT = '''
import sys, tl_notebooks
from tl_notebooks import core
assert 'torch' not in sys.modules, 'the guard costs nothing until torchvision is imported'
import torchvision, torch
assert torchvision.STAND_IN
schemas = torch._C._jit_get_schemas_for_operator('torchvision::nms')
print(core.guard_torchvision(), core._tv_library is None, len(schemas))
'''

@pytest.fixture
def stand_in(tmp_path):
    (tmp_path/'torchvision').mkdir()
    (tmp_path/'torchvision'/'__init__.py').write_text('STAND_IN = True\n')
    return tmp_path/'torchvision'

def test_a_torchvision_that_loads_is_left_alone(stand_in):
    cc = shutil.which('cc') or shutil.which('gcc')
    if not cc: pytest.skip('no C compiler to build a library that loads')
    (stand_in/'c.c').write_text('int stand_in(void) { return 1; }\n')
    subprocess.run([cc, '-shared', '-fPIC', '-o', stand_in/'_C.so', stand_in/'c.c'], check=True)
    p = python(REPORT, stand_in.parent)
    assert p.stdout.split() == ['working', 'True', '0'], p.stdout + p.stderr

def test_a_torchvision_that_cannot_load_is_guarded(stand_in):
    (stand_in/'_C.so').write_bytes(b'not a library')
    p = python(REPORT, stand_in.parent)
    assert p.stdout.split() == ['guarded', 'False', '1'], p.stdout + p.stderr

def test_the_real_one_is_left_alone_where_it_works(works_alone):
    if not works_alone: pytest.skip('torchvision does not load by itself beside this torch')
    p = python("import tl_notebooks, torchvision; from tl_notebooks import core; from torchvision.ops import boxes; "
               "print(core.guard_torchvision(), core._tv_library, boxes._assert_has_ops.__module__)")
    assert p.stdout.split() == ['working', 'None', 'torchvision.extension'], p.stdout + p.stderr

def test_an_absent_torchvision_is_no_error(tmp_path):
    "The site-packages of this machine, linked one by one, without torchvision"
    import torch
    for p in Path(torch.__file__).parents[1].iterdir():
        if not p.name.lower().startswith(('torchvision', '__pycache__')) and p.suffix != '.pth':
            (tmp_path/p.name).symlink_to(p)
    p = python("from tl_notebooks.core import guard_torchvision; print(guard_torchvision())\n"
               "try: import torchvision\nexcept ModuleNotFoundError: print('absent too')", tmp_path, flags=['-S'])
    assert p.stdout.splitlines() == ['absent', 'absent too'], p.stdout + p.stderr

def test_guarding_twice_is_guarding_once():
    p = python("import tl_notebooks, sys, torchvision\nfrom tl_notebooks import core\n"
               "a = core.guard_torchvision(); lib = core._tv_library\n"
               "core.install_guard(); b = core.guard_torchvision()\nassert a == b and lib is core._tv_library\n"
               "print(sum(type(h).__name__ == '_TorchvisionHook' for h in sys.meta_path))")
    assert p.stdout.strip() == '1', p.stderr

# --- the operator

import numpy as np  # noqa: E402
import tl_notebooks  # noqa: E402, F401
import torch  # noqa: E402
from tl_notebooks.core import nms  # noqa: E402

def brute_force(boxes, scores, threshold):
    "Keep the best box, drop what overlaps it too much, repeat; in float64 and plain Python"
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best, *left = left; kept.append(best)
        def overlap(j):
            (a, b, c, d), (e, f, g, h) = boxes[best], boxes[j]
            inter = max(0, min(c, g)-max(a, e)) * max(0, min(d, h)-max(b, f))
            union = (c-a)*(d-b) + (g-e)*(h-f) - inter
            return inter/union if union else 0. # two boxes without area: torchvision's 0/0 is not above any threshold
        left = [j for j in left if not overlap(j) > threshold]
    return kept

@pytest.mark.parametrize('threshold', [0., 0.123, 0.5, 0.771, 1.])
@pytest.mark.parametrize('seed', range(6))
def test_nms_against_brute_force(seed, threshold):
    "Whole-number corners and few distinct scores: full of ties, equal boxes, touching edges and boxes without area"
    g = np.random.default_rng(seed)
    n = int(g.integers(1, 60))
    corner = g.integers(0, 12, (n, 2)); size = g.integers(0, 7, (n, 2))
    boxes = np.concatenate([corner, corner+size], 1).astype(float)
    scores = g.integers(0, 5, n)/4
    got = nms(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores, dtype=torch.float32), threshold)
    assert got.dtype == torch.int64 and got.tolist() == brute_force(boxes.tolist(), scores.tolist(), threshold)

def test_nms_of_nothing_and_of_one():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)
    assert nms(torch.tensor([[0., 0., 1., 1.]]), torch.tensor([0.3]), 0.5).tolist() == [0]

def test_nms_keeps_boxes_without_area():
    boxes = torch.tensor([[1., 1., 1., 1.], [1., 1., 1., 1.], [0., 0., 4., 4.]])
    assert nms(boxes, torch.tensor([.9, .8, .7]), 0.5).tolist() == [0, 1, 2]

def test_nms_at_the_threshold_keeps():
    "Overlap of exactly one half is not above one half"
    boxes = torch.tensor([[0., 0., 2., 1.], [0., 0., 1., 1.]])
    assert nms(boxes, torch.tensor([.9, .8]), 0.5).tolist() == [0, 1]
    assert nms(boxes, torch.tensor([.9, .8]), 0.499).tolist() == [0]

def test_nms_does_not_touch_its_input():
    boxes, scores = torch.rand(20, 4).cumsum(1), torch.rand(20)
    b, s = boxes.clone(), scores.clone()
    nms(boxes, scores, 0.3)
    assert torch.equal(b, boxes) and torch.equal(s, scores)

def test_torchvision_calls_it():
    from torchvision.ops import batched_nms, nms as tv_nms
    g = torch.Generator().manual_seed(0)
    boxes = torch.rand(80, 2, generator=g)*50
    boxes = torch.cat([boxes, boxes + 5 + torch.rand(80, 2, generator=g)*20], 1)
    scores, classes = torch.rand(80, generator=g), torch.randint(0, 3, (80,), generator=g)
    assert torch.equal(tv_nms(boxes, scores, 0.4), nms(boxes, scores, 0.4))
    rows = [(classes == k).nonzero()[:,0] for k in range(3)]
    each = [r[nms(boxes[r], scores[r], 0.4)] for r in rows]
    assert sorted(batched_nms(boxes, scores, classes, 0.4).tolist()) == sorted(torch.cat(each).tolist())


def test_fastai_may_come_first_in_an_environment_that_was_guarded(tmp_path, works_alone):
    from tl_notebooks.core import guard_environment
    written = guard_environment(tmp_path)
    if works_alone: assert written is None; return
    p = python(f"import site; site.addsitedir({str(tmp_path)!r}); {USES['fastai']}")
    assert p.returncode == 0, p.stderr
