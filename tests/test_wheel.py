"The wheel carries the use cases: `tl run parts` works from it in an empty folder, without the checkout."
import os
import subprocess
import sys
import zipfile

from conftest import ROOT, QUICK, record


def test_run_from_an_installed_wheel(tmp_path, pictures):
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    subprocess.run([*pip, 'wheel', ROOT, '--no-deps', '--no-build-isolation', '-w', tmp_path/'dist'], check=True,
                   capture_output=True, cwd=tmp_path)
    wheel, = (tmp_path/'dist').glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert 'tl_notebooks/usecases/parts.ipynb' in names and 'tl_notebooks/learn/catalogue.json' in names
    assert {f'tl_notebooks/data/samples/{f}' for f in ('parts/nut/nut_0000.jpg', 'scenes/annotations.json',
                                                       'jargon/corpus.txt', 'mails.jsonl')} <= {*names}
    subprocess.run([*pip, 'install', '--no-deps', '--target', tmp_path/'site', wheel], check=True, capture_output=True)
    (tmp_path/'empty').mkdir()
    env = {**os.environ, 'PYTHONPATH': str(tmp_path/'site')}
    where = subprocess.run([sys.executable, '-c', 'import tl_notebooks; print(tl_notebooks.__file__)'], env=env,
                           cwd=tmp_path/'empty', capture_output=True, text=True)
    assert str(tmp_path/'site') in where.stdout         # the wheel's code, not the checkout's
    done = subprocess.run([sys.executable, '-m', 'tl_notebooks', 'run', 'parts', '--data', str(pictures), *QUICK, '-p',
                           'epochs=0', '-p', 'control=no'],
                          env=env, cwd=tmp_path/'empty', capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    folder, = (tmp_path/'empty'/'outputs'/'parts').iterdir()
    assert record(folder)['status'] == 'ok' and done.stdout.strip().endswith(folder.name)

    def tl(*args):
        done = subprocess.run([sys.executable, '-m', 'tl_notebooks', *map(str, args)], env=env, cwd=tmp_path/'empty',
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
    answers = tl('predict', folder, next(p for p in pictures.rglob('*') if p.is_file())).splitlines()
    assert answers[0].startswith('path,label,probability') and len(answers) == 2
    larger = tl('expand', folder, '--rename', 'bolt=screw_bolt').strip().splitlines()[-1]
    assert (tmp_path/'empty'/larger/'certificate.html').is_file() and 'screw_bolt' in tl('show', larger)
    # JupyterLab opens a copy; the wheel's own notebook stays in its place
    code = "from tl_notebooks.runs.lab import lab_command; print(*lab_command('parts', browser=False), sep='\\n')"
    line = subprocess.run([sys.executable, '-c', code], env=env, cwd=tmp_path/'empty', capture_output=True, text=True)
    copy = tmp_path/'empty'/'outputs'/'notebooks'/'parts.ipynb'
    assert copy.is_file() and str(copy) in line.stdout.splitlines(), line.stdout + line.stderr
