"""DVC works with the use cases as it works with anything: its files say what the notebooks say, and it repeats, queues,
compares and applies."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import record

ROOT = Path(__file__).parents[1]
TINY = dict(size=64, bs=8, precision='fp32', control=False, threads=1)


def run(*args, cwd, env=None, fails=False):
    "A command as in a shell with the environment activated: no network, nobody's settings"
    env = {**os.environ, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
           'HOME': str(cwd.parent), 'DVC_NO_ANALYTICS': '1',
           'DVC_SITE_CACHE_DIR': str(cwd.parent/'site'), 'https_proxy': 'http://127.0.0.1:9',
           'http_proxy': 'http://127.0.0.1:9', **(env or {})}
    env.pop('PYTHONPATH', None)          # the repository's own package, wherever a stage runs
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True, timeout=400)
    assert fails or done.returncode == 0, f'{args}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}'
    return done


def tl(*args, cwd, **kwargs): return run(sys.executable, '-m', 'tl_notebooks', *args, cwd=cwd, **kwargs)


def checkout(to):
    "The parts of this checkout that a pipeline needs"
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for d in ('tl_notebooks', 'nbs/usecases'): shutil.copytree(ROOT/d, to/d, ignore=skip)
    (to/'.dvc').mkdir()
    for f in ('settings.ini', 'params.yaml', 'dvc.yaml', '.gitignore', '.dvcignore', '.dvc/config', '.dvc/.gitignore',
              '.dvc/plots.html'):
        shutil.copyfile(ROOT/f, to/f)
    return to


# The files

def test_the_files_say_what_the_notebooks_say():
    "Also the values: what this project hands out runs as the notebooks do"
    from tl_notebooks.runs.dvc import stage_params, write_files
    from tl_notebooks.runs.params import usecases
    assert write_files(ROOT, check=True) == [], 'run `tl dvc`'
    found = yaml.safe_load((ROOT/'params.yaml').read_text())
    assert found == {u: {n: p.default for n,p in stage_params(u).items()} for u in usecases()}


def test_a_changed_parameter_is_noticed(tmp_path):
    repo = checkout(tmp_path/'repo')
    nb = repo/'nbs'/'usecases'/'parts.ipynb'
    assert tl('dvc', '--check', cwd=repo).stdout == 'in step with the notebooks\n'
    nb.write_text(nb.read_text().replace('"epochs: int = 1', '"epochs: int = 2').replace('"lr: float = 0.0',
            '"rate: float = 0.0'))
    text = (repo/'params.yaml').read_text()
    (repo/'params.yaml').write_text(text.replace('bs: 32', 'bs: 16'))
    done = tl('dvc', '--check', cwd=repo, fails=True)
    assert done.returncode == 1 and done.stdout == '3 differences\n'
    for says in ('parts.epochs is the default of its time, 1: now 2', 'parts.rate is missing',
                 'parts.lr is no parameter'):
        assert says in done.stderr
    assert tl('dvc', cwd=repo).stdout.strip() == str(repo/'dvc.yaml')
    assert tl('dvc', '--check', cwd=repo).returncode == 0
    now = yaml.safe_load((repo/'params.yaml').read_text())['parts']
    assert (now['epochs'], now['rate'], now['bs'], 'lr' in now) == (2, 0., 16, False)


@pytest.mark.parametrize('tool', ['dvclive', 'tensorboard'])
def test_a_tracker_that_is_not_there_is_missed_before_anything_is_written(tool, tmp_path, monkeypatch):
    from tl_notebooks.core import InputError
    from tl_notebooks.runs.run import run_usecase
    monkeypatch.setitem(sys.modules, tool, None)
    with pytest.raises(InputError, match=f'{tool} is not installed'):
        run_usecase('parts', {'track': tool.removesuffix('live')}, str(tmp_path/'out'))
    assert not (tmp_path/'out').exists()


# DVC itself, in a git repository of its own

@pytest.fixture(scope='module')
def repo(pictures, tmp_path_factory):
    "A repository with one stage's results: small images, one epoch, written for TensorBoard"
    if shutil.which('dvc', path=str(Path(sys.executable).parent)) is None:
        pytest.skip('DVC is not installed: pip install -e ".[dvc]"')
    repo = checkout(tmp_path_factory.mktemp('dvc')/'repo')
    data = shutil.copytree(pictures, repo.parent/'pictures')
    params = yaml.safe_load((repo/'params.yaml').read_text())
    params['parts'] |= TINY | dict(data=str(data), track='tensorboard')
    (repo/'params.yaml').write_text(yaml.safe_dump(params))
    tl('dvc', 'write', 'parts', cwd=repo)
    git(repo, 'init', '-q'); git(repo, 'config', 'user.name', 'x'); git(repo, 'config', 'user.email', 'x@example.org')
    commit(repo)
    run('dvc', 'repro', 'parts', cwd=repo)
    commit(repo)
    return repo


def git(repo, *args): return run('git', *args, cwd=repo).stdout
def commit(repo): git(repo, 'add', '-A'); git(repo, 'commit', '-q', '-m', 'x')
def dvc(repo, *args): return json.loads(run('dvc', *args, '--json', cwd=repo).stdout)
def run_folders(repo): return sorted((repo/'outputs'/'parts').iterdir())


@pytest.fixture(scope='module')
def applied(repo):
    """The same with an experiment that was queued, ran in DVC's copy of the repository, and was applied; its name, and
    what git said in between"""
    run('dvc', 'exp', 'run', '-S', 'parts.epochs=3', '-S', 'parts.track=dvc', '--queue', '--name', 'longer', cwd=repo)
    source = repo/'tl_notebooks'/'core.py'
    text = source.read_text(); source.write_text(text + '# edited while it waits\n')
    try: run('dvc', 'exp', 'run', '--run-all', cwd=repo)
    finally:
        source.write_text(text)
        run('dvc', 'queue', 'stop', '--kill', cwd=repo, fails=True) # its worker is nobody's child
    between = git(repo, 'status', '--porcelain'), yaml.safe_load((repo/'params.yaml').read_text())['parts']['epochs']
    shown, diff = dvc(repo, 'exp', 'show'), dvc(repo, 'metrics', 'diff', 'HEAD', 'longer')
    run('dvc', 'exp', 'apply', 'longer', cwd=repo)
    return between, shown, diff


def test_repro_leaves_a_run_like_any_other(repo):
    folder, = run_folders(repo)
    rec, home = record(folder), repo/'outputs'/'dvc'/'parts'
    assert rec['status'] == 'ok' and record(home/'run') == rec and rec['params']['size'] == 64
    files = lambda d: {p.relative_to(d): p.read_bytes() for p in d.rglob('*') if p.is_file()}
    assert files(folder) == files(home/'run'), 'the copy is not whole'
    shown = dvc(repo, 'metrics', 'show')['']['data']['outputs/dvc/parts/metrics.json']['data']
    assert shown['accuracy'] == rec[
            'metrics']['accuracy']['value'] and shown['accuracy_low'] == rec['metrics']['accuracy']['low']
    assert [*(folder/'track'/'fine-tuning').glob('events.out.tfevents.*')]


def test_repro_again_does_nothing(repo):
    before = run_folders(repo)
    assert "Stage 'parts' didn't change, skipping" in run('dvc', 'repro', 'parts', cwd=repo).stdout
    assert run_folders(repo) == before


def test_a_queued_experiment_leaves_the_workspace_alone(applied):
    (status, epochs), _, _ = applied
    assert (status, epochs) == ('', 1)


def test_its_run_stands_with_the_others(repo, applied):
    "The copy of the repository that it ran in is gone; its code was that of the copy"
    first, second = run_folders(repo)
    assert [record(f)['params']['epochs'] for f in (first, second)] == [1, 3]
    assert record(second)['status'] == 'ok' and record(second)['code_version'] == record(first)['code_version']


def test_it_is_shown_beside_the_others(repo, applied):
    _, shown, diff = applied
    (head,), value = [b for b in shown
                      if b['rev'] != 'workspace'], record(run_folders(repo)[1])['metrics']['accuracy']['value']
    longer = head['experiments'][0]['revs'][0]
    assert longer['name'] == 'longer' and longer['data']['params']['params.yaml']['data']['parts']['epochs'] == 3
    assert longer['data']['metrics']['outputs/dvc/parts/metrics.json']['data']['accuracy'] == value
    change = diff.get('diff', {}).get('outputs/dvc/parts/metrics.json', {}).get('accuracy')
    was = record(run_folders(repo)[0])['metrics']['accuracy']['value']
    assert change is None if value == was else (change['old'], change['new']) == (was, value)


def test_applied_it_is_what_the_workspace_holds(repo, applied):
    home, folder = repo/'outputs'/'dvc'/'parts', run_folders(repo)[1]
    assert record(home/'run') == record(
            folder) and (
            home/'run'/'model'/'weights.safetensors').read_bytes(
            ) == (folder/'model'/'weights.safetensors').read_bytes()
    assert yaml.safe_load((repo/'params.yaml').read_text())['parts']['epochs'] == 3
    assert tl('dvc', '--check', cwd=repo).returncode == 0, 'a value that was chosen is no difference'
    assert "didn't change, skipping" in run('dvc', 'repro', 'parts', cwd=repo).stdout and len(run_folders(repo)) == 2


def test_its_epochs_figures_and_intervals_are_plotted(repo, applied):
    rows = (repo/'outputs'/'dvc'/'parts'/'epochs'/'fine-tuning'/'eval'/'loss.tsv').read_text().split('\n')
    assert len(rows) == 5 and float(
            rows[3].split('\t')[1]) == pytest.approx(record(run_folders(repo)[1])['stages'][-1]['valid_loss'], rel=1e-6)
    run('dvc', 'plots', 'diff', 'HEAD', 'workspace', '-o', 'plots', cwd=repo)
    page = (repo/'plots'/'index.html').read_text()
    shutil.copytree(repo/'plots', repo.parent/'plots'); shutil.rmtree(repo/'plots')
    assert 'window.vegaEmbed = window.vegaEmbed ||' in page, 'without a network nothing would be drawn'
    for there in ('eval/loss.tsv', 'intervals.csv', 'HEAD_outputs_dvc_parts_figures_accuracy.png',
                  'workspace_outputs_dvc_parts_figures_accuracy.png'):
        assert there in page
    assert [*(repo.parent/'plots').rglob('workspace_outputs_dvc_parts_figures_accuracy.png')]


def test_changed_data_makes_the_stage_run_again(repo, applied):
    assert dvc(repo, 'status', 'parts') == {}
    next(p for p in (repo.parent/'pictures').rglob('*') if p.is_file()).unlink()
    assert 'changed deps' in json.dumps(dvc(repo, 'status', 'parts'))
