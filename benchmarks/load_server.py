"""A streaming server whose delays are known: it says when it wrote what

    python benchmarks/load_server.py --stall 5 .2        # prints its port; runs until stdin closes

The last user message may be JSON: {"ttft": .05, "gap": .01, "n": 32, "bundle": 1, "role": true}. `GET /log` gives a row for each answer: when the request
was there, when its first and its last token were written, tokens (monotonic clock, ns). Behaviours of other servers are played by tests/test_conformance.py."""
import argparse
import asyncio
import heapq
import json
import sys

from genai_playbook.load_client import Alarm, clock, new_loop

CHUNK = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"known","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
ROLE = CHUNK.replace(b'"content":" word"', b'"role":"assistant","content":""')
HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n'


def framed(data): return b'%x\r\n%b\r\n' % (len(data), data)


def ending(n): return framed(CHUNK.replace(b'{"content":" word"}', b'{}').replace(b'null', b'"stop"')+b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\ndata: [DONE]\n\n' % n)+b'0\r\n\r\n'


class Server:
    "Everything that is due, in one heap; nothing is written while the server stalls"
    def __init__(self, loop, every=0., stall=0.):
        self.heap, self.log, self.count, self.every, self.stall, self.start = [], [], 0, int(every*1e9), int(stall*1e9), clock()
        self.alarm = Alarm(loop, self.ring)

    def at(self, when, fn, *args):
        heapq.heappush(self.heap, (when, self.count, fn, args))
        self.count += 1
        if self.heap[0][0] == when: self.alarm.at(when)

    def stalled_until(self, now):
        phase = (now-self.start) % self.every if self.every else 0
        return now-phase+self.stall if self.every and now-self.start > self.every and phase < self.stall else 0

    def ring(self):
        now = clock()
        if until := self.stalled_until(now): self.alarm.at(until); return
        while self.heap and self.heap[0][0] <= now:
            _, _, fn, args = heapq.heappop(self.heap)
            fn(*args)
            now = clock()
        if self.heap: self.alarm.at(self.heap[0][0])


class Answering(asyncio.Protocol):
    "One connection"
    def __init__(self, server): self.server, self.got = server, b''

    def connection_made(self, transport): self.transport = transport

    def data_received(self, data):
        self.got += data
        head, found, body = self.got.partition(b'\r\n\r\n')
        if not found: return
        if head.startswith(b'GET'): self.got = b''; return self.tell()
        if not head.startswith(b'POST'): self.got = b''; return self.transport.write(b'HTTP/1.1 204 No Content\r\n\r\n')
        length = int(head.lower().split(b'content-length:')[1].split(b'\r\n')[0])
        if len(body) < length: return
        self.got = body[length:]
        said = json.loads(body[:length])['messages'][-1]['content']
        if not isinstance(said, str): said = ''.join(part.get('text', '') for part in said)
        self.answer(dict(ttft=.05, gap=.01, n=32, bundle=1, role=False) | (json.loads(said) if said.startswith('{') else {}), clock())

    def tell(self):
        log = json.dumps(self.server.log).encode()
        self.transport.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b' % (len(log), log))

    def answer(self, spec, now):
        row = [now, 0, 0, spec['n']]
        self.server.log.append(row)
        if spec['role']: self.transport.write(HEAD+framed(ROLE))
        self.server.at(now+int(spec['ttft']*1e9), self.token, spec, row, 0, now+int(spec['ttft']*1e9))

    def token(self, spec, row, k, due):
        if self.transport.is_closing(): return
        m = min(spec['bundle'], spec['n']-k)
        self.transport.write((HEAD if k == 0 and not spec['role'] else b'')+framed(CHUNK)*m)
        row[2] = clock()
        row[1] = row[1] or row[2]
        if k+m >= spec['n']: self.transport.write(ending(spec['n'])); return
        due += int(spec['gap']*m*1e9)
        self.server.at(due, self.token, spec, row, k+m, due)


async def main(every, stall, port):
    loop = asyncio.get_running_loop()
    server = Server(loop, every, stall)
    listening = await loop.create_server(lambda: Answering(server), '127.0.0.1', port, backlog=4096)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == '__main__':
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument('--stall', nargs=2, type=float, default=(0., 0.), help='every how many seconds, for how many seconds')
    args.add_argument('--port', type=int, default=0)
    a = args.parse_args()
    new_loop().run_until_complete(main(*a.stall, a.port))
