"`label.html` in a real browser, from file://, by keyboard alone and by mouse."
import csv
import shutil
from pathlib import Path

import pytest
from tl_notebooks.data.samples import PARTS, make_parts
from tl_notebooks.judge.label import ToLabel, label_page, write_label_files


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed: nothing drives a browser')
    where = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if where is None: pytest.skip('there is no Chromium or Chrome on this machine')
    with api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=where, args=['--no-sandbox'])
        yield b
        b.close()


def opened(browser, path:Path):
    page = browser.new_page(accept_downloads=True)
    page.problems = []
    page.on('pageerror', lambda e: page.problems.append(str(e)))
    page.on('request', lambda r: page.problems.append(r.url) if r.url.startswith('http') else None)
    page.goto(path.as_uri())
    return page


def saved(page, way, to:Path) -> list[dict]:
    with page.expect_download() as found: way()
    assert found.value.suggested_filename == 'labels.csv'
    found.value.save_as(to)
    return [*csv.DictReader(open(to, encoding='utf-8', newline=''))]


def test_keyboard_alone_labels_images(browser, tmp_path):
    files = [str(p) for p in sorted(make_parts(tmp_path/'new', kinds=PARTS[:2], n=3, size=64).rglob('*.jpg'))]
    todo = [ToLabel(f, 'unknown', 1 - i/9, 'screw', dict(screw=.7)) for i,f in enumerate(files)]
    write_label_files(tmp_path, todo, ['nut', 'screw'], 'path', 'a model')
    page = opened(browser, tmp_path/'label.html')
    press = page.keyboard.press
    press('1')                                      # nut
    press('Enter')                                  # as suggested
    page.keyboard.type('wing, "big" nut'); press('Enter') # a new class
    press('3')                                      # which now has a key
    press('ArrowLeft'); press('Delete'); press('ArrowRight') # taken back
    press('ArrowRight'); page.keyboard.type('/3001'); press('Enter') # a part number
    assert page.locator('#shown img').evaluate('i => i.naturalWidth') == 64
    rows = saved(page, lambda: press('Control+s'), tmp_path/'labels.csv')
    labels = ['nut', 'screw', 'wing, "big" nut', None, None, '3001']
    assert [(r['path'], r['label']) for r in rows] == [(f, l) for f,l in zip(files, labels) if l]
    assert page.problems == []


def test_mouse_and_texts(browser, tmp_path):
    texts = ['one "quoted", text', 'two\nlines </script><b>bold</b>', 'three']
    todo = [ToLabel(t, 'unsure', .5, 'ham', {}) for t in texts]
    (tmp_path/'label.html').write_text(label_page(todo, ['ham', 'spam'], 'text'), encoding='utf-8')
    page = opened(browser, tmp_path/'label.html')
    for name in ('2 spam', '1 ham', '2 spam'): page.get_by_role('button', name=name).click()
    assert page.locator('#shown blockquote').inner_text() == 'three' and page.locator('#shown b').count() == 0
    rows = saved(page, page.get_by_role('button', name='save labels.csv').click, tmp_path/'labels.csv')
    assert [(r['text'], r['label']) for r in rows] == [*zip(texts, ['spam', 'ham', 'spam'])]
    assert page.locator('#table').input_value().startswith('text,label\n') and page.problems == []
    page.reload()                                   # what was done is still there
    assert '3 labelled' in page.locator('#about').inner_text()


def test_a_label_taken_back_stays_so_and_the_table_opens_by_keyboard(browser, tmp_path):
    "After a reload it begins at the first item without a label; Enter on the table's heading labels nothing"
    texts = ['one', 'two', 'three', 'four']
    todo = [ToLabel(t, 'unsure', .5, 'ham', {}) for t in texts]
    (tmp_path/'label.html').write_text(label_page(todo, ['ham', 'spam'], 'text'), encoding='utf-8')
    page = opened(browser, tmp_path/'label.html')
    for key in ('1', '2', '1', 'ArrowLeft', 'ArrowLeft', 'Delete'): page.keyboard.press(key)
    page.reload()
    assert '2 labelled' in page.locator('#about').inner_text() and page.locator('#shown').inner_text() == 'two'
    page.locator('summary').focus(); page.keyboard.press('Enter')
    table = page.locator('#table')
    assert table.is_visible() and table.input_value() == 'text,label\none,ham\nthree,ham\n'
    assert page.problems == []


def test_without_scripts_it_says_what_to_do(browser, tmp_path):
    (tmp_path/'label.html').write_text(label_page([ToLabel('one', 'unsure', .5, 'ham', {})], ['ham', 'spam'], 'text'),
                                       encoding='utf-8')
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((tmp_path/'label.html').as_uri())
    assert 'Trust HTML' in page.locator('noscript').inner_text()
