"The endpoint against clients that are hostile, slow, gone, or too many"
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from genai_playbook.errors import PlaybookError
from genai_playbook.local_model import TransformersModel
from genai_playbook.models import BadPrompt, PythonModel, wait
from genai_playbook.serve import Engine, Job, Service, read_request, retry_seconds, serve_until, start_server
from genai_playbook.system import System

HELLO = dict(messages=[dict(role='user', content='hello')])


class Running:
    "A service in this process, and requests to it"
    def __init__(self, model, guards_in=(), guards_out=(), fallbacks=(), **kw):
        self.service = Service(System(model, None, guards_in, guards_out, fallbacks), 'm', **kw)
        self.url = wait(self.service.start())
        self.port = int(self.url.split(':')[2].split('/')[0])

    def ask(self, body, path='/v1/chat/completions', headers=None, method='POST'):
        c = HTTPConnection('127.0.0.1', self.port, timeout=20)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        c.request(method, path, data, {'Content-Type': 'application/json', **(headers or {})})
        r = c.getresponse()
        return r.status, r.read(), r.headers

    def stream(self, body=None, **kw):
        status, data, _ = self.ask((body or HELLO) | dict(stream=True) | kw)
        found = [e[6:] for e in data.decode().split('\n\n') if e] if status == 200 else []
        return status, [e if e == '[DONE]' else json.loads(e) for e in found]

    def raw(self, text: bytes):
        s = socket.create_connection(('127.0.0.1', self.port), timeout=10)
        s.sendall(text)
        return s

    def stats(self): return json.loads(self.ask(None, '/stats', method='GET')[1])

    def settled(self):
        for _ in range(500):
            s = self.stats()
            if not s['active'] and not s['waiting']: break
            time.sleep(.01)
        assert s['accepted'] == s['finished']+s['failed']+s['left']+s['active'], s
        assert not s['active']
        return s


@pytest.fixture
def run():
    made = []
    def go(model, **kw):
        made.append(Running(PythonModel(model) if callable(model) else model, **kw))
        return made[-1]
    yield go
    for r in made: wait(r.service.stop(drain=0))


def words(prompt):
    for w in ('On', ' ', 'Friday'): yield w


def text_of(events): return ''.join(e['choices'][0]['delta'].get('content', '') for e in events if e != '[DONE]' and e.get('choices'))


@pytest.mark.parametrize('body, status', [
    (b'', 400), (b'{', 400), (b'nonsense', 400), (b'\xff\xfe\x00', 400), (b'[]', 400), (b'null', 400), (b'3', 400), (b'{}', 400), (b'['*100_000, 400),
    (dict(messages=[]), 400), (dict(messages='hello'), 400), (dict(messages=[3]), 400), (dict(messages=[{}]), 400), (dict(messages=[dict(role='user')]), 400),
    (dict(messages=[dict(role='user', content=None)]), 400), (dict(messages=[dict(role='user', content='  ')]), 400), (dict(messages=[dict(role=None, content='x')]), 400),
    (dict(messages=[dict(role='system', content='obey'), dict(role='user', content='x')]), 400), (dict(messages=[dict(role='tool', content='x')]), 400),
    (dict(messages=[dict(role='user', content=[dict(type='image_url', image_url='x')])]), 400), (dict(messages=[dict(role='user', content=[3])]), 400),
    (HELLO | dict(max_tokens=0), 400), (HELLO | dict(max_tokens='9'), 400), (HELLO | dict(max_tokens=True), 400), (HELLO | dict(n=2), 400), (HELLO | dict(tools=[dict()]), 400),
    (HELLO | dict(stream='yes'), 400), (HELLO | dict(stream_options=[1]), 400), (HELLO | dict(model='other'), 404), (HELLO | dict(model=3), 404),
    (dict(messages=[dict(role='user', content='x'*1_100_000)]), 413),
])
def test_a_bad_request_gets_one_sentence(run, body, status):
    r = run(words)
    got, data, headers = r.ask(body)
    assert got == status, data
    said = json.loads(data)['error']['message']
    assert said and '\n' not in said and len(said) < 200 and 'Traceback' not in said
    assert headers['X-Request-ID']
    assert r.ask(HELLO)[0] == 200  # and the next one is served
    assert r.settled()['accepted'] == 1


def test_good_requests_whole_and_streamed(run):
    r = run(words)
    _, data, headers = r.ask(HELLO, headers={'X-Request-Id': 'case-7'})
    d = json.loads(data)
    assert headers['X-Request-ID'] == 'case-7' and d['id'] == 'chatcmpl-case-7'
    assert d['choices'][0]['message'] == dict(role='assistant', content='On Friday') and d['usage'] is None  # the function counts no tokens
    _, events = r.stream(stream_options=dict(include_usage=True))
    assert text_of(events) == 'On Friday' and events[-1] == '[DONE]' and events[0]['choices'][0]['delta']['role'] == 'assistant'
    assert events[-3]['choices'][0]['finish_reason'] == 'stop' and events[-2]['choices'] == []
    assert text_of(r.stream(dict(messages=[dict(role='user', content=[dict(type='text', text='a'), dict(type='text', text='b')])]))[1]) == 'On Friday'


def test_paths_and_methods(run):
    r = run(words)
    assert r.ask(None, '/v1/chat/completions', method='GET')[0] == 405
    assert r.ask(None, '/../../etc/passwd', method='GET')[0] == 404
    assert r.ask(None, '/health', method='GET')[0] == 200
    assert json.loads(r.ask(None, '/v1/models', method='GET')[1])['data'][0]['id'] == 'm'


def test_a_forged_request_id_is_replaced(run):
    r = run(words)
    for bad in ('x'*65, 'a b', '<script>', 'ä'): assert r.ask(HELLO, headers={'X-Request-Id': bad.encode()})[2]['X-Request-ID'] != bad


def test_the_key(run):
    r = run(words, key='s3cret')
    assert r.ask(HELLO)[0] == 401 and r.ask(HELLO, headers=dict(Authorization='Bearer wrong'))[0] == 401
    assert r.ask(HELLO, headers=dict(Authorization='Bearer s3cret'))[0] == 200
    assert r.ask(None, '/health', method='GET')[0] == 200  # a load balancer has no key
    assert b's3cret' not in r.ask(HELLO)[1]


def test_a_private_prompt_is_in_no_error(run):
    def bot(prompt): raise ValueError(f'cannot read {prompt}')
    status, data, _ = run(bot).ask(dict(messages=[dict(role='user', content='my secret illness')]))
    assert status == 500 and b'illness' not in data


def test_guards_and_fallbacks_are_served(run):
    def shout(prompt): return 'loud' if prompt != 'crash' else 1/0
    block = lambda t: None if 'bomb' in t else t
    r = run(shout, guards_in=[block], guards_out=[str.upper])
    ask = lambda t: r.stream(dict(messages=[dict(role='user', content=t)]))
    assert text_of(ask('hello')[1]) == 'LOUD'
    status, events = ask('bomb')
    assert status == 200 and text_of(events) == '' and events[-2]['choices'][0]['finish_reason'] == 'content_filter'
    assert ask('crash')[0] == 500
    r = run(shout, guards_in=[block], fallbacks=['Call us.'])
    assert text_of(ask('bomb')[1]) == text_of(ask('crash')[1]) == 'Call us.'


def test_a_failure_in_the_middle_of_a_stream(run):
    def half(prompt):
        yield 'On '
        raise ValueError('gone')
    status, events = run(half).stream()
    assert status == 200 and text_of(events) == 'On ' and any('error' in e for e in events if e != '[DONE]') and events[-1] == '[DONE]'


def test_a_full_line_refuses_and_loses_nothing(run):
    gate = threading.Event()
    def slow(prompt): gate.wait(20); return 'yes'
    r = run(slow, workers=1, max_waiting=3)
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(r.ask, HELLO) for _ in range(12)]
        while r.stats()['refused'] < 8: time.sleep(.01)
        gate.set()
        found = [f.result() for f in found]
    assert sorted(s for s, *_ in found) == [200]*4+[429]*8
    assert all(1 <= int(h['Retry-After']) <= 60 for s, _, h in found if s == 429)
    s = r.settled()
    assert (s['accepted'], s['refused'], s['finished']) == (4, 8, 4)


def test_hanging_up_frees_the_place(run):
    started, gate = threading.Event(), threading.Event()
    def slow(prompt): started.set(); gate.wait(20); return 'yes'
    r = run(slow, workers=1, max_waiting=2)
    body = json.dumps(HELLO | dict(stream=True)).encode()
    head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n' % len(body)
    sockets = [r.raw(head+body)]
    started.wait(10)
    sockets += [r.raw(head+body) for _ in range(2)]
    while r.stats()['waiting'] < 2: time.sleep(.01)
    for s in sockets: s.close()
    while r.stats()['left'] < 3: time.sleep(.01)
    gate.set()
    assert r.ask(HELLO)[0] == 200
    s = r.settled()
    assert s['left'] == 3 and s['finished'] == 1 and s['computed'] == 2  # those who left while they waited were never computed


def test_half_a_request_and_rubbish_do_not_stop_the_rest(run):
    r = run(words)
    held = [r.raw(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"mess'), r.raw(b'\x00\x01\x02rubbish\r\n\r\n'), r.raw(b'GET /hea')]
    assert r.ask(HELLO)[0] == 200
    for s in held: s.close()
    assert r.ask(HELLO)[0] == 200


def test_a_reader_that_does_not_read_is_cut_off(run):
    def endless(prompt):
        for _ in range(400): yield 'x'*100_000
    r = run(endless, stalled=.3)
    body = json.dumps(HELLO | dict(stream=True)).encode()
    s = r.raw(b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n' % len(body)+body)
    for _ in range(500):
        if r.stats()['left']+r.stats()['failed']: break
        time.sleep(.02)
    assert r.settled()['finished'] == 0
    s.close()


def test_an_answer_that_takes_too_long(run):
    gate = threading.Event()
    def slow(prompt):
        if prompt == 'half': yield 'On '
        gate.wait(20); yield 'yes'
    r = run(slow, timeout=.2)
    assert r.ask(HELLO)[0] == 504 and r.stream()[0] == 504
    status, events = r.stream(dict(messages=[dict(role='user', content='half')]))
    assert status == 200 and 'error' in events[-2] and text_of(events) == 'On '
    gate.set()


def test_stopping_finishes_what_was_accepted(run):
    started, gate = threading.Event(), threading.Event()
    def slow(prompt): started.set(); gate.wait(20); return 'yes'
    r = run(slow)
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(r.ask, HELLO)
        started.wait(10)
        stopping = pool.submit(lambda: wait(r.service.stop(drain=20)))
        while not r.service.draining: time.sleep(.01)
        status, data, headers = r.ask(HELLO)
        assert status == 503 and headers['Retry-After'] and r.ask(None, '/health', method='GET')[0] == 503
        gate.set()
        assert asked.result()[0] == 200 and stopping.result() == 0


# --- batches of a transformers model ---------------------------------------------------------------
def test_concurrent_requests_are_batched_and_answered_as_alone(run, tiny_model):
    model = TransformersModel(tiny_model, max_new_tokens=12, device='cpu')
    prompts = ['hello', 'where is my parcel?', 'x'*40, 'ä€😀', 'hello']
    alone = [model.answer([p])[0] for p in prompts]
    r = run(TransformersModel(tiny_model, max_new_tokens=12, device='cpu'), workers=1)
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda i: r.stream(dict(messages=[dict(role='user', content=prompts[i % 5])]), stream_options=dict(include_usage=True)), range(40)))
    for i, (status, events) in enumerate(found):
        a = alone[i % 5]
        assert status == 200 and text_of(events) == a.text
        assert events[-2]['usage'] == dict(prompt_tokens=a.tokens_in, completion_tokens=a.tokens_out, total_tokens=a.tokens_in+a.tokens_out)
    s = r.settled()
    assert s['computed'] == 40 and s['batches'] < 30


def test_max_tokens_only_shortens(run, tiny_model):
    r = run(TransformersModel(tiny_model, max_new_tokens=6, device='cpu'))
    count = lambda n: json.loads(r.ask(HELLO | dict(max_tokens=n))[1])['usage']['completion_tokens']
    assert count(2) == 2 and count(5) <= count(50) <= 6


def test_one_over_long_prompt_does_not_take_its_neighbours_down(tiny_model):
    m = TransformersModel(tiny_model, max_new_tokens=5, device='cpu')
    last = {i: c.answer for step in m.streams(['a', 'x'*999, '', 'b']) for i, c in step if c.answer}
    assert last.keys() == {0, 1, 2, 3} and 'tokens' in last[1].error and last[2].error and not last[0].error and last[0].text == m.answer(['a'])[0].text


def test_who_left_is_computed_no_further(tiny_model):
    m, gone, heard = TransformersModel(tiny_model, max_new_tokens=30, device='cpu'), set(), {0: 0, 1: 0}
    for step in m.streams(['hello', 'where?'], gone=lambda i: i in gone):
        for i, c in step: heard[i] += c.answer is None
        if heard[1] >= 3: gone.add(1)
    assert heard[1] == 3 < heard[0]


def test_a_batch_that_fails_is_halved(tiny_model, monkeypatch):
    m = TransformersModel(tiny_model, max_new_tokens=5, device='cpu')
    steps, sizes = m._steps, []
    def failing(ids, left=None):
        sizes.append(len(ids))
        if len(ids) > 2: raise MemoryError
        return steps(ids, left)
    monkeypatch.setattr(m, '_steps', failing)
    last = {i: c.answer for step in m.streams(list('abcdef')) for i, c in step if c.answer}
    assert sorted(last) == list(range(6)) and not any(a.error for a in last.values()) and max(sizes) == 6
    monkeypatch.setattr(m, '_steps', lambda ids, left=None: (_ for _ in ()).throw(ValueError('broken')))
    assert [c.answer.error for step in m.streams(['a', 'b']) for _, c in step] == ['ValueError: broken']*2


def test_a_model_that_breaks_answers_everybody():
    class Broken:
        name, live, deterministic, about = 'b', True, True, dict(device='cpu')
        def streams(self, prompts, limits=None, gone=None): raise RuntimeError('boom')
    got = []
    e = Engine(System(Broken()), workers=1, deliver=lambda step: got.extend(step))
    e.start()
    jobs = [Job(read_request(HELLO)) for _ in range(3)]
    assert all(e.submit(j) for j in jobs)
    e.close(); e.threads[0].join(10)
    assert {j for j, _ in got} == set(jobs) and all(c.answer.error for _, c in got)
    assert not e.submit(Job(read_request(HELLO)))


def test_recorded_answers_are_not_served():
    class Log:
        name, live, deterministic, about = 'log', False, True, {}
    with pytest.raises(PlaybookError, match='recorded'): Engine(System(Log())).start()


def test_retry_seconds_stays_in_its_bounds():
    for waiting in (0, 1, 10**6):
        for ended in ([], [1.], [1., 1.], [0., 1e-9], [0., 1e9]): assert 1 <= retry_seconds(waiting, ended) <= 60


@pytest.mark.parametrize('body', [None, 3, 'x', [], dict(messages={}), dict(messages=[[]]), dict(messages=[dict(role=[], content='x')]), dict(messages=[dict(role='user', content='x')], max_tokens=1.5)])
def test_read_request_raises_only_one_kind_of_error(body):
    with pytest.raises(BadPrompt): read_request(body)


# --- a process of its own --------------------------------------------------------------------------
CARD = '''poc: mine
outcome: {promise: answers that are right}
model: {kind: python, target: "bot:answer", concurrency: 2}
data: {evaluation: rows.csv, columns: {prompt: prompt, reference: reference}}
'''


@pytest.fixture
def card(tmp_path):
    (tmp_path/'bot.py').write_text('import time\ndef answer(prompt):\n    if prompt == "slow": time.sleep(1)\n    return prompt\n')
    (tmp_path/'rows.csv').write_text('id,prompt,reference\n1,hello,hello\n')
    (tmp_path/'poc.yaml').write_text(CARD)
    return tmp_path


def gone(pid, seconds=15):
    for _ in range(seconds*20):
        try: os.kill(pid, 0)
        except ProcessLookupError: return True
        time.sleep(.05)
    return False


def test_a_server_process_serves_and_ends(card):
    with start_server(card/'poc.yaml') as s:
        c = HTTPConnection(s.url.split('/')[2], timeout=10)
        c.request('POST', '/v1/chat/completions', json.dumps(HELLO | dict(model='mine')))
        assert json.loads(c.getresponse().read())['choices'][0]['message']['content'] == 'hello'
        assert s.stats()['accepted'] == 1
    assert s.process.returncode == 0 and gone(s.pid)


def test_a_server_dies_with_its_parent(card):
    code = f'from genai_playbook.serve import start_server\nimport time\ns = start_server({str(card/"poc.yaml")!r})\nprint(s.pid, flush=True)\ntime.sleep(60)'
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill(); parent.wait()
    assert gone(pid)


def test_sigterm_drains(card):
    with start_server(card/'poc.yaml') as s, ThreadPoolExecutor(1) as pool:
        def ask():
            c = HTTPConnection(s.url.split('/')[2], timeout=10)
            c.request('POST', '/v1/chat/completions', json.dumps(dict(messages=[dict(role='user', content='slow')])))
            return c.getresponse().status
        asked = pool.submit(ask)
        while not s.stats()['active']: time.sleep(.01)
        os.kill(s.pid, signal.SIGTERM)
        assert asked.result() == 200 and s.process.wait(10) == 0


@pytest.mark.parametrize('options, says', [(dict(cores=[999]), 'no cores 999'), (dict(cores=['a']), 'separated by commas'), (dict(api_key_env='NO_SUCH_VARIABLE'), 'NO_SUCH_VARIABLE'), (dict(batch=0), '--batch')])
def test_what_a_user_can_mend_is_one_sentence(card, options, says):
    with pytest.raises(PlaybookError, match=says): start_server(card/'poc.yaml', **options)


def test_a_port_that_is_taken(card, run):
    r = run(words)
    with pytest.raises(PlaybookError, match=f'port {r.port}.*--port'): serve_until(Service(System(PythonModel(words))), port=r.port)
    asyncio.set_event_loop(None)
