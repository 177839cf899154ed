"In a real browser: reports from disk, and JupyterLab with the cockpit, a slider, the labelling desk; screenshots stay in build/screenshots"
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from genai_playbook.ledger import Ledger

HERE = Path(__file__).resolve().parent.parent
SHOTS = HERE/'build'/'screenshots'
FLAGS = [f'--{f}' for f in 'no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync'.split()]
LONG = 180_000  # milliseconds: a busy machine starts kernels slowly; every wait is for a condition
PHONE = dict(width=390, height=800)
CLI = [sys.executable, '-m', 'genai_playbook.cli']


def why_none():  # why there is no browser here; '' where there is one
    try: import axe_playwright_python, playwright  # noqa: F401
    except ImportError as e: return f'{e.name} is not installed (pip install -e ".[dev]")'
    return '' if chromium() else 'no Chromium: apt-get install chromium, as .ci/run does'


def chromium(): return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


pytestmark = pytest.mark.skipif(bool(why_none()), reason=why_none())


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import Error, sync_playwright
    shutil.rmtree(SHOTS, ignore_errors=True)
    SHOTS.mkdir(parents=True)
    with sync_playwright() as p:
        try: b = p.chromium.launch(executable_path=chromium(), args=FLAGS, timeout=LONG)
        except Error as e:
            if os.environ.get('CI'): raise
            pytest.skip(f'{chromium()} does not start here: {str(e).splitlines()[0]}')
        yield b
        b.close()


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    "A folder for a run and for JupyterLab, with caches and settings of its own"
    folder = tmp_path_factory.mktemp('browser')
    own = dict(JUPYTERLAB_SETTINGS_DIR='settings', JUPYTERLAB_WORKSPACES_DIR='workspaces', JUPYTER_CONFIG_DIR='config', JUPYTER_RUNTIME_DIR='runtime',
               IPYTHONDIR='ipython', GENAI_PLAYBOOK_CACHE='cache', GENAI_PLAYBOOK_DATA='data')
    chosen = {'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False),  # it would ask a server
              'notebook-extension/tracker': dict(windowingMode='none')}                           # cells out of sight are drawn, too
    for plugin, settings in chosen.items():
        path = folder/'settings'/'@jupyterlab'/f'{plugin}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get('PYTHONPATH')]))
    return folder, os.environ | {k: str(folder/v) for k, v in own.items()} | dict(PYTHONPATH=path)


@pytest.fixture(scope='module')
def evidence(work):
    "A run of one chapter and the decision"
    folder, env = work
    done = subprocess.run([*CLI, 'run', 'demo', '--chapters', 'success,decision', '--effort', 'quick', '--out', folder/'report'],
                          env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout+done.stderr   # the demo's NO-GO
    return next((folder/'report'/'demo').glob('*-*'))


@pytest.fixture(scope='module')
def lab(work):
    "Address of a JupyterLab in a workspace of the demo"
    folder, env = work
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    token, log = secrets.token_hex(), folder/'lab.log'
    with open(log, 'wb') as out:
        server = subprocess.Popen([*CLI, 'lab', 'demo', '--no-browser', '--port', str(port), '--allow-root', '--ServerApp.ip=127.0.0.1', '--LabApp.extension_manager=readonly',
                                   f'--IdentityProvider.token={token}'], env=env, cwd=folder, stdout=out, stderr=out)
    try:
        wait_for(lambda: answers(f'http://127.0.0.1:{port}/api?token={token}'), lambda: server.poll() is None, log)
        yield folder/'playbook-lab'/'demo', lambda name: f'http://127.0.0.1:{port}/lab/tree/playbook-lab/demo/{name}?reset&token={token}'
    finally:
        server.terminate()
        try: server.wait(60)
        except subprocess.TimeoutExpired: server.kill()


def answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except (OSError, urllib.error.URLError): return False


def wait_for(ready, alive, log, seconds=LONG/1000):
    end = time.monotonic()+seconds
    while not ready():
        assert alive() and time.monotonic() < end, log.read_text()
        time.sleep(.2)


class Watch:
    "What a page said on its console, and every address it asked for"
    def __init__(self, browser, **kw):
        self.said, self.asked = [], []
        self.page = browser.new_page(**kw)
        self.page.set_default_timeout(LONG)
        self.page.on('console', lambda m: self.said.append(f'{m.type}: {m.text}'))
        self.page.on('pageerror', lambda e: self.said.append(f'error: {e}'))
        self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.route(lambda url: not url.startswith(('file:', 'data:', 'blob:', 'http://127.0.0.1:')), lambda route: route.abort())

    def __enter__(self): return self
    def __exit__(self, kind, *a):
        if kind: self.shot('failed')
        self.page.close()

    def beyond_loopback(self): return [u for u in self.asked if not u.startswith(('file:', 'data:', 'blob:', 'http://127.0.0.1:'))]

    def shot(self, name, **kw): self.page.screenshot(path=SHOTS/f'{name}.png', **kw)


def violations(page, context=None):
    "What axe-core, which the package brings along, finds serious or critical"
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, context=context).response['violations']
    return [f'{v["id"]}: {n["html"][:200]} {n["failureSummary"]}' for v in found if v['impact'] in ('serious', 'critical') for n in v['nodes']]


# -- reports --

def check_page(browser, path, shot=None, opened='details', **kw):
    with Watch(browser, **kw) as w:
        w.page.goto(path.as_uri())
        if shot: w.shot(shot, full_page=True)
        w.page.evaluate(f"document.querySelectorAll('{opened}').forEach(d => d.open = true)")
        assert violations(w.page) == []
        assert w.said == [] and w.asked[0] == path.as_uri() and not [u for u in w.asked[1:] if not u.startswith('data:')]


VIEWS = [('index', 'light', None), ('index', 'dark', PHONE), ('01_success', 'dark', None), ('01_success', 'light', PHONE), ('13_decision', 'light', None)]


@pytest.mark.parametrize(('name', 'theme', 'size'), VIEWS)
def test_a_report_opens_from_disk_loads_nothing_and_can_be_read_by_everybody(browser, evidence, name, theme, size):
    shot = f'report-{name}-{theme}{"-phone" if size else ""}'
    check_page(browser, evidence/f'{name}.html', shot, color_scheme=theme, viewport=size or dict(width=1280, height=900))


def test_the_pages_of_all_chapters_can_be_read_by_everybody(browser, tmp_path):
    from genai_playbook.chapters import find_chapters
    from genai_playbook.pages import chapter_html
    for c in find_chapters().values():
        chapter_html(c.path, tmp_path/f'{c.name}.html')
        check_page(browser, tmp_path/f'{c.name}.html', opened='details.lesson', viewport=dict(width=1000, height=900))


# -- JupyterLab --

def run_all(w, url):
    w.page.goto(url)
    w.page.locator('#jp-main-statusbar').get_by_text('| Idle').wait_for()   # earlier, JupyterLab asks for a kernel
    w.page.get_by_role('menuitem', name='Run', exact=True).click()
    w.page.get_by_role('menuitem', name='Run All Cells', exact=True).click()


def switch_theme(w, name):
    w.page.get_by_role('menuitem', name='Settings', exact=True).click()
    for item in ('Theme', f'JupyterLab {name}'): w.page.locator('.lm-Menu-itemLabel').get_by_text(item, exact=True).click()
    w.page.locator(f'body[data-jp-theme-light={"true" if name == "Light" else "false"}]').wait_for(state='attached')


def write_notebook(path, *cells):
    import nbformat
    kernel = dict(name='python3', display_name='Python 3', language='python')
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=kernel)), path)


WHY = 'Fewer cases are solved than were promised.'


def test_the_cockpit_runs_a_chapter_shows_the_decision_and_takes_a_signature(browser, lab):
    folder, address = lab
    with Watch(browser, viewport=dict(width=1400, height=1000)) as w:
        run_all(w, address('start_here.ipynb'))
        w.page.locator('.gp-run').wait_for()
        boxes = w.page.locator('.gp-chapters input[type=checkbox]')
        for i in range(boxes.count()): boxes.nth(i).set_checked('success' in (boxes.nth(i).locator('xpath=..').text_content() or ''))
        w.shot('cockpit')
        w.page.locator('.gp-run').click()
        w.page.locator('.gp-decision', has_text='NO-GO').wait_for()
        w.page.locator('.gp-run:enabled').wait_for()
        w.page.locator('.gp-decision').scroll_into_view_if_needed()
        w.shot('cockpit-decision')
        sign_as(w, 'Ada Lovelace, risk', WHY)
        w.shot('sign-off')
        assert violations(w.page, '.gp-cockpit') == []
        switch_theme(w, 'Dark')
        w.shot('sign-off-dark')
        assert violations(w.page, '.gp-cockpit') == [] and w.beyond_loopback() == []
        switch_theme(w, 'Light')   # JupyterLab remembers it
    signed = Ledger(folder.parents[1]/'data'/'demo'/'ledger.sqlite').entries('decision')
    assert [(e.who, e.why, e.facts['go']) for e in signed] == [('Ada Lovelace, risk', WHY, False)]


def sign_as(w, by, because):
    form = w.page.locator('.gp-sign-off')
    form.locator('.gp-sign-by input').fill(by)
    form.locator('.gp-sign-decision').get_by_text('NO-GO', exact=True).click()
    form.locator('.gp-sign-because textarea').fill(because)
    form.locator('.gp-sign').click()
    form.locator('.gp-signed', has_text='NO-GO').wait_for()
    w.page.locator('#jp-main-statusbar').get_by_text('| Idle').wait_for()   # where the run stands is read again after that


def test_a_slider_moves_a_verdict(browser, lab):
    folder, address = lab
    nb = json.loads((folder/'01_success.ipynb').read_text())
    for c in nb['cells']: c['source'] = ''.join(c['source']).replace('effort: str = "full"', 'effort: str = "quick"')
    (folder/'quick.ipynb').write_text(json.dumps(nb))
    with Watch(browser, viewport=dict(width=1400, height=1000)) as w:
        run_all(w, address('quick.ipynb'))
        last = w.page.locator('.jp-CodeCell').last
        handle = last.locator('[role=slider]').first   # of the target
        handle.wait_for()
        handle.scroll_into_view_if_needed()
        last.get_by_text('FAIL').first.wait_for()
        w.shot('slider-before')
        handle.focus()
        w.page.keyboard.press('Home')   # the lowest target
        last.get_by_text('PASS').first.wait_for()
        w.shot('slider-after')
        assert w.beyond_loopback() == []


DESK = ['from genai_playbook.labelling import *',
        'items = {f"q{i}": dict(message=f"Where is parcel {i}? <b>& \\"quoted\\"</b>", answer=f"It arrives on day {i}.") for i in range(20)}',
        'label_widget(Session(LabelTask("labels.jsonl", items, gold=dict(q3="wrong")), "ada"))']


def test_ten_answers_are_labelled_by_keyboard_and_survive_a_restart(browser, lab):
    folder, address = lab
    write_notebook(folder/'desk.ipynb', *DESK)
    with Watch(browser, viewport=dict(width=1400, height=1000)) as w:
        run_all(w, address('desk.ipynb'))
        desk = w.page.locator('.gp-label')
        desk.get_by_text('0 of 20').wait_for()
        desk.focus()
        for k in range(11):
            w.page.keyboard.press('12'[k % 2])
            desk.get_by_text(f'{k+1} of 20').wait_for()
        w.page.keyboard.press('u')
        desk.get_by_text('10 of 20').wait_for()
        assert desk.locator('b').count() == 0   # what people write is text
        w.shot('labelling')
        assert violations(w.page, '.gp-label') == []
        before = desk.locator('dd').last.text_content()
        w.page.get_by_role('menuitem', name='Kernel', exact=True).click()
        w.page.get_by_role('menuitem', name='Restart Kernel and Run All Cells…').click()
        w.page.get_by_role('button', name='Confirm Kernel Restart').click()
        desk.get_by_text('Taken back.').wait_for(state='hidden')   # said by the kernel that is gone
        desk.get_by_text('10 of 20').wait_for()
        assert desk.locator('dd').last.text_content() == before
        switch_theme(w, 'Dark')
        w.shot('labelling-after-restart-dark')
        assert violations(w.page, '.gp-label') == []
        switch_theme(w, 'Light')
        desk.get_by_role('button', name='wrong').click()
        desk.get_by_text('11 of 20').wait_for()
        lines = [json.loads(l) for l in (folder/'labels.jsonl').read_text().splitlines()]
        assert [r['label'] for r in lines] == [*['right', 'wrong']*5, 'right', None, 'wrong'] and len({r['item'] for r in lines[:10]}) == 10
        assert w.beyond_loopback() == []
