"What servers send, and what the load client makes of it: a scripted server on loopback, read byte by byte"
import asyncio
import json
import socket
import struct
import threading

import pytest

from genai_playbook.arrivals import Closed
from genai_playbook.loadgen import Target, run_load

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'
CLOSE = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n'
DONE = 'data: [DONE]\n\n'
RESET = object()


def event(*choices, end='\n\n', **more): return 'data: '+json.dumps(dict(choices=list(choices), **more), ensure_ascii=False)+end


def delta(text=None, finish=None, **more): return dict(index=0, delta=(dict(content=text) if text is not None else {})|more, finish_reason=finish)


def usage(n, **more): return event(usage=dict(prompt_tokens=7, completion_tokens=n, **more))


def chunk(data):
    data = data.encode() if isinstance(data, str) else data
    return b'%x\r\n' % len(data)+data+b'\r\n'


LAST = chunk(event(delta(finish='stop')))
END = LAST+chunk(usage(3))+chunk(DONE)+b'0\r\n\r\n'
THREE = [event(delta(w)) for w in ('One ', 'two ', 'three')]
BODY = [HEAD, .03, chunk(THREE[0]), .02, chunk(THREE[1]), .02, chunk(THREE[2])]
UNFRAMED = (''.join(THREE)+event(delta(finish='stop'))+usage(3)+DONE).encode()
WHOLE = json.dumps(dict(choices=[dict(message=dict(content='One two three'), finish_reason='stop')], usage=dict(prompt_tokens=7, completion_tokens=3))).encode()


def plain(status, body, kind='application/json', extra=b''): return b'HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n' % (status, kind.encode(), len(body), extra)+body


def cut(data, size, pause=.001): return [x for i in range(0, len(data), size) for x in (data[i:i+size], pause)]


# what the server does -> what must be seen: error, tokens, remark
GOOD = {
    'one token per chunk': (BODY+[END], 3, ''),
    'role-only delta first': ([HEAD+chunk(event(delta('', role='assistant'))), .05]+BODY[1:]+[END], 3, ''),
    'several tokens per chunk': ([HEAD, .03, chunk(event(delta('One two '))), .02, chunk(event(delta('three '))), LAST+chunk(usage(6))+chunk(DONE)+b'0\r\n\r\n'], 6, ''),
    'several events per write': ([HEAD+b''.join(map(chunk, THREE))+END], 3, ''),
    'several events in one HTTP chunk': ([HEAD+chunk(''.join(THREE))+END], 3, ''),
    'event over several HTTP chunks': ([HEAD, *[x for c in THREE[0] for x in (chunk(c),)], chunk(THREE[1]), chunk(THREE[2]), END], 3, ''),
    'every byte by itself': (cut(HEAD+b''.join(map(chunk, THREE))+END, 1, 0), 3, ''),
    'reasoning tokens shown': ([HEAD, chunk(event(delta(reasoning_content='hm'))), .03, chunk(event(delta(reasoning_content='so')))]+BODY[1:]+[LAST+chunk(usage(5))+chunk(DONE)+b'0\r\n\r\n'], 5, ''),
    'reasoning tokens hidden': (BODY+[LAST+chunk(usage(19, completion_tokens_details=dict(reasoning_tokens=16)))+chunk(DONE)+b'0\r\n\r\n'], 19, ''),
    'split UTF-8': (cut(HEAD+chunk(event(delta('Grüße ')))+chunk(event(delta('🙂 ')))+chunk(THREE[2])+END, 3, 0), 3, ''),
    'CRLF': ([HEAD, *(chunk(t.replace('\n', '\r\n')) for t in THREE), END], 3, ''),
    'CR only': ([HEAD, chunk(''.join(THREE).replace('\n', '\r')+event(delta(finish='stop'), end='\r\r')+usage(3).replace('\n', '\r')+DONE.replace('\n', '\r')), b'0\r\n\r\n'], 3, ''),
    'byte order mark': ([HEAD, chunk(b'\xef\xbb\xbf'+THREE[0].encode()), chunk(THREE[1]), chunk(THREE[2]), END], 3, ''),
    'pings': ([HEAD, chunk(': ping\n\n'), .02, chunk(THREE[0]), chunk(':\n\n'), chunk(THREE[1]), chunk(': still here\n\n'), chunk(THREE[2]), END], 3, ''),
    'event and id fields': ([HEAD, *(chunk('event: message\nid: 7\nretry: 10\n'+t) for t in THREE), END], 3, ''),
    'data over two lines': ([HEAD, chunk('data: {"choices":\ndata: [{"delta":{"content":"One "}}]}\n\n'), chunk(THREE[1]), chunk(THREE[2]), END], 3, ''),
    'no space after data:': ([HEAD, *(chunk(t.replace('data: ', 'data:')) for t in THREE), END], 3, ''),
    'usage in each chunk': ([HEAD, *(chunk(event(delta(w), usage=dict(prompt_tokens=7, completion_tokens=2*i+2))) for i, w in enumerate('abc')), LAST+chunk(usage(6))+chunk(DONE)+b'0\r\n\r\n'], 6, ''),
    'no usage': (BODY+[LAST+chunk(DONE)+b'0\r\n\r\n'], 3, ''),
    'missing [DONE]': (BODY+[LAST+chunk(usage(3))+b'0\r\n\r\n'], 3, 'no [DONE] after the finish reason'),
    'HTTP/1.0 close': ([b'HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n'+UNFRAMED, None], 3, 'HTTP/1.0 close'),
    'ends with the connection': ([CLOSE+UNFRAMED, None], 3, 'ends with the connection'),
    'content length': ([plain(b'200 OK', UNFRAMED, 'text/event-stream')], 3, ''),
    'closes after each answer': ([HEAD.replace(b'Transfer', b'Connection: close\r\nTransfer'), *map(chunk, THREE), END, None], 3, ''),
    'not streamed': ([plain(b'200 OK', WHOLE)], 3, 'not streamed'),
    '100 Continue first': ([b'HTTP/1.1 100 Continue\r\n\r\n']+BODY+[END], 3, ''),
    'chunk extensions and trailers': ([HEAD, b'%x;a=b\r\n' % len(THREE[0])+THREE[0].encode()+b'\r\n', chunk(THREE[1]), chunk(THREE[2]), LAST+chunk(usage(3))+chunk(DONE)+b'0\r\nX-Sum: 1\r\n\r\n'], 3, ''),
    'tool call': ([HEAD, chunk(event(delta(tool_calls=[dict(function=dict(name='track', arguments=''))]))), *(chunk(event(delta(tool_calls=[dict(function=dict(arguments=a))]))) for a in ('{"id"', ':1}')), END], 3, ''),
    'legacy completions': ([HEAD, *(chunk(event(dict(text=w, finish_reason=None))) for w in 'abc'), END], 3, ''),
    'text that looks like the end': ([HEAD, chunk(event(delta('0\r\n\r\n'))), chunk(event(delta('data: [DONE]'))), chunk(THREE[2]), END], 3, ''),
    'content as parts': ([HEAD, *(chunk(event(delta([dict(type='text', text=w)]))) for w in 'abc'), END], 3, ''),
}
BAD = {
    'reset mid-stream': ([*BODY[:3], .01, RESET], 'reset mid-stream'),
    'reset': ([.01, RESET], 'reset'),
    'closed without an answer': ([None], 'closed without an answer'),
    'closed mid-stream': ([*BODY[:3], .01, None], 'closed mid-stream'),
    'hang': ([5], 'hang: no first token in time'),
    'hang after the header': ([HEAD, 5], 'hang: no first token in time'),
    'stalls for ever': ([*BODY[:3], 5], 'time-out'),
    '429 with Retry-After': ([plain(b'429 Too Many', b'{}', extra=b'Retry-After: 2\r\n')], 'HTTP 429 with Retry-After'),
    '429': ([plain(b'429 Too Many', b'{}')], 'HTTP 429'),
    '500': ([plain(b'500 Oops', b'<html>', 'text/html')], 'HTTP 500'),
    'redirect': ([plain(b'307 Elsewhere', b'', extra=b'Location: http://example.org/\r\n')], 'HTTP 307'),
    'invalid JSON in a chunk': ([HEAD+chunk(THREE[0])+chunk('data: {"choices": [{"del\n\n')+END], 'invalid JSON in a chunk'),
    'JSON that is no chat completion': ([HEAD+chunk('data: [1, 2]\n\n')+END], 'JSON that is no chat completion'),
    'no [DONE] and no reason': (BODY+[b'0\r\n\r\n'], 'no [DONE]'),
    'empty stream': ([HEAD+b'0\r\n\r\n'], 'empty stream'),
    'only [DONE]': ([HEAD+chunk(DONE)+b'0\r\n\r\n'], 'empty stream'),
    'empty body': ([plain(b'200 OK', b'', 'text/event-stream')], 'empty stream'),
    '10 MB chunk': ([HEAD+chunk(b'data: '+b'x'*10_000_000+b'\n\n')], 'answer too large'),
    '10 MB without end': ([CLOSE+b'data: ']+[b'y'*1_000_000]*10, 'answer too large'),
    'wrong content type': ([plain(b'200 OK', b'<html>Login</html>', 'text/html')], 'wrong content type'),
    'error inside a 200': ([HEAD+chunk(THREE[0])+chunk('data: {"error": {"message": "CUDA"}}\n\n')+b'0\r\n\r\n'], 'error inside a 200'),
    'bad chunk': ([HEAD+b'zz\r\n'+THREE[0].encode()], 'bad chunk'),
    'not HTTP': ([b'SSH-2.0-OpenSSH\r\n'], 'not HTTP'),
}


class Scripted:
    "Plays the script that the last user message names"
    async def serve(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b'\r\n\r\n')
                body = json.loads(await reader.readexactly(int(head.lower().split(b'content-length:')[1].split(b'\r\n')[0])))
                for step in (GOOD|BAD)[body['messages'][-1]['content']][0]:
                    if step is None: return
                    if step is RESET:
                        writer.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
                        return writer.transport.abort()
                    if isinstance(step, bytes): writer.write(step); await writer.drain()
                    else: await asyncio.sleep(step)
        except (OSError, asyncio.IncompleteReadError): pass
        finally: writer.close()


@pytest.fixture(scope='module')
def url():
    loop, started, port = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        server = await asyncio.start_server(Scripted().serve, '127.0.0.1', 0)
        port.append(server.sockets[0].getsockname()[1])
        started.set()
    def run():
        loop.create_task(start())
        loop.run_forever()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(5)
    yield f'http://127.0.0.1:{port[0]}/v1'

    def stop():
        for t in asyncio.all_tasks(loop): t.cancel()
        loop.call_later(.1, loop.stop)
    loop.call_soon_threadsafe(stop)
    thread.join(5)


def ask(url, name, n=2, timeout=.6, first=.3, **more):
    target = Target('endpoint', 'm', url, 'm', first_token_timeout=first)
    return run_load(target, [name], Closed(1, requests=n, spread=.001), processes=0, timeout=timeout, **more)


@pytest.mark.parametrize('name', GOOD)
def test_answers(url, name):
    _, tokens, remark = GOOD[name]
    rec = ask(url, name, timeout=30, first=20)
    d = rec.requests()
    assert d['error'].tolist() == ['', ''], rec.faults()
    assert d['tokens'].tolist() == [tokens]*2
    assert d['remark'].tolist() == [remark]*2
    assert (d['first_token'] <= d['last']).all() and (d['sent'] <= d['first_byte']).all() and (d['first_byte'] <= d['first_token']).all()
    assert rec.events['n'].sum() == 2*(tokens-16*(name == 'reasoning tokens hidden'))


@pytest.mark.parametrize('name', BAD)
def test_faults(url, name):
    assert ask(url, name, 1).requests()['error'].tolist() == [BAD[name][1]]


def test_refused():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    assert ask(f'http://127.0.0.1:{port}/v1', 'x').faults() == {'refused': 2}


def test_first_token_is_no_role(url):
    d = ask(url, 'role-only delta first').requests()
    assert (d['first_token']-d['first_byte'] > .05).all() # the role came at once, 50 + 30 ms before the token


def test_reasoning_is_seen_apart(url):
    d = ask(url, 'reasoning tokens shown').requests()
    assert (d['first_visible']-d['first_token'] > .05).all()


def test_connections_are_used_again(url):
    d = ask(url, 'one token per chunk', 3).requests()
    assert d['connected'].notna().tolist() == [True, False, False]
    assert ask(url, 'closes after each answer', 3).requests()['connected'].notna().all()


def test_one_fault_does_not_spoil_the_next(url):
    target = Target('endpoint', 'm', url, 'm', first_token_timeout=10.)
    rec = run_load(target, ['one token per chunk', 'bad chunk', '500', 'reset mid-stream'], Closed(1, requests=8, spread=.001), processes=0, timeout=20)
    assert rec.faults() == {'answered': 2, 'bad chunk': 2, 'HTTP 500': 2, 'reset mid-stream': 2}


def test_cancelled_and_slow(url):
    assert ask(url, 'hang', timeout=2, cancel=(1., .05)).faults() == {'cancelled': 2}
    assert ask(url, 'one token per chunk', timeout=5, slow=(1., 20_000.)).faults() == {'answered': 2}
