"""Pages in a real browser: nothing that axe finds, no scrolling sideways on a phone, a keyboard that reaches all.

Optional: it skips, and says why, without playwright's package, a Chromium, or npm to fetch axe-core. The pages of the
documentation are looked at where `make docs` has built them.
"""
import shutil
import subprocess
import tarfile

import pytest

from conftest import ROOT

AXE = '4.14.1'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
SITE = ['index.html', 'guides/quickstart.html', 'heads/ridge.html', 'reference/learn.html', 'benchmarks/heads.html']
RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa']
LOOKS = [(w, mode) for w in (1400, 390) for mode in ('light', 'dark')]


@pytest.fixture(scope='module')
def browser():
    sync = pytest.importorskip('playwright.sync_api', reason='the package playwright is not installed')
    if not CHROMIUM: pytest.skip('there is no Chromium on this machine')
    with sync.sync_playwright() as p:
        one = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield one
        one.close()


@pytest.fixture(scope='module')
def axe(tmp_path_factory):
    "The text of axe-core, from npm"
    if not shutil.which('npm'): pytest.skip('npm, which fetches axe-core, is not on this machine')
    folder = tmp_path_factory.mktemp('axe')
    done = subprocess.run(['npm', 'pack', f'axe-core@{AXE}', '--silent'], cwd=folder, capture_output=True, text=True,
                          timeout=60)
    if done.returncode: pytest.skip(f'npm could not fetch axe-core@{AXE}: {done.stderr.strip()[:200]}')
    with tarfile.open(next(folder.glob('*.tgz'))) as f:
        return f.extractfile('package/axe.min.js').read().decode()


def interval(value, n=40): return dict(value=value, low=value - .1, high=min(1, value + .05), n=n)


CERTIFICATE = dict(
    made='2026-01-01', mode='exact', status='failed', parent=dict(sha256='f'*64, classes=['bolt', 'nut']),
    child=dict(classes=['bolt', 'nut', 'gear']), new_classes=['gear'], body_bit_identical=True, code_version='0+f',
    limits=[dict(name='max_old_drop', limit=.01, value=.02, passed=False)], old_logits_bit_identical=False,
    greatest_change_of_an_old_logit=1.8, old_accuracy_before=interval(.9), old_accuracy_after=interval(.8),
    old_difference=interval(-.1), new_accuracy=interval(.7), notes=['Something that a reader must know.'],
    data=dict(path='a/long/path/'*8, fingerprint='f'*64), judged_by=dict(old=40, new=40, left_out={}),
    tried=[dict(mode=m, status=s, old_difference=-.1, new_accuracy=.7, seconds=2.) for m,s in
           (('keep-scores', 'limits not met'), ('exact', 'kept'))])


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A report, a certificate and the page of a sweep, with all their parts, without any training"
    from matplotlib.figure import Figure
    from tl_notebooks.judge.pages import render_page
    from tl_notebooks.runs.params import check_params, find_usecase, usecase_params
    from tl_notebooks.runs.run import Run, make_run_folder
    from tl_notebooks.runs.record import load_record
    root, nb = tmp_path_factory.mktemp('made'), find_usecase('parts')
    folder = make_run_folder('parts', check_params(usecase_params(nb), {'seed': 7}), nb, root)
    run, fig = Run(folder, load_record(folder)['params'] | {'threads': 2}), Figure(figsize=(9, 3))
    ax = fig.add_subplot(); ax.plot([1, 2]); ax.set(xlabel='epochs', ylabel='loss')
    run.figure('loss', fig, 'Loss of each epoch.')
    for name in ('accuracy', *(f'recall/a_class_with_a_long_name_{i}' for i in range(3))):
        run.metric(name, interval(.9)); run.metric(name, interval(.3), group='control')
        run.metric(name, interval(.85), group='valid')
    stage = dict(name='probe', parameters=30_000, epochs=1, thaw=1, valid_loss=.2, valid_accuracy=.9, seconds=1.,
                 why='', kept=True)
    run.record |= dict(stages=[stage], data=dict(path='a/long/path/'*8, fingerprint='f'*64, counts={'test': {'a': 40}}),
                       choices={'engine': dict(asked='auto', took='torch', why='measured in turns')})
    run.finish()
    for name,page in (('certificate', render_page('certificate.html', c=CERTIFICATE, figures=[])),
                      ('sweep', render_page('sweep.html', rows=[], s=dict(
                          name='parts', runs=[], folder=root, data=dict(varied=['lr'], notebook_sha256='f'*64))))):
        (root/f'{name}.html').write_text(page, encoding='utf-8')
    return dict(report=folder/'report.html', certificate=root/'certificate.html', sweep=root/'sweep.html')


def look(browser, path, width, mode):
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=mode)
    page.goto(path.as_uri())
    return page


def found(page, axe):
    "What axe finds, a line for each place"
    page.evaluate(axe)
    result = page.evaluate('rules => axe.run({runOnly: rules})', RULES)
    return [f"{v['id']}: {n['target']} {n['html'][:150]} {n['failureSummary'][:200]}" for v in result['violations']
            for n in v['nodes'][:3]]


def is_sideways(page):
    return page.evaluate('document.documentElement.scrollWidth > document.documentElement.clientWidth')


@pytest.mark.parametrize('name', ['report', 'certificate', 'sweep'])
def test_a_page_of_a_run_is_for_everyone(browser, axe, made, name):
    for width,mode in LOOKS:
        page = look(browser, made[name], width, mode)
        assert found(page, axe) == [], (width, mode)
        assert not is_sideways(page), width
        dark = page.evaluate('getComputedStyle(document.body).backgroundColor') != 'rgb(255, 255, 255)'
        assert dark == (mode == 'dark')
        page.close()


def test_what_is_wider_than_a_phone_is_reached_and_moved_by_the_keyboard(browser, made):
    page = look(browser, made['report'], 390, 'light')
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'chart'
    page.keyboard.press('ArrowRight'); page.keyboard.press('ArrowRight'); page.wait_for_timeout(600)
    assert page.evaluate('document.activeElement.scrollLeft') > 0


def test_axe_finds_what_is_wrong(browser, axe, tmp_path):
    (tmp_path/'bad.html').write_text('<!doctype html><html lang="en"><title>x</title><img src="a.png">'
                                     '<p style="color:#aaa;background:#fff">pale</p>')
    bad = {line.partition(':')[0] for line in found(look(browser, tmp_path/'bad.html', 390, 'light'), axe)}
    assert bad == {'image-alt', 'color-contrast'}


@pytest.mark.parametrize('name', SITE)
def test_a_page_of_the_documentation_is_for_everyone(browser, axe, name):
    if not (ROOT/'_docs'/name).exists(): pytest.skip('_docs is not built here (`make docs`)')
    for width,mode in LOOKS:
        page = look(browser, ROOT/'_docs'/name, width, mode)
        assert found(page, axe) == [], (width, mode)
        assert width > 390 or not is_sideways(page)
        page.close()


@pytest.mark.parametrize('word,first', [('predict', 'guides/predict'), ('my own model', 'guides/bring_your_own'),
                                        ('unknown', 'unknown'), ('export', 'export')])
def test_a_search_finds_the_page_that_is_wanted_first(browser, word, first):
    "Sphinx's own search, in the browser"
    if not (ROOT/'_docs'/'index.html').exists(): pytest.skip('_docs is not built here (`make docs`)')
    page = browser.new_page()
    page.goto((ROOT/'_docs'/'search.html').as_uri() + f"?q={word.replace(' ', '+')}")
    page.wait_for_selector('#search-results li a', timeout=20_000)
    page.wait_for_timeout(500)
    assert first in page.get_attribute('#search-results li a >> nth=0', 'href')
