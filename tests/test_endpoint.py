"A server on loopback that fails in every way servers fail"
import asyncio
import json
import os
import random
import socket
import time

import pytest
from aiohttp import web

from genai_playbook.endpoint import Events, OpenAIModel, backoff, read_event, retry_after
from genai_playbook.errors import PlaybookError
from genai_playbook.models import wait

KEY = 'very-secret-key-1234'


def sse(*events, end='\n\n'):
    return b''.join(b'data: '+(e if isinstance(e, str) else json.dumps(e, ensure_ascii=False)).encode()+end.encode() for e in events)


def delta(text=None, finish=None, **more): return dict(choices=[dict(delta=dict(content=text) if text is not None else dict(role='assistant'), finish_reason=finish)], **more)


GOOD = delta(), delta('Hel'), delta('lo'), dict(choices=[dict(delta={}, finish_reason='stop')]), dict(choices=[], usage=dict(prompt_tokens=9, completion_tokens=2)), '[DONE]'


class Server:
    "Plays a script for each request: the user's message names it; `log` has what arrived"
    def __init__(self): self.log, self.tries, self.open, self.most = [], {}, 0, 0

    async def chat(self, request):
        body = await request.json()
        name = body['messages'][-1]['content']
        n = self.tries[name] = self.tries.get(name, 0)+1
        self.log.append((name, body, dict(request.headers)))
        self.open += 1
        self.most = max(self.most, self.open)
        try: return await getattr(self, name.split()[0], self.good)(request, body, n)
        finally: self.open -= 1

    async def send(self, request, *parts, kind='text/event-stream', pause=0., abort=False):
        r = web.StreamResponse(headers={'Content-Type': kind} if kind else {})
        await r.prepare(request)
        for p in parts:
            await r.write(p)
            await asyncio.sleep(pause)
        if abort: request.transport.abort()
        return r

    def json(self, said, status=200, **headers): return web.json_response(said, status=status, headers=headers)

    async def good(self, request, body, n): return await self.send(request, sse(*GOOD))
    async def slowly(self, request, body, n): return await self.send(request, *(sse(e) for e in GOOD), pause=.01)
    async def busy(self, request, body, n): return self.json(dict(error='busy'), 429, **{'Retry-After': '3'}) if n<3 else await self.good(request, body, n)
    async def dated(self, request, body, n): return self.json(dict(error='busy'), 503, **{'Retry-After': 'Thu, 01 Jan 1970 00:00:40 GMT'}) if n<2 else await self.good(request, body, n)
    async def down(self, request, body, n): return web.Response(status=500, text='<html><h1>Oops</h1></html>', content_type='text/html')
    async def once(self, request, body, n): return web.Response(status=int(body['messages'][-1]['content'].split()[1])) if n==1 else await self.good(request, body, n)
    async def reset(self, request, body, n): return await self.send(request, sse(*GOOD[:2]), abort=True) if n==1 else await self.good(request, body, n)
    async def resets(self, request, body, n): return await self.send(request, sse(*GOOD[:2]), pause=.05, abort=True)
    async def hang(self, request, body, n): await asyncio.sleep(30)
    async def stall(self, request, body, n): return await self.send(request, sse(*GOOD[:2]), pause=30)
    async def role_only(self, request, body, n): return await self.send(request, sse(GOOD[0]), pause=30)
    async def ajar(self, request, body, n): return await self.send(request, sse(*GOOD), pause=30)
    async def nonsense(self, request, body, n): return await self.send(request, sse('{"choices": [{"del'))
    async def strange(self, request, body, n): return await self.send(request, sse([1, 2]))
    async def no_done(self, request, body, n): return await self.send(request, sse(*GOOD[:4])[:-2])
    async def no_finish(self, request, body, n): return await self.send(request, sse(*GOOD[:3], '[DONE]'))
    async def cut_short(self, request, body, n): return await self.send(request, sse(*GOOD[:3]))
    async def empty(self, request, body, n): return await self.send(request)
    async def only_done(self, request, body, n): return await self.send(request, sse('[DONE]'))
    async def silent(self, request, body, n): return await self.send(request, sse(GOOD[0], GOOD[3], '[DONE]'))
    async def html(self, request, body, n): return await self.send(request, b'<html>Login</html>', kind='text/html')
    async def whole(self, request, body, n): return self.json(dict(choices=[dict(message=dict(content='Hello'), finish_reason='length')], usage=dict(prompt_tokens=9, completion_tokens=2)))
    async def no_choice(self, request, body, n): return self.json(dict(status='ok'))
    async def bad_json(self, request, body, n): return web.Response(text='{', content_type='application/json')
    async def late_error(self, request, body, n): return await self.send(request, sse(*GOOD[:2], dict(error=dict(message='CUDA error', code=500))))
    async def plain_error(self, request, body, n): return await self.send(request, sse(dict(object='error', message='too long')))
    async def moved(self, request, body, n): return web.Response(status=307, headers={'Location': 'http://127.0.0.1:1/v1'})
    async def echo(self, request, body, n): return web.Response(status=400, text=f'bad request {dict(request.headers)} {json.dumps(body)}')
    async def echo_stream(self, request, body, n): return await self.send(request, sse(dict(error=f'no: {request.headers["Authorization"]}')))
    async def echo_text(self, request, body, n): return await self.send(request, sse(delta(request.headers['Authorization'], 'stop')))
    async def crlf(self, request, body, n):
        wire = b'\xef\xbb\xbf: ping\r\n\r\n'+sse(delta('Grüße 🎉'), delta(finish='stop'), end='\r\n\r\n')
        return await self.send(request, *(wire[i:i+3] for i in range(0, len(wire), 3)))
    async def picky(self, request, body, n):
        await asyncio.sleep(.02) # all are under way before the first is refused
        if 'stream_options' in body: return self.json(dict(detail=[dict(msg='extra field stream_options')]), 422)
        if 'max_tokens' in body: return self.json(dict(error=dict(message="use 'max_completion_tokens' instead")), 400)
        return await self.good(request, body, n)

    async def models(self, request):
        if getattr(self, 'closed', False): return web.Response(status=401)
        return web.Response(status=404)

    async def start(self):
        app = web.Application(client_max_size=10**8)
        app.router.add_post('/v1/chat/completions', self.chat)
        app.router.add_get('/v1/models', self.models)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, '127.0.0.1', 0).start()
        self.url = f'http://127.0.0.1:{self.runner.addresses[0][1]}/v1'
        return self


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('TEST_API_KEY', KEY)
    s = wait(Server().start())
    yield s
    wait(s.runner.cleanup())


def model(server, **kw):
    m = OpenAIModel(getattr(server, 'url', server), 'some-model', api_key_env='TEST_API_KEY', **kw)
    m.waited = []
    async def sleep(seconds): m.waited.append(seconds)
    m.sleep, m.draw, m.now = sleep, lambda: .5, lambda: 10.
    return m


def test_what_is_sent(server):
    a, = model(server, max_new_tokens=7, seed=5).answer(['good'])
    assert (a.text, a.tokens_in, a.tokens_out, a.finish_reason, a.error)==('Hello', 9, 2, 'stop', None) and 0<=a.first_token_seconds<=a.seconds
    (_, body, headers), = server.log
    assert headers['Authorization']==f'Bearer {KEY}'
    assert body==dict(model='some-model', messages=[dict(role='user', content='good')], temperature=0, max_tokens=7, seed=5, stream=True, stream_options=dict(include_usage=True))


@pytest.mark.parametrize('name, waits', [('busy', [3.25, 3.5]), ('dated', [30.25]), ('reset', [.25]), ('once 408', [.25]), ('once 409', [.25]), ('once 502', [.25])])
def test_what_passes_is_tried_again(server, name, waits):
    m = model(server)
    a, = m.answer([name])
    assert (a.text, a.error)==('Hello', None) and m.waited==pytest.approx(waits)


@pytest.mark.parametrize('name, says, tries', [('down', 'HTTP 500 (3 tries)', 3), ('resets', 'the connection broke', 3), ('empty', 'the stream was empty', 3), ('only_done', 'the stream was empty', 3),
    ('cut_short', 'the stream ended before the answer did', 3), ('nonsense', 'not JSON', 1), ('strange', 'no chat completion', 1), ('no_choice', 'no chat completion', 1), ('bad_json', 'not JSON', 1), ('html', 'answers with text/html', 1),
    ('late_error', 'CUDA error', 1), ('plain_error', 'too long', 1), ('moved', 'write the final address', 1), ('echo', 'HTTP 400', 2), ('once 404', 'HTTP 404', 1), ('once 401', 'HTTP 401', 1)])
def test_one_failure_never_loses_the_others(server, name, says, tries):
    before, a, after = model(server, retries=2).answer(['good', name, 'good'])
    assert before.text==after.text=='Hello' and says in a.error and '\n' not in a.error and server.tries[name]==tries


@pytest.mark.parametrize('name, text, reason', [('no_done', 'Hello', 'stop'), ('no_finish', 'Hello', None), ('ajar', 'Hello', 'stop'), ('silent', '', 'stop'), ('whole', 'Hello', 'length'), ('crlf', 'Grüße 🎉', 'stop')])
def test_sloppy_servers_are_understood(server, name, text, reason):
    a, = model(server).answer([name])
    assert (a.text, a.finish_reason, a.error)==(text, reason, None)


@pytest.mark.parametrize('name, says', [('hang', 'no first token within 0.2 s'), ('role_only', 'no first token within 0.2 s'), ('stall', 'no whole answer within 0.4 s')])
def test_time_outs_are_not_tried_again(server, name, says):
    m = model(server, first_token_timeout=.2, total_timeout=.4)
    m._reached = True
    a, = m.answer([name])
    assert says in a.error and a.text==('Hel' if name=='stall' else '') and server.tries[name]==1


def test_connection_time_out(server):
    with socket.socket() as full: # accepts nobody: its queue is full
        full.bind(('127.0.0.1', 0))
        full.listen(0)
        others = [socket.socket() for _ in range(4)]
        for s in others: s.setblocking(False); s.connect_ex(full.getsockname())
        m = model(f'http://127.0.0.1:{full.getsockname()[1]}/v1', connect_timeout=.1, first_token_timeout=.3, total_timeout=.5, retries=1)
        with pytest.raises(PlaybookError, match='Nothing answers'): m.probe()
        m._reached = True
        assert m.answer(['good'])[0].error
        for s in others: s.close()


def test_secrets_stay_out(server):
    m = model(server)
    answers = m.answer(['echo a private diagnosis', 'echo_stream', 'echo_text'])
    kept = repr(m)+str(m.about)+m.digest+m.name+str(answers)+str(vars(m))+str(list(m.stream('echo')))
    assert KEY not in kept and 'diagnosis' not in answers[0].error and 'HTTP 400' in answers[0].error and '***' in answers[2].text


def test_fields_that_a_server_refuses(server):
    m = model(server)
    answers = m.answer(['picky']*5)
    assert [a.text for a in answers]==['Hello']*5 and m.waited==[]
    assert 'max_completion_tokens' in server.log[-1][1] and 'stream_options' not in server.log[-1][1]


def test_concurrency_order_and_progress(server):
    seen = []
    prompts = [f'slowly {i}' for i in range(12)]+['', 7, 'down']
    answers = model(server, concurrency=3, retries=0).answer(prompts, lambda done, total: seen.append((done, total)))
    assert [a.error is None for a in answers]==[True]*12+[False]*3 and server.most==3 and seen==[(i+1, 15) for i in range(15)]


def test_streaming(server):
    m, ticks = model(server), iter(range(1000))
    m.clock = lambda: next(ticks)
    *chunks, last = m.stream('slowly')
    assert [c.text for c in chunks]==['Hel', 'lo'] and 0<chunks[0].seconds<chunks[1].seconds<last.answer.seconds
    assert (last.answer.text, last.answer.tokens_out)==('Hello', 2)
    *chunks, last = m.stream('resets') # a word that was shown cannot be taken back, so this is not tried again
    assert [c.text for c in chunks]==['Hel'] and 'broke' in last.answer.error and last.answer.text=='Hel' and server.tries['resets']==1
    *chunks, last = m.stream('once 500')
    assert last.answer.text=='Hello' and server.tries['once 500']==2
    *chunks, last = m.stream('')
    assert not chunks and last.answer.error=='the prompt is empty'


def test_a_stream_may_be_left(server):
    stream = model(server).stream('stall')
    assert next(stream).text=='Hel'
    stream.close()


def test_inside_a_running_loop(server):
    async def notebook():
        m = model(server)
        return m.answer(['good'])[0].text, (await m.aanswer(['good']))[0].text, [c.text async for c in m.astream('good')], [c.text for c in m.stream('good')]
    assert asyncio.run(notebook())==('Hello', 'Hello', ['Hel', 'lo', ''], ['Hel', 'lo', ''])


def test_what_the_user_must_mend(server, monkeypatch):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        nobody = f'http://127.0.0.1:{s.getsockname()[1]}/v1'
    for go in (lambda m: m.probe(), lambda m: m.answer(['a']), lambda m: list(m.stream('a'))):
        with pytest.raises(PlaybookError, match=f'^Nothing answers at {nobody}: start the server or correct `model.base_url`$'): go(model(nobody))
    with pytest.raises(PlaybookError, match='Nothing answers'): asyncio.run(anext(model(nobody).astream('a')))
    server.closed = True
    with pytest.raises(PlaybookError, match='the key in `TEST_API_KEY` is not valid there'): model(server).answer(['a'])
    for url in ('localhost:8000', 'http://bob:pw@host/v1', 'http://host/v1?key=abc', 'ftp://host', ''):
        with pytest.raises(PlaybookError, match='base_url') as e: OpenAIModel(url, 'm')
        assert 'pw' not in str(e.value) and 'abc' not in str(e.value)
    monkeypatch.setenv('TEST_API_KEY', 'line\nbreak')
    with pytest.raises(PlaybookError, match='cannot be a key') as e: model(server).answer(['a'])
    assert 'break\n' not in str(e.value)
    monkeypatch.delenv('TEST_API_KEY')
    with pytest.raises(PlaybookError, match='`TEST_API_KEY`, which `model.api_key_env` names, is not set'): model(server).answer(['a'])


def test_a_server_that_goes_away_later_is_data(server):
    m = model(server, retries=1)
    assert m.answer(['good'])[0].error is None
    wait(server.runner.cleanup())
    assert 'broke' in m.answer(['good'])[0].error and len(m.waited)==1
    server.runner = type('Gone', (), dict(cleanup=lambda self: asyncio.sleep(0)))()


def test_digests():
    a = OpenAIModel('http://h/v1', 'm')
    assert a.digest==OpenAIModel('http://h/v1/', 'm', api_key_env='X', concurrency=2, seed=9).digest
    others = OpenAIModel('http://h/v2', 'm'), OpenAIModel('http://h/v1', 'n'), OpenAIModel('http://h/v1', 'm', max_new_tokens=9), OpenAIModel('http://h/v1', 'm', temperature=1.), OpenAIModel('http://h/v1', 'm', temperature=1., seed=1)
    assert len({m.digest for m in (a, *others)})==6 and not OpenAIModel('http://h/v1', 'm', temperature=1., seed=None).deterministic


def test_events_in_any_pieces():
    rnd, wire = random.Random(0), 'data: ä\r\rdata:b\r\n\r\n: c\n\ndata: 🎉\ndata:\n\nevent: x\n\ndata: end'.encode()
    for _ in range(200):
        e, cuts = Events(), sorted(rnd.choices(range(len(wire)+1), k=6))
        got = [x for i, j in zip([0, *cuts], [*cuts, len(wire)]) for x in e.feed(wire[i:j])]+e.feed(b'', end=True)
        assert got==['ä', 'b', '🎉\n', 'end']
    with pytest.raises(ValueError, match='10 MB'): Events().feed(b'data: '+b'x'*10_000_001)


def test_waiting():
    assert [retry_after(h, time.time()) for h in ('1e9', '99999999999999', 'Fri, 99 Foo 2020', 'Mon, 01 Jan 1990 00:00:00 GMT')]==[0]*4
    assert backoff(50, 0)==20 and backoff(0, 1e9)==60 and backoff(3, 2, 0)==2


@pytest.mark.parametrize('said', ['7', 'null', '{"choices": 7}', '{"choices": [7]}', '{"choices": [{"delta": 7}]}', '{"usage": 7}'])
def test_json_that_is_nothing(said):
    with pytest.raises(ValueError, match='no chat completion'): read_event(said)


def test_no_key_in_the_environment_of_the_test(): assert 'TEST_API_KEY' not in os.environ
