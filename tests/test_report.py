"Reports under attack: hostile text, odd numbers, broken notebooks, crashes, and a browser that tells whether a page loads anything"

import base64
import http.server
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import genai_playbook
from genai_playbook import faces
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import MIME
from genai_playbook.mathml import tex_mathml
from genai_playbook.pages import clean
from genai_playbook.report import chapter_html, index_html, junit_xml, manifest, model_card_md, plain, summary_md, write_evidence, write_whole

SCHEMA = json.loads((Path(genai_playbook.__file__).parent / 'evidence.schema.json').read_text())
XSS = '"><script>document.title="owned"</script><img src=x onerror="alert(1)">'
NAN = float('nan')


def make_gate(code='SUC01', verdict='PASS', **kw):
    return (
        dict(
            code=code,
            chapter='success',
            name='Outcome delivered',
            metric='share settled',
            value=0.91,
            low=0.89,
            high=0.93,
            level=0.95,
            n=900,
            unit='share',
            threshold=0.85,
            direction='>=',
            verdict=verdict,
            hard=True,
            method='Clopper-Pearson',
            cell='c1',
            note='',
            clusters=None,
            unscored=0,
            needed=None,
            advice='',
        )
        | kw
    )


def make_evidence(gates=None, **kw):
    gates = [make_gate()] if gates is None else gates
    return (
        dict(
            schema='genai_playbook/evidence/1',
            gates=gates,
            records={},
            effort='quick',
            partial=False,
            started='2026-01-05T09:00:00+00:00',
            finished='2026-01-05T09:01:00+00:00',
            decision=dict(
                verdict='NO-GO',
                headline='NO-GO, 1 of 12 dimensions: 1 hard gate failed',
                reasons=['because'],
                next_steps=[dict(code='SUC01', step='mend it')],
                scope={},
                exit_code=1,
            ),
            chapters=[
                dict(
                    name='success',
                    title='Success',
                    question='Does it?',
                    status='done',
                    seconds=3.2,
                    notebook='01_success.ipynb',
                    html='01_success.html',
                    error='',
                )
            ],
            poc=dict(name='parcel', card='demo', promise='Settles questions'),
            environment=dict(python='3.11'),
            digests=dict(model='9c'),
        )
        | kw
    )


def md(text, *tags, id='m1', **kw):
    return dict(cell_type='markdown', id=id, metadata=dict(tags=list(tags)), source=text, **kw)


def code(source, *outputs, tags=(), id='c1', **meta):
    return dict(cell_type='code', id=id, metadata=dict(tags=list(tags), **meta), source=source, execution_count=1, outputs=list(outputs))


def data(meta=None, **kw):
    return dict(output_type='display_data', metadata=meta or {}, data={k.replace('__', '/'): v for k, v in kw.items()})


def gate_out(g):
    return dict(output_type='display_data', metadata={}, data={MIME: dict(type='gate', gate=g), 'text/html': '<p>stored face</p>'})


def error(**kw):
    return (
        dict(
            output_type='error',
            ename='KeyError',
            evalue="'group'",
            traceback=["\x1b[31mKeyError\x1b[39m \x1b[38;5;28mTraceback\x1b[39m <b>'group'</b>"],
        )
        | kw
    )


def notebook(*cells, **meta):
    return dict(nbformat=4, nbformat_minor=5, metadata=meta, cells=list(cells))


def png(w=40, h=20):
    from PIL import Image

    out = BytesIO()
    Image.new('RGB', (w, h), 'red').save(out, 'PNG')
    return base64.b64encode(out.getvalue()).decode()


class Page(HTMLParser):
    "What a page would load or run, and the text of its pictures"

    def __init__(self, html):
        super().__init__()
        self.tags, self.loads, self.handlers, self.images, self.ids = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        self.handlers += [k for k in a if k.startswith('on')]
        self.ids += [a['id']] if 'id' in a else []
        if tag == 'img':
            self.images.append(a)
        for k, v in a.items():
            if k in ('src', 'srcset', 'data', 'poster', 'action', 'background') or k.endswith('href') and tag != 'a':
                self.loads += [] if (v or '').startswith(('data:', '#')) else [(tag, k, v)]
            if k == 'style' and re.search(r'url\((?!["\']?data:)', v or ''):
                self.loads.append((tag, k, v))


def harmless(html):
    p = Page(html)
    assert not p.loads and not p.handlers and not {'script', 'iframe', 'object', 'embed', 'link', 'base', 'form'} & set(p.tags)
    assert not re.search(r'@import|url\((?!["\']?data:)', html) and not re.search(r'href="\s*(javascript|data|vbscript):', html, re.I)
    return p


# --- files ---------------------------------------------------------------------------------------
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    p = write_whole(tmp_path / 'a.json', 'old')

    def no(*a):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', no)
    with pytest.raises(OSError):
        write_whole(p, 'new')
    assert p.read_text() == 'old' and [x.name for x in tmp_path.iterdir()] == ['a.json']


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    p = write_whole(tmp_path / 'a.txt', 'x' * 2_000_000)
    code = (
        f'from genai_playbook.report import write_whole\nfor i in range(10**6): write_whole({str(p)!r}, "abc"[i%3]*2_000_000); print(i, flush=True)'
    )
    child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
    for _ in range(5):
        child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    text = p.read_text()
    assert len(text) == 2_000_000 and len(set(text)) == 1


def test_writers_do_not_mix(tmp_path):
    p = tmp_path / 'a.txt'
    ts = [threading.Thread(target=lambda c=c: [write_whole(p, c * 100_000) for _ in range(10)]) for c in 'abcd']
    [t.start() for t in ts]
    [t.join() for t in ts]
    assert len(set(p.read_text())) == 1 and len(list(tmp_path.iterdir())) == 1


def test_text_that_is_no_unicode_is_still_written(tmp_path):
    assert write_whole(tmp_path / 'a', 'a\ud800b').read_text() == 'a?b'


# --- evidence ------------------------------------------------------------------------------------
def test_evidence_is_valid_json_and_keeps_to_its_schema(tmp_path):
    ev = make_evidence(
        [make_gate(value=NAN, low=-math.inf, high=np.float64('inf'), n=np.int64(0), hard=np.True_, verdict='NOT TESTED')],
        records=dict(curve=np.arange(3), when={np.int64(3): {'b', 'a'}}),
    )
    text = write_evidence(ev, tmp_path / 'evidence.json').read_text()

    def refuse(c):
        raise AssertionError(c)

    back = json.loads(text, parse_constant=refuse)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(back, SCHEMA)
    g = back['gates'][0]
    assert (g['value'], g['low'], g['high'], g['n'], g['hard']) == ('NaN', '-Infinity', 'Infinity', 0, True) and back['records'] == dict(
        curve=[0, 1, 2], when={'3': ['a', 'b']}
    )
    assert text == write_evidence(dict(reversed(ev.items())), tmp_path / 'again.json').read_text()


@pytest.mark.parametrize('change', [dict(verdict='MAYBE'), dict(code='S1'), dict(low='wide'), dict(n=-1), dict(direction='>'), dict(hard='yes')])
def test_the_schema_refuses(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(make_evidence([make_gate(**change)]), SCHEMA)


def test_what_the_evidence_module_makes_keeps_to_the_schema():
    from genai_playbook.evidence import Gate, decide

    g = Gate(**make_gate(verdict='FAIL', value=0.7, low=0.6, high=0.8))
    d = decide([g], [dict(name='success', status='done')])
    jsonschema.validate(make_evidence([g.to_dict()], decision=d.to_dict()), SCHEMA)


def test_what_has_no_plain_form_is_named():
    with pytest.raises(PlaybookError, match=r'evidence\.records\.m\[1\] is a object'):
        plain(dict(records=dict(m=[1, object()])))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=10
    )
)
def test_plain_is_stable_json(x):
    once = plain(x)
    assert plain(once) == once and json.loads(json.dumps(once, allow_nan=False)) == once


# --- faces ---------------------------------------------------------------------------------------
@settings(max_examples=200)
@given(
    *[
        st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1) | st.sampled_from([None, 'NaN', 'Infinity', '-Infinity', 0, 1, 0.85])
        for _ in range(4)
    ],
    st.sampled_from(['share', 'ms', 'EUR', 'count', 'tokens/s', '']),
    st.sampled_from(['>=', '<=']),
)
def test_every_gate_has_faces(value, low, high, threshold, unit, direction):
    g = make_gate(value=value, low=low, high=high, threshold=threshold, unit=unit, direction=direction)
    html = faces.gate_html(g)
    ET.fromstring(html.replace('&nbsp;', ' '))  # well-formed, drawing included
    assert not re.search(r'="[^"]*(nan|inf)[^a-z"]*"', re.sub(r'aria-label="[^"]*"', '', html)) and 'nan' not in faces.gate_text(g).lower().replace(
        'outcome', ''
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_rounding_never_hides_a_miss(low, threshold):
    s = faces.gate_numbers(make_gate(low=low, threshold=threshold))
    assert abs(low - threshold) < 1e-8 or s['low'] != s['threshold']


def test_faces_escape_and_survive_the_loss_of_style():
    g = make_gate(name=XSS, note=XSS, metric=XSS, method=XSS, code=XSS, unit=XSS, verdict='FAIL')
    harmless(faces.gate_html(g, href=f'#{XSS}'))
    harmless(faces.decision_html(dict(verdict='NO-GO', headline=XSS, reasons=[XSS], next_steps=[dict(code=XSS, step=XSS)])))
    bare = re.sub(r'<svg.*?</svg>|style="[^"]*"', '', faces.gate_html(make_gate(verdict='FAIL')))
    text = re.sub('<[^>]+>', '', bare)
    assert '✗ FAIL' in text and '91\u00a0%, one-sided 95\u00a0% bounds 89\u00a0% and 93\u00a0%; must be at least 85\u00a0%' in text


def test_gates_of_one_kind_share_their_axis():
    assert faces.scale(make_gate(low=0.82, value=0.9, high=0.95)) == faces.scale(make_gate(low=0.83, value=0.86, high=0.89)) == (0.8, 1.0)
    lo, hi = faces.scale(make_gate(unit='ms', low=-30, value=1, high=40, threshold=0))
    assert lo == -hi == -50


# --- pages ---------------------------------------------------------------------------------------
HOSTILE = [
    '<script src="http://{h}/a.js"></script>',
    '<img src="http://{h}/b.png">',
    '<IMG SRC="//{h}/c.png" onerror=alert(1)>',
    '<iframe srcdoc="<script>1</script>"></iframe>',
    '<link rel=stylesheet href="http://{h}/d.css">',
    '<style>@import "http://{h}/e.css"; b{{background:url(http://{h}/f)}}</style>',
    '<b style="background:url(//{h}/g)">x</b>',
    '<svg><image href="http://{h}/h.png"/><use xlink:href="http://{h}/i#x"/></svg>',
    '<a href="java\tscript:alert(1)">x</a>',
    '<form action="http://{h}/j"><input formaction="http://{h}/k"></form>',
    '<video poster="http://{h}/l"><source src="http://{h}/m"></video>',
    '<object data="http://{h}/n"></object>',
    '<meta http-equiv="refresh" content="0;url=http://{h}/o">',
    '<base href="http://{h}/">',
    '<img srcset="http://{h}/p 2x" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">',
    '</div></main></body><script>1</script>',
    '<table background="http://{h}/q"><tr><td>1</td></tr></table>',
    '<!--[if IE]><script>1</script><![endif]-->',
    '<svg onload=alert(1)><script>1</script><foreignObject><iframe src="http://{h}/r"></iframe></foreignObject></svg>',
    '<details open ontoggle=alert(1)>',
    '<a href="data:text/html,<script>1</script>">x</a>',
    '<img src="http://{h}/s',
    '<style>b{{background:u\\72l(http://{h}/t)}}</style>',
    '<p style="background-image:image-set(\'http://{h}/u\' 1x)">x</p>',
    '<template><img src="http://{h}/v"></template>',
    '<noscript><img src="http://{h}/w"></noscript>',
]


def hostile_notebook(host):
    bad = [h.format(h=host) for h in HOSTILE]
    return notebook(
        md('# Attack\n\n> ' + XSS + '\n\n' + bad[0] + '\n\n![](http://' + host + '/md.png) and $x^2$', id='a'),
        *(code('show()', data(text__html=h, text__plain='x'), id=f'h{i}') for i, h in enumerate(bad)),
        *(md(h, id=f'm{i}') for i, h in enumerate(bad)),
        code(
            'ask()',
            dict(output_type='stream', name='stdout', text=XSS),
            data(text__plain=XSS),
            data(text__markdown=XSS + f'![x](http://{host}/2.png)'),
            data(text__latex=XSS),
            gate_out(make_gate(note=XSS, name=XSS, cell=XSS)),
            error(evalue=XSS, ename=XSS),
            data({'alt': XSS}, image__png=png()),
            data(image__png='"><script>1</script>'),
            {
                'output_type': 'display_data',
                'metadata': {},
                'data': {'image/svg+xml': f'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="http://{host}/z.png"/></svg>'},
            },
            {'output_type': 'display_data', 'metadata': {}, 'data': {'application/javascript': f'fetch("http://{host}/js")', 'text/plain': 'js'}},
            id='"><script>1</script>',
            tags=['finding'],
        ),
        code('# Parameters\ntarget = "' + XSS.replace('"', '\\"') + '"', tags=['injected-parameters'], id='p'),
        widgets={'application/vnd.jupyter.widget-state+json': {'state': {}}},
    )


def test_a_hostile_notebook_becomes_a_harmless_page():
    p = harmless(chapter_html(hostile_notebook('evil.example')))
    assert all(i.get('alt') and i.get('src') for i in p.images)
    assert len(p.ids) == len(set(p.ids))


@pytest.mark.parametrize('html', HOSTILE)
def test_clean(html):
    once = clean(html.format(h='evil.example'), 'text')
    harmless(once)
    assert clean(once, 'text') == once


CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
def test_a_browser_loads_nothing_and_runs_nothing(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *a):
            pass

    srv = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    host = f'127.0.0.1:{srv.server_port}'
    try:
        page = chapter_html(hostile_notebook(host))
        unsafe = page.replace(
            '</main>',
            f'<script>document.title="owned"</script><script src="http://{host}/x"></script><img src="http://{host}/y">'
            f'<link rel="stylesheet" href="http://{host}/z"></main>',
        )
        write_whole(tmp_path / '01_success.ipynb', json.dumps(hostile_notebook(host)))
        index_html(make_evidence([make_gate(note=XSS, name=XSS)], poc=dict(name=XSS, card=XSS, promise=XSS)), tmp_path)
        for name, html in (('page', page), ('unsafe', unsafe)):
            write_whole(tmp_path / f'{name}.html', html)  # the second was not cleaned: the content policy alone must hold
        for name in ('page', 'unsafe', 'index'):
            out = subprocess.run(
                [
                    CHROMIUM,
                    '--headless',
                    '--no-sandbox',
                    '--disable-gpu',
                    '--disable-quic',
                    '--no-first-run',
                    '--disable-background-networking',
                    '--disable-component-update',
                    '--disable-sync',
                    f'--user-data-dir={tmp_path / "profile"}',
                    '--virtual-time-budget=3000',
                    '--dump-dom',
                    (tmp_path / f'{name}.html').as_uri(),
                ],
                capture_output=True,
                text=True,
                timeout=120,
            ).stdout
            title = re.search('<title>(.*?)</title>', out, re.S)[1]
            assert '<main' in out and title != 'owned'
        assert asked == []
    finally:
        srv.shutdown()
        srv.server_close()


def test_findings_come_first_and_lead_to_their_cells():
    h = chapter_html(
        notebook(
            md('# Success\n\n> Does it?\n\nIntro', id='t'),
            md('## How\n\nlesson', 'lesson', id='l'),
            code('x=1', tags=['lesson'], id='k'),
            code('gate()', gate_out(make_gate()), id='g'),
            md('## Plot of regions', id='h'),
            code('plot()', data(image__png=png()), tags=['finding'], id='f'),
        )
    )
    p = harmless(h)
    assert h.index('Findings') < h.index('href="#cell-g"') < h.index('href="#cell-f"') < h.index('Intro') < h.index('id="cell-g"')
    assert 'stored face' not in h and {'cell-g', 'cell-f'} <= set(p.ids) and [i['alt'] for i in p.images] == ['Plot of regions'] * 2
    fold = re.search(r'<details class="lesson">(.*?)</details>\s*<div', h, re.S)[1]
    assert 'id="cell-l"' in fold and 'id="cell-k"' in fold and 'id="cell-g"' not in fold and '<summary>Method and known answers' in fold


def test_code_is_folded_by_kind_and_nbdev_housekeeping_is_gone():
    h = chapter_html(
        notebook(
            md('# A', id='t'),
            code('#| default_exp a', id='d'),
            code('#| export\ndef area(r): return r*r', id='e'),
            code('#| hide\nsecret_helper()', id='x'),
            code('area(2)', id='c'),
        )
    )
    assert (
        '<summary>Source · area</summary>' in h
        and '<summary>Code</summary>' in h
        and 'secret_helper' not in h
        and 'default_exp' not in h
        and '#|' not in h
    )


def test_parameters_are_one_table():
    h = chapter_html(
        notebook(
            md('# A', id='t'),
            code('target: float = .85  # share | <needed>\nn: int = 5  # rows', tags=['parameters'], id='p'),
            code('# Parameters\ntarget = 0.9\nn = 5', tags=['injected-parameters'], id='i'),
        )
    )
    rows = re.findall('<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>', h)
    assert (
        rows == [('target', '<code>0.9</code> <small>default 0.85</small>', 'share | &lt;needed&gt;'), ('n', '<code>5</code>', 'rows')]
        and h.count('>Parameters</h3>') == 1
    )


def test_a_broken_chapter_says_so():
    marker = md('<span>An Exception was encountered</span>', 'papermill-error-cell-tag', id='pm')
    nb = notebook(
        marker,
        md('# Bias', id='t'),
        md('## lesson', 'lesson', id='l'),
        code('f()', error(), tags=['lesson'], id='boom', papermill={'status': 'failed'}),
        code('g()', id='after', papermill={'status': 'pending'}),
    )
    h = chapter_html(nb)
    assert (
        'This chapter broke.' in h
        and 'href="#cell-boom"' in h
        and '<details class="lesson" open>' in h
        and 'did not run' in h
        and 'An Exception was encountered' not in h
    )
    assert 'ansi-red-fg' in h and 'style="color: rgb' not in h and '\x1b' not in h
    timed_out = chapter_html(notebook(md('# Bias', id='t')), error='it took longer than 60 s')
    assert 'This chapter broke.</strong> it took longer than 60 s' in timed_out
    assert '2 cells did not run' in chapter_html(notebook(*(code('x', id=f'c{i}', papermill={'status': 'pending'}) for i in range(2))))


def test_widgets_become_their_static_face():
    view = {'application/vnd.jupyter.widget-view+json': {'model_id': 'a1'}}
    h = chapter_html(
        notebook(
            md('# A', id='t'),
            code('a', data(**view, text__plain='Explorer(region=west)'), id='w'),
            code('b', data(**view, text__html='<b>five</b>', text__plain='no'), id='v'),
            widgets={'application/vnd.jupyter.widget-state+json': {'state': {'a1': 'STATE'}}},
        )
    )
    assert 'Explorer(region=west)' in h and '<b>five</b>' in h and 'STATE' not in h and 'a1' not in h


def test_logs_are_folded_and_progress_bars_shown_once():
    h = chapter_html(
        notebook(
            md('# A', id='t'),
            code('a', dict(output_type='stream', name='stderr', text=['  1%|\r', ' 50%|\r100%|done\n', 'warning: \x1b[33mold\x1b[0m\n']), id='w'),
        )
    )
    assert '<summary>Log</summary>' in h and '100%|done' in h and '50%' not in h and 'ansi-yellow-fg' in h


def test_pictures_from_attachments_and_files(tmp_path):
    (tmp_path / 'fig.png').write_bytes(base64.b64decode(png()))
    nb = notebook(
        md('# A\n\n![one](attachment:a.png) ![two](fig.png) ![three](none.png)', id='t', attachments={'a.png': {'image/png': png()}}),
        md('![x](attachment:gone.png)', id='u'),
    )
    write_whole(tmp_path / 'a.ipynb', json.dumps(nb))
    p = Page(chapter_html(tmp_path / 'a.ipynb', tmp_path / 'a.html'))
    assert [i['src'][:22] for i in p.images if i['alt'] in ('one', 'two')] == ['data:image/png;base64,'] * 2


@pytest.mark.parametrize(
    'cells',
    [
        [],
        [md('')],
        [code('')],
        [md('no heading')],
        [dict(cell_type='raw', id='r', metadata={}, source='x')],
        [code('x', data(application__json={'a': 1}))],
        [code('x', tags=['parameters']), code('y')],
        [code('derived = f(', tags=['parameters'])],
        [dict(cell_type='markdown', metadata={}, source=['# A\n', 'b'])],
    ],
)
def test_odd_notebooks_still_make_a_page(cells):
    assert '<main' in chapter_html(notebook(*cells))


def test_pages_are_lean_and_deterministic(tmp_path):
    nb = hostile_notebook('evil.example')
    write_whole(tmp_path / '01_success.ipynb', json.dumps(nb))
    write_whole(tmp_path / 'evidence.json', json.dumps(plain(make_evidence())))
    prog = (
        'import json, sys; from genai_playbook.report import chapter_html, index_html, junit_xml, summary_md; folder = sys.argv[1]; '
        'ev = json.load(open(folder+"/evidence.json")); print(chapter_html(folder+"/01_success.ipynb"), index_html(ev, folder), junit_xml(ev), summary_md(ev))'
    )
    outs = [
        subprocess.run([sys.executable, '-c', prog, str(tmp_path)], capture_output=True, check=True, env={**os.environ, 'PYTHONHASHSEED': s, 'TZ': z}).stdout
        for s, z in (('1', 'UTC'), ('2', 'Asia/Tokyo'))
    ]
    assert outs[0] == outs[1]
    assert len(chapter_html(notebook(md('# A', id='t')))) < 20_000


def test_a_notebook_that_papermill_ran(tmp_path):
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    setup = (
        'from types import SimpleNamespace\nfrom genai_playbook.evidence import GateSpec, gate, record\nfrom genai_playbook.stats import proportion\n'
        'card = SimpleNamespace(threshold=lambda s: s.default, is_hard=lambda s: s.hard)\n'
        "spec = GateSpec('SUC01', 'Outcome delivered', 'share settled', 'success.target', .85)"
    )
    cells = [
        md('# Success\n\n> Does it deliver?', id='t'),
        code('n: int = 100  # answers', tags=['parameters'], id='p'),
        code(setup, id='s'),
        code('gate(spec, proportion([1]*n), card)\nrecord("counts", dict(n=n))', id='g'),
        code('import ipywidgets\nipywidgets.IntSlider(value=7)', id='w'),
        md('## Growth', id='h'),
        code('%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()', tags=['finding'], id='f'),
        code('1/0', id='z'),
        code('"never"', id='after'),
    ]
    nb = nbformat.from_dict(notebook(*(c | ({'outputs': [], 'execution_count': None} if c['cell_type'] == 'code' else {}) for c in cells)))
    nb.metadata['kernelspec'] = dict(name='python3', display_name='python3', language='python')
    nbformat.write(nb, tmp_path / 'in.ipynb')
    with pytest.raises(PapermillExecutionError):
        papermill.execute_notebook(str(tmp_path / 'in.ipynb'), str(tmp_path / 'out.ipynb'), dict(n=300), progress_bar=False, store_widget_state=True)
    h = chapter_html(tmp_path / 'out.ipynb', tmp_path / 'out.html')
    p = harmless(h)
    assert 'This chapter broke.</strong> ZeroDivisionError: division by zero' in h and 'href="#cell-z"' in h and 'Code · did not run' in h
    assert '<code>300</code> <small>default 100</small>' in h and 'An Exception was encountered' not in h
    assert h.count('✓ PASS') == 2 and 'href="#cell-g"' in h and 'n = 300, Clopper-Pearson' in h and 'Recorded for other chapters' in h
    assert 'IntSlider(value=7)' in h and 'model_id' not in h and [i['alt'] for i in p.images] == ['Growth'] * 2


def luminance(c):
    return sum(
        w * (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4)
        for w, v in zip((0.2126, 0.7152, 0.0722), (int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)))
    )


def contrast(a, b):
    x, y = sorted((luminance(a), luminance(b)))
    return (y + 0.05) / (x + 0.05)


def test_text_can_be_read_in_both_themes():
    css = (Path(genai_playbook.__file__).parent / 'templates' / 'style.css').read_text()
    full = lambda h: '#' + ''.join(c * 2 for c in h[1:]) if len(h) == 4 else h
    themes = [{k: full(v) for k, v in re.findall(r'--([a-z]+):(#[0-9a-f]+)', block)} for block in re.findall(r':root\{(.*?)\}', css, re.S)]
    assert len(themes) == 3
    for t in themes:
        for ink in set(t) - {'bg', 'soft', 'line', 'bar'}:
            for paper in ('bg', 'soft'):
                assert contrast(t[ink], t[paper]) >= 4.5, (ink, paper, t)


# --- maths ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'tex,want',
    [
        (r'\frac12', '<mfrac><mn>1</mn><mn>2</mn></mfrac>'),
        (r'x^12', '<msup><mi>x</mi><mn>1</mn></msup><mn>2</mn>'),
        (r'\hat{p}_i', '<msub><mover accent="true"><mi>p</mi><mo>^</mo></mover><mi>i</mi></msub>'),
        (r'\bar x \pm 1{,}96', '<mo>±</mo>'),
        (r'\text{a < b}', '<mtext>a &lt; b</mtext>'),
        (r'P(X \le x \mid \theta)', '<mo>∣</mo>'),
        (r'\sqrt[3]{2}', '<mroot>'),
        (r'\left. x \right|', '<mo>|</mo>'),
    ],
)
def test_maths(tex, want):
    got = tex_mathml(tex)
    assert want in got and ET.fromstring(got).tag == 'math'


@given(
    st.text(alphabet='\\{}^_$&%<>"abcxyz0123456789 ()[]+-=|', max_size=40)
    | st.lists(st.sampled_from(r'\frac \sqrt { } ^ _ x 1 \hat \sum \left( \right) [ ] \text{a} \foo \binom'.split())).map(' '.join),
    st.booleans(),
)
def test_any_tex_stays_readable_and_harmless(tex, block):
    got = tex_mathml(tex, block)
    ET.fromstring(got)
    harmless(got)


# --- index ---------------------------------------------------------------------------------------
def test_the_index_shows_everything_and_escapes_it(tmp_path):
    write_whole(
        tmp_path / '01_success.ipynb',
        json.dumps(notebook(md('## Regions', id='h'), code('plot()', data(image__png=png(2000, 500)), tags=['finding'], id='f'))),
    )
    ev = make_evidence(
        [
            make_gate(),
            make_gate('SEC01', 'FAIL', chapter='security', note=XSS, name=XSS, value=0.03, low=0.02, high=0.05, threshold=0.01, direction='<='),
            make_gate('BIA01', 'NOT TESTED', chapter='bias', value='NaN', low='NaN', high='NaN', n=0),
        ],
        partial=True,
        digests={XSS: XSS},
        environment={'libraries': {XSS: XSS}},
        poc=dict(name=XSS, card='my poc/"x.yaml', promise=XSS),
    )
    ev['decision'] |= dict(reasons=[XSS, dict(code='SEC01', reason=XSS)], next_steps=[dict(code='SEC01', step=XSS), 'plain words'], headline=XSS)
    ev['chapters'] += [
        dict(name='bias', title=XSS, question=XSS, status='broke', seconds=0, notebook='none.ipynb', html='none.html', error=XSS),
        dict(name='cost', title='Cost', status='exempt', seconds=0, notebook='', html='', error='no money'),
    ]
    h = index_html(ev, tmp_path)
    p = harmless(h)
    assert (tmp_path / 'index.html').read_text() == h and len(p.ids) == len(set(p.ids))
    assert '✗ NO-GO' in h and 'PARTIAL' in h and h.count('<svg role="img"') == 2 and 'href="01_success.html#cell-c1"' in h and 'href="#SEC01"' in h
    assert [i['alt'] for i in p.images] == ['Regions'] and len(p.images[0]['src']) < 20_000
    assert 'FAIL">✗ 1 fail<' not in h and '✓ 1 pass' in h and '○ 1 not tested' in h
    assert 'no money' in h and 'no chapter measured it' in h and 'genai-playbook run' in h


def test_an_empty_run_has_an_index(tmp_path):
    ev = make_evidence(
        [],
        chapters=[],
        environment={},
        digests={},
        decision=dict(verdict='INSUFFICIENT EVIDENCE', headline='Nothing ran', reasons=[], next_steps=[], scope={}, exit_code=3),
    )
    assert '? INSUFFICIENT EVIDENCE' in index_html(ev, tmp_path) and 'Nothing ran' in summary_md(ev)
    assert ET.fromstring(junit_xml(ev)).get('tests') == '0'


# --- other formats -------------------------------------------------------------------------------
def test_junit():
    bell = 'bell\x07 \x1b[31m \ud800 ]]> <x>'
    ev = make_evidence(
        [
            make_gate(),
            make_gate('SUC02', 'FAIL', note=bell),
            make_gate('SUC03', 'FAIL', hard=False),
            make_gate('SUC04', 'INSUFFICIENT'),
            make_gate('SUC05', 'INSUFFICIENT', hard=False),
            make_gate('SUC06', 'NOT TESTED', hard=False),
            make_gate('GHO01', 'PASS', chapter='ghost'),
        ]
    )
    ev['chapters'] += [
        dict(name='bias', title='', status='broke', seconds=1, notebook='', html='', error=bell),
        dict(name='load', title='', status='timed out', seconds=1, error=''),
        dict(name='cost', title='', status='exempt', seconds=0, error='x'),
    ]
    root = ET.fromstring(junit_xml(ev).encode())
    kinds = {t.get('name').split()[0]: [k.tag for k in t] for t in root.iter('testcase') if t.get('name') != 'chapter'}
    assert kinds == dict(SUC01=[], SUC02=['failure'], SUC03=['failure'], SUC04=['error'], SUC05=['skipped'], SUC06=['skipped'], GHO01=[])
    assert {s.get('name'): [k.tag for t in s for k in t] for s in root if s.get('name') != 'success'} == dict(
        bias=['error'], load=['error'], cost=['skipped'], ghost=[]
    )
    assert [root.get(k) for k in ('tests', 'failures', 'errors', 'skipped')] == ['10', '2', '3', '3']


def test_markdown_cannot_be_broken_by_what_it_shows():
    bad = 'a|b\n\n# h [click](http://evil.example) ![x](http://evil.example/x.png) `code` ` <img src=x> @team **b** ` | `x|y` \\` <img src=x>'
    ev = make_evidence([make_gate('SUC01', 'FAIL', name=bad, method=bad, note=bad)], poc=dict(name=bad, card='x', promise=bad), digests={bad: bad})
    ev['decision'] |= dict(headline=bad, next_steps=[dict(code='SUC01', step=bad)])
    from markdown_it import MarkdownIt

    for text in (summary_md(ev), model_card_md(ev, {'owner': bad, 'data': ['a', bad]})):
        html = MarkdownIt('gfm-like', {'linkify': False}).render(text)
        tags = set(Page(html).tags)
        assert not {'img', 'a'} & tags
        body = [r for r in text.splitlines() if r.startswith('| ✗')]
        assert len(body) == 1 and len(re.findall(r'(?<!\\)\|', body[0])) == 7


def test_the_model_card_names_the_cell_of_each_number():
    text = model_card_md(make_evidence([make_gate(), make_gate('SUC02', 'FAIL', value=0.7, low=0.6, high=0.8)]))
    assert '01\\_success.ipynb c1' in text and '**SUC02** Outcome delivered: fail' in text and 'Not covered' in text


def test_the_manifest_covers_each_file(tmp_path):
    (tmp_path / 'sub').mkdir()
    for n in ('a.txt', 'sub/b.txt', '.hidden', '.partial.tmp'):
        (tmp_path / n).write_text(n)
    first = manifest(tmp_path, dict(card='4f'))
    assert (
        list(first['files']) == ['a.txt', 'sub/b.txt']
        and first['card'] == '4f'
        and first['environment']['python']
        and first['files']['a.txt']['bytes'] == 5
    )
    assert manifest(tmp_path, dict(card='4f')) == first == json.loads((tmp_path / 'manifest.json').read_text())
    (tmp_path / 'a.txt').write_text('changed')
    assert manifest(tmp_path, dict(card='4f'))['files']['a.txt'] != first['files']['a.txt']


def test_importing_is_light():
    heavy = 'nbconvert nbformat jinja2 PIL bs4 matplotlib pandas torch papermill IPython pygments'.split()
    prog = f'import sys, genai_playbook.report, genai_playbook.pages; print([m for m in {heavy} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', prog], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    prog = 'import sys, genai_playbook.faces; print("numpy" in sys.modules, "dataclasses" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', prog], capture_output=True, text=True, check=True).stdout.split()[0] == 'False'


def test_words_stand_left_and_numbers_right():
    import pandas as pd

    from genai_playbook.pages import clean
    soup = clean(pd.DataFrame(dict(said=['no', '5'], n=[1, 2], p=['', '5 %'])).to_html())
    assert soup.count('class="text"') == 3 and '<td>1</td>' in soup and '<th class="text">said</th>' in soup
    assert clean('<table class="dataframe"><tr><td>a</td></tr><tr></tr><tr><td>a</td><td>b</td></tr></table>').count('text') == 0


# --- advisory gates, corrected for their number ---------------------------------------------------------

def test_advisory_gates_carry_a_corrected_p(tmp_path):
    gates = [make_gate(), make_gate('SUC02', hard=False, low=.88), make_gate('SUC03', 'FAIL', hard=False, value=.5, low=.4, high=.6), make_gate('SUC04', 'INSUFFICIENT', hard=False, low=.8, value=.84, high=.88),
             make_gate('SUC05', 'NOT TESTED', hard=False, value=NAN, low=NAN, high=NAN, n=0), make_gate('SUC06', hard=False, value=.9, low=.9, high=.9, method='exact')]
    evidence = make_evidence(gates)
    stored = json.loads(write_evidence(evidence, tmp_path/'evidence.json').read_text())
    jsonschema.validate(stored, SCHEMA)
    holm = {g['code']: g['holm'] for g in stored['gates']}
    assert [k for k, p in holm.items() if p is None] == ['SUC01', 'SUC04', 'SUC05'] and holm['SUC06'] == 0
    assert 1e-4 < holm['SUC02'] < .05 and holm['SUC03'] < 1e-6 and 'holm' not in evidence['gates'][1]
    text = summary_md(evidence)
    assert text.count('among 5 advisory gates') == 2 and 'holds among 5' in text


def test_a_verdict_that_chance_explains_is_said_to_be_one(tmp_path):
    gates = [make_gate(f'SUC{i:02}', hard=False, low=.851) for i in range(1, 21)]
    page = index_html(make_evidence(gates), tmp_path)
    assert page.count('may be chance among 20 advisory gates') == 20 and 'may be chance' not in index_html(make_evidence(gates[:1]), tmp_path)
    assert all(g['holm'] == pytest.approx(.96, abs=.1) for g in json.loads(write_evidence(make_evidence(gates), tmp_path/'e.json').read_text())['gates'])


@pytest.mark.parametrize('direction, verdict, value, low, high, threshold, sure', [('<=', 'PASS', .01, .005, .02, .1, True), ('<=', 'FAIL', .3, .25, .36, .1, True), ('<=', 'PASS', .01, 0, .0499, .05, False),
                                                                                  ('>=', 'PASS', 1200., 1000., 1500., 400., True), ('>=', 'FAIL', -3., -4., -2., 5., True), ('<=', 'PASS', 0, 0, .01, .5, True)])
def test_p_is_that_of_the_side_that_decided(tmp_path, direction, verdict, value, low, high, threshold, sure):
    g = make_gate('BIA03', verdict, hard=False, direction=direction, value=value, low=low, high=high, threshold=threshold)
    p = json.loads(write_evidence(make_evidence([g]), tmp_path/'e.json').read_text())['gates'][0]['holm']
    assert (p < 1e-3) == sure and p <= .05
