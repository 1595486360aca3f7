"What several test files share: real data where it lies beside the project, and one real run of the parts use case."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent/'shared'/'data'

# Small images and batches: the same notebook, in seconds.
QUICK = ['-p', 'size=96', '-p', 'bs=16', '-p', 'precision=fp32']
WHOLE = [*QUICK, '-p', 'control=yes'] # with a control that no stopwatch ends


# `pytest -m fast`: no network trains in these, and no kernel starts.
FAST = 'as_found box_layouts box_scores data evidence house texts boxes samples'.split()


# A minute or more each, or one of several alike; `--long` runs them. A shorter test of the same promise stands beside
# each: on built-in data instead of real data, fewer kills, fewer architectures, the other of two kinds.
LONG = """
test_activations.py::test_compiled_body_trains_the_same
test_activations.py::test_lego6_is_quick_the_second_time
test_activations.py::test_training_is_the_uncached_training[1]
test_activations.py::test_training_is_the_uncached_training[3]
test_activations.py::test_training_is_the_uncached_training[5]
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/swin
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/xcit
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/dla34
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/repvgg
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/mixer
test_activations.py::test_every_cut_gives_the_networks_own_features[timm/pvt
test_activations.py::test_every_cut_gives_the_networks_own_features[convnext_tiny
test_activations.py::test_every_cut_gives_the_networks_own_features[torchvision/vgg11
test_activations.py::test_every_cut_gives_the_networks_own_features[torchvision/densenet121
test_adopt.py::test_a_wrong_preparation_is_found_and_a_right_one_is_left_alone[mobilenetv3_small_050
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-1
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-4
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-5
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-6
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-8
test_box_layouts.py::test_odd_values_in_label_studio_are_a_problem_and_no_crash[False-9
test_choices.py::test_a_run_that_goes_on_takes_its_own_choices
test_chosen.py::test_a_sweep_chooses_by_validation_data_and_shows_test_data_beside_it[2
test_chosen.py::test_a_sweep_names_no_winner_where_two_are_equal
test_data.py::test_lego6_as_its_provenance_says
test_detection.py::test_a_detector_of_torchvision_goes_on_from_its_file[retinanet
test_detection.py::test_blocks_are_found_where_they_are[ssdlite-squish
test_detection.py::test_blocks_are_found_where_they_are[retinanet-pad
test_engine.py::test_the_same_bits_again_without_a_graph_on_disk_and_in_another_process
test_heads.py::test_copies_of_rows_cost_nothing_against_scikit_learn[near-copies-0.2
test_pretrained.py::test_random_image_model_answers[vgg16
test_pretrained.py::test_random_image_model_answers[dinov2_small
test_pretrained.py::test_torchvisions_vgg_is_converted
test_resume.py::test_killed_at_random_moments_the_same_bits[of_new_views
test_resume.py::test_killed_at_random_moments_the_same_bits[of_boxes
test_sweep.py::test_sweeps_killed_at_random_moments_end_with_the_same_bits
test_text.py::test_an_expansion_does_not_inherit_guessed_labels_and_says_so
test_text.py::test_names_help_where_labels_are_few
test_text.py::test_twice_is_the_same_to_the_bit
test_usecase_expand.py::test_two_at_a_time_with_kept_scores_on_the_last_blocks[lego6
""".split()


def pytest_addoption(parser):
    parser.addoption('--long', action='store_true', help='also the tests that take a minute or more each')


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.stem.removeprefix('test_') in FAST: item.add_marker('fast')
        if not any(item.nodeid.removeprefix('tests/').startswith(name) for name in LONG): continue
        item.add_marker('long')
        if not config.getoption('--long'):
            item.add_marker(pytest.mark.skip(reason='takes a minute or more; `--long` runs it, as in '
                                                    '`make test ARGS=--long`'))


def need(name):
    "The folder of a real data set; skips with the reason where it is not beside the project"
    if not (DATA/name).is_dir(): pytest.skip(f'real data set {name} is not beside this checkout (shared/data/{name})')
    return DATA/name


def tl(*args, cwd, timeout=300, env=None):
    "Run `tl` as a user does, in a process of its own"
    return subprocess.run([sys.executable, '-m', 'tl_notebooks', *map(str, args)], cwd=cwd, capture_output=True,
                          text=True,
                          timeout=timeout, env={**os.environ, **(env or {})})


REFUSE = """import json, sys
from pathlib import Path
import tl_notebooks
from tl_notebooks.core import InputError
from tl_notebooks.runs.params import find_usecase
usecase, requests, to = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
cells = [c for c in json.loads(find_usecase(usecase).read_text())['cells'] if c['cell_type'] == 'code']
said = []
for params in requests:
    space = {'__name__': '__main__'}
    try:
        for c in cells:
            exec(''.join(c['source']), space)
            if 'parameters' in c['metadata'].get('tags', []): space |= params
        said.append('')
    except InputError as e: said.append(str(e))
to.write_text(json.dumps(said))
"""


def refusals(usecase, requests, cwd, env=None):
    """The message with which the cells of a use case refuse each of `requests`, '' where one is not refused: all in one
    process, since most of a refusal's time is that of starting one. What `tl run` makes of a refusal (exit code 2,
    nothing left) is another test's matter"""
    done = subprocess.run([sys.executable, '-c', REFUSE, usecase, json.dumps(requests), str(Path(cwd)/'said.json')],
                          cwd=cwd, capture_output=True, text=True, timeout=600,
                          env=os.environ | {'MPLBACKEND': 'agg'} | (env or {}))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((Path(cwd)/'said.json').read_text())


def page(path):
    "The text of an HTML page, on one line, without images"
    return ' '.join(re.sub(r'data:image/png;base64,[^"]*', '', Path(path).read_text(encoding='utf-8')).split())


def record(folder): return json.loads((Path(folder)/'record.json').read_text())


@pytest.fixture(scope='session', autouse=True)
def own_cache(tmp_path_factory):
    "Nothing a test does may land in the user's own caches"
    old = os.environ.get('TL_NOTEBOOKS_CACHE')
    os.environ['TL_NOTEBOOKS_CACHE'] = str(tmp_path_factory.mktemp('cache'))
    yield
    os.environ.pop('TL_NOTEBOOKS_CACHE')
    if old: os.environ['TL_NOTEBOOKS_CACHE'] = old


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    "Four kinds of parts, 15 small images each, made by the project"
    from tl_notebooks.data.samples import PARTS, make_parts
    return make_parts(tmp_path_factory.mktemp('pictures')/'parts', kinds=PARTS[:4], n=15, size=96)


@pytest.fixture(scope='session')
def first_run(pictures, tmp_path_factory):
    "A finished `tl run parts` and its run folder"
    out = tmp_path_factory.mktemp('runs')
    done = tl('run', 'parts', '--data', pictures, '--out', out, '--seed', 5, *WHOLE, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return done, Path(done.stdout.strip().splitlines()[-1])


def tree(root, spec, draw=None):
    """Make files: str and bytes → content, None → a folder, callable → called with the path, a number → what `draw`
    makes of it"""
    for name, what in spec.items():
        p = root/name
        p.parent.mkdir(parents=True, exist_ok=True)
        if what is None: p.mkdir(exist_ok=True)
        elif callable(what): what(p)
        else: p.write_bytes(draw(what) if isinstance(what, int) else what.encode() if isinstance(what, str) else what)
    return root
