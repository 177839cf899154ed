"Load runs that are overloaded, interrupted, forbidden, half-written; intervals under queues; faults of the client itself"
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from genai_playbook.arrivals import Closed, bursts, constant, diurnal, on_off, poisson, ramp, replay, spike, steps
from genai_playbook.card import load_card
from genai_playbook.errors import PlaybookError
from genai_playbook.load_client import MAX_BODY, BadHTTP, Chunked
from genai_playbook.load_metrics import SLO, Histogram, answers, as_others, measure, quantile, stalls, stationary, validity
from genai_playbook.loadgen import Target, cost_bound, endpoint, is_loopback, mix, run_load, target_of
from genai_playbook.models import PythonModel
from genai_playbook.recording import load_recording, make_recording, merge
from genai_playbook.sse import CHOICES, CONTENT, read_stream, tokens_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def server():
    p = subprocess.Popen([sys.executable, ROOT/'benchmarks/load_server.py', '--stall', '2', '.2'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | dict(PYTHONPATH=str(ROOT)))
    yield f'http://127.0.0.1:{int(p.stdout.readline())}/v1'
    p.stdin.close()
    p.wait(5)


def quick(**more): return json.dumps(dict(ttft=.02, gap=.002, n=8) | more)


# --- virtual time: a client of known speed before a server of known delays

def virtual(rate, capacity, seed, n=1500, ttft=.2):
    "What a client would record that needs about 1/capacity s of its one core for each request"
    rng = np.random.default_rng(seed)
    due = poisson(rate, n/rate, seed).at
    sent, free = np.empty(len(due)), 0.
    for i, (t, w) in enumerate(zip(due, rng.gamma(4, .25/capacity, len(due)))): sent[i] = max(t, free)+rng.exponential(5e-5); free = sent[i]+w
    first = sent+ttft+rng.gamma(4, .01, len(due))
    rows = {k: np.zeros(len(due)) for k in ('status', 'error', 'remark', 'prompt', 'turn')} | dict(scheduled=due, ready=due, sent=sent, connected=sent*math.nan, first_byte=first, end=first, tokens_in=due*0-1, tokens=due*0+1, counted=due*0, events=due*0+1)
    return make_recording(rows, dict(t=first, kind=[CHOICES | CONTENT]*len(due), n=[1]*len(due)), [''], arrivals=dict(open=True, seconds=n/rate), clients=[dict(stamps='kernel', loop='uvloop', cpu_sending=1., seconds=2.)])


def test_runs_that_the_client_spoilt_say_so():
    rng = np.random.default_rng(7)
    fine = [validity(virtual(100, 100/u, s)).ok for s, u in enumerate(rng.uniform(.05, .5, 20))]
    spoilt = [validity(virtual(100, 100/u, s)).ok for s, u in enumerate(rng.uniform(1.02, 2., 20))]
    assert sum(spoilt) == 0 and sum(fine) >= 19


def test_coverage_under_queues():
    "Lindley's recursion of M/M/1, whose quantiles are known: the bounds hold, or the run says that it cannot tell"
    def sojourn(n, load, rng):
        service, gap = rng.exponential(1, n+3000), rng.exponential(1/load, n+3000)
        walk = np.concatenate([[0], np.cumsum(service[:-1]-gap[1:])])
        return (walk-np.minimum.accumulate(walk)+service)[3000:]
    rng, answered = np.random.default_rng(3), 0
    for q, n, load, runs in [(q, n, load, 100 if n < 9000 else 50) for q in (.5, .95, .99) for n in (1000, 20000) for load in (.5, .7, .85)]:
        es, truth = [quantile(sojourn(n, load, rng), q, .975) for _ in range(runs)], -math.log(1-q)/(1-load)
        told = [e.low <= truth <= e.high for e in es if e.enough]
        assert (sum(told)+sum(not e.enough for e in es))/runs >= .88, (q, n, load)
        if len(told) >= runs/2: answered += 1; assert np.mean(told) >= (.88 if runs == 100 else .86), (q, n, load, np.mean(told))
        assert all('needs about' in e.note for e in es if not e.enough)
    assert answered >= 10


def test_quantiles_of_odd_data():
    assert not quantile([], .99).enough and quantile([], .99).n == 0
    assert not quantile([math.nan]*50, .5).enough
    assert not quantile([1., 2, 3], .99).enough
    assert quantile([5.]*3000, .5).value == 5
    assert not quantile(np.ones(100), .99).enough
    e = quantile(np.random.default_rng(0).random(5000), .5)
    assert e.enough and .47 < e.low < .5 < e.high < .53
    with pytest.raises(PlaybookError): quantile([1], 99)
    assert stationary([1]*10)[0] is False and Histogram().quantile(.5) != Histogram().quantile(.5)
    assert abs(Histogram().add([0., 1e-12]).quantile(.5)) < 2e-9


# --- real runs on loopback

def test_known_delays_and_a_planted_stall(server):
    rec = run_load(endpoint(server, 'known'), [quick()], poisson(80, 9, 1))
    m, d = measure(rec, SLO(ttft_ms=100)), answers(rec)
    assert set(rec.faults()) == {'answered'}
    assert abs(m['itl_p50'].value-.002) < .0005 and m['ttft_p50'].value > .0195
    assert (d['ttft'] > .0195).all() # never earlier than the truth
    assert m['ttft_p99'].value > .12, 'a stall of 200 ms every 2 s delays one request in ten'
    found = stalls(rec, .12)
    assert max(sum(abs((b-a+1) % 2-1) < .15 for b in found['at']) for a in found['at']) >= 3, 'the planted ones are there, whatever else a busy machine adds'
    other = as_others(rec)
    assert other.loc['TTFT p50', 'loadgen'] >= other.loc['TTFT p50', 'aiperf']
    assert m['good_share'].value < 1 and m['good_share'].low <= m['good_share'].value <= m['good_share'].high


def test_processes_share_a_schedule(server):
    arrivals = constant(50, 2)
    rec = run_load(endpoint(server, 'known'), [quick(), quick(n=4)], arrivals, processes=2)
    d = rec.requests()
    assert np.allclose(d['scheduled'], arrivals.at) and len(rec.meta['clients']) == 2
    assert d['prompt'].tolist() == [0, 1]*50 and d['tokens'].tolist() == [8, 4]*50


def test_coordinated_omission_is_not_hidden(server):
    "A limit of two requests under way: those held back count from when they were due"
    rec = run_load(endpoint(server, 'known'), [quick(ttft=.1)], constant(40, 2), cap=2)
    m = measure(rec)
    assert m['e2e_p50'].value > .5 and m['queued_p50'].value > .4
    assert as_others(rec).loc['E2E p50', 'vllm'] < 400
    assert validity(rec).numbers['offered'] > .99 # the limit held them back, not the client


def test_conversations_follow_each_other(server):
    rec = run_load(endpoint(server, 'known'), [(quick(), quick(n=3)), quick(n=2)], Closed(1, requests=2, spread=.001))
    d = rec.requests()
    assert d['tokens'].tolist() == [8, 3, 2] and d['turn'].tolist() == [0, 1, 0]


def test_recordings_are_whole_or_absent(server, tmp_path, monkeypatch):
    rec = run_load(endpoint(server, 'known'), [quick()], Closed(2, requests=20, spread=.01), warmup=.02)
    again = load_recording(rec.save(tmp_path/'r.npz'))
    assert again.requests().equals(rec.requests()) and again.meta == json.loads(json.dumps(rec.meta))
    assert (again.events['t'].nbytes+again.events['kind'].nbytes+again.events['n'].nbytes)/rec.events['n'].sum() <= 16
    monkeypatch.setattr(os, 'replace', lambda *a: 1/0)
    with pytest.raises(ZeroDivisionError): rec.save(tmp_path/'new.npz')
    assert [p.name for p in tmp_path.iterdir()] == ['r.npz']
    for junk in (b'', b'PK\x03\x04', b'x'*1000):
        (tmp_path/'r.npz').write_bytes(junk)
        with pytest.raises(PlaybookError): load_recording(tmp_path/'r.npz')


@pytest.mark.parametrize('processes', [0, 1])
def test_interrupt_keeps_what_there_is(server, processes, tmp_path):
    code = f'''
from genai_playbook.loadgen import *
from genai_playbook.arrivals import Closed
from pathlib import Path
Path({str(tmp_path/'on')!r}).touch()
r = run_load(endpoint({server!r}, 'known'), [{quick()!r}], Closed(4, seconds=60, spread=.01), processes={processes}, drain=1)
print(r.meta['aborted'], len(r), r.faults()['answered'])'''
    p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, env=os.environ | dict(PYTHONPATH=str(ROOT)), text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # whoever runs the tests in the background ignores it, and children inherit that
    while not (tmp_path/'on').exists(): time.sleep(.02)
    time.sleep(2.5)
    p.send_signal(signal.SIGINT)
    out, _ = p.communicate(timeout=30)
    aborted, n, answered = out.split()
    assert aborted == 'True' and int(answered) > 20 and int(n)-int(answered) <= 4


def test_a_host_that_never_connects():
    "A backlog that is full: the connection hangs, and is given up in time"
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen(0)
        held = [socket.socket() for _ in range(3)]
        for h in held: h.setblocking(False); h.connect_ex(s.getsockname())
        target = Target('endpoint', 'm', f'http://127.0.0.1:{s.getsockname()[1]}/v1', 'm', connect_timeout=.2, first_token_timeout=.5)
        assert run_load(target, ['x'], Closed(1, requests=1, spread=.001), processes=0, timeout=2).faults() == {'no connection in time': 1}
        assert run_load(target, ['x'], Closed(1, requests=1, spread=.001), processes=0, timeout=.1).faults() == {'time-out': 1}
        for h in held: h.close()


def test_a_model_in_this_process():
    def broken(prompt):
        if 'bad' in prompt: raise RuntimeError('secret prompt')
        yield 'a'; yield 'b'
    rec = run_load(Target('model', 'b', model=PythonModel(broken)), ['good', 'bad'], constant(50, .4))
    assert rec.faults() == {'answered': 10, 'RuntimeError': 10}
    assert measure(rec)['error_rate'].value == .5 and measure(rec)['rate'].value > 20


def certificate(folder):
    "A certificate for localhost that signs itself"
    import datetime
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    key, name, now = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'localhost')]), datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1).not_valid_before(now-datetime.timedelta(1)).not_valid_after(now+datetime.timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), False).add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    (folder/'key.pem').write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    (folder/'cert.pem').write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder/'cert.pem', folder/'key.pem'


def test_tls(tmp_path, monkeypatch):
    import asyncio
    import ssl
    import threading
    cert, key = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    body = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b'\r\n\r\n')
                await reader.readexactly(int(head.lower().split(b'content-length:')[1].split(b'\r\n')[0]))
                writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n' % len(body)+body)
        except (OSError, asyncio.IncompleteReadError): writer.close()
    loop = asyncio.new_event_loop()
    port = loop.run_until_complete(asyncio.start_server(serve, '127.0.0.1', 0, ssl=context)).sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ask = lambda: run_load(endpoint(f'https://localhost:{port}/v1', 'm'), ['x'], Closed(1, requests=3, spread=.001), processes=0, timeout=5)
    assert ask().faults() == {'TLS failed': 3} # nobody vouches for it
    monkeypatch.setenv('SSL_CERT_FILE', str(cert))
    rec = ask()
    assert rec.faults() == {'answered': 3} and rec.requests()['connected'].notna().sum() == 1 and rec.meta['clients'][0]['stamps'] == 'client'
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)


# --- what must not happen

CARD = 'poc: t\noutcome: {promise: p}\nmodel: {kind: openai, base_url: "https://api.example.org/v1", model: m, price_in: 1, price_out: 10, max_new_tokens: 100}\ndata: {evaluation: e.csv}\n'


@pytest.fixture
def card(tmp_path):
    (tmp_path/'e.csv').write_text('prompt,reference\n'+''.join(f'question {"long "*(i % 9)},a\n' for i in range(60)))
    (tmp_path/'poc.yaml').write_text(CARD)
    return load_card(tmp_path/'poc.yaml')


def test_no_load_on_others(card, monkeypatch):
    assert target_of(card).host == 'api.example.org'
    for url in ('https://example.org/v1', 'http://10.0.0.1/v1', 'http://localhost.example.org/v1', 'http://127.0.0.1@example.org/v1', 'ftp://localhost/', 'http://api.example.org.evil.org/v1'):
        with pytest.raises(PlaybookError): endpoint(url, 'm', card)
    with pytest.raises(PlaybookError, match='no load is sent'): run_load(Target('endpoint', 'm', 'http://example.org/v1', 'm'), ['x'], constant(1, 1))
    assert is_loopback('::1') and is_loopback('127.9.9.9') and not is_loopback('128.0.0.1')


def test_a_paid_endpoint_needs_a_yes(card, monkeypatch):
    target = target_of(card)
    assert target.paid and cost_bound(target, [1000], 10) == pytest.approx(10*(1000*1+100*10)/1e6)
    monkeypatch.setattr('genai_playbook.loadgen._in_processes', lambda jobs: pytest.fail('sent'))
    with pytest.raises(PlaybookError, match='budget of 0.00.*--yes'): run_load(target, ['x'], constant(10, 10))
    with pytest.raises(PlaybookError, match='nobody knows'): run_load(target, ['x'], Closed(2, seconds=5), budget=1000)


def test_the_mix_keeps_lengths(card):
    asked = mix(card, 30, seed=2)
    assert sorted({len(p) for p in asked}) == sorted({len(p) for p in card.prompts(card.evaluation())})
    with_prefix = mix(card, 40, prefix=(.5, 'You are…'))
    assert 8 < sum(isinstance(p, list) and p[0]['content'] == 'You are…' for p in with_prefix) < 32
    assert all(isinstance(c, tuple) for c in mix(card, 5, turns=True))


@pytest.mark.parametrize('make', [lambda: constant(0, 1), lambda: poisson(5, math.inf), lambda: Closed(0, seconds=1), lambda: Closed(1), lambda: steps([(-1, 5)]), lambda: diurnal(1, 3, 10, 10),
                                  lambda: spike(1, 2, 10, 9, 5), lambda: replay([]), lambda: replay([math.nan]), lambda: bursts(5, 5, cv=0), lambda: ramp(0, 0, 5), lambda: on_off(1, 1, 0, 1)])
def test_impossible_schedules(make):
    with pytest.raises(PlaybookError): make()


def test_schedules_are_ordered_and_repeatable():
    for make in (lambda s: poisson(50, 20, s), lambda s: bursts(50, 20, 3., s), lambda s: ramp(10, 90, 20, s), lambda s: on_off(100, 20, 2, 2, s), lambda s: diurnal(50, 2, 20, 10, s), lambda s: spike(40, 90, 20, 5, 4, s)):
        a, b, c = make(1), make(1), make(2)
        assert (a.at == b.at).all() and len(a) != len(c) or (a.at[:5] != c.at[:5]).any()
        assert (np.diff(a.at) >= 0).all() and a.at[0] >= 0 and a.at[-1] <= 20 and 700 < len(a) < 1300


def test_chunks_cut_anywhere():
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = [rng.bytes(int(n)) for n in rng.integers(1, 300, rng.integers(0, 8))]
        data, c, got, ended = b''.join(b'%X\r\n%b\r\n' % (len(p), p) for p in parts)+b'0\r\n\r\n', Chunked(), b'', False
        cuts = np.sort(rng.integers(0, len(data), rng.integers(0, 20)))
        for a, b in zip([0, *cuts], [*cuts, len(data)]):
            if a == b: continue
            assert not ended
            more, ended = c.feed(data[a:b])
            got += more
        assert ended and got == b''.join(parts)
    for bad in (b'-5\r\nhello', b'0x5\r\n', b' 5\r\n', b'1_0\r\n', b'%x\r\n' % (MAX_BODY+1), b'\r\n', b'f'*5000):
        with pytest.raises(BadHTTP): Chunked().feed(bad)


def test_streams_of_noise_never_raise():
    rng, good = np.random.default_rng(1), b''.join(b'data: {"choices":[{"delta":{"content":"w"}}],"usage":{"completion_tokens":%d}}\n\n' % i for i in range(9))
    for _ in range(400):
        body = bytearray(good)
        for at in rng.integers(0, len(body), 6): body[at] = rng.integers(0, 256)
        s = read_stream(bytes(body[:rng.integers(0, len(body))]))
        parts, _, _ = tokens_of(s)
        assert len(parts) == len(s.kinds) == len(s.ends) and min(parts, default=0) >= 0
    for junk in (b'data: '+b'['*100_000+b'\n\n', b'data: {"choices": 5}\n\n', b'data: {"choices": [5]}\n\n', b'data: {"choices":[{"delta":"x"}]}\n\n', b'data: {"usage": 3}\n\n', b'data: {"choices":[{"delta":{"tool_calls":[1]}}]}\n\n', b'data: null\n\n'):
        assert read_stream(junk).error


def test_an_empty_recording():
    rec = make_recording({k: [] for k in ('scheduled', 'ready', 'sent', 'connected', 'first_byte', 'end', 'status', 'error', 'remark', 'tokens_in', 'tokens', 'counted', 'prompt', 'turn', 'events')}, dict(t=[], kind=[], n=[]), [''], arrivals=dict(open=True, seconds=1.), warmup=0.)
    assert not validity(rec).ok and not measure(rec)['ttft_p99'].enough and len(merge([rec, rec])) == 0 and not len(stalls(rec))
    assert as_others(rec).isna().all().all()


@pytest.mark.slow
def test_validity_of_real_runs(server):
    """Twenty runs that one process can send, twenty at several times what it can. On a machine that others use, the first twenty may be spoilt in truth;
    at 400 ms to the first token, 5 % of it leaves room for that"""
    seen = []
    for s in range(40):
        rec = run_load(endpoint(server, 'known'), [quick(ttft=.4, gap=.005, n=4)], poisson((60, 6000)[s % 2], (2.5, .7)[s % 2], s), timeout=20)
        seen.append((s % 2 == 0, validity(rec)))
    assert sum(v.ok for fine, v in seen if not fine) == 0
    alarms = [v.reasons for fine, v in seen if fine and not v.ok]
    assert len(alarms) <= 1, alarms
