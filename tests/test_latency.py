"Chapter 02 and what it measures with: odd models, odd times, odd machines; known answers stand in the notebooks"
import copy
import json
import math
import socket
import threading
from types import SimpleNamespace as ns

import numpy as np
import pytest

from conftest import make_tiny_model
from genai_playbook.accelerator import Watch, memory_kinds
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import FAIL, INSUFFICIENT, PASS, verdict
from genai_playbook.latency import bounds_of, in_ms, latency_data, length_table
from genai_playbook.local_model import TransformersModel
from genai_playbook.memory import growth
from genai_playbook.models import Answer, Chunk, PythonModel
from genai_playbook.report import plain
from genai_playbook.roofline import (Variant, attainable, breakdown, breakdown_jobs, decode_floor, free_linears, narrow, rounds, static_steps, steps, try_variants, used, variants, work_of)
from genai_playbook.system import System
from genai_playbook.timing import (Call, Machine, Noise, cold_start, growing, jitter, journeys, logged_calls, machine, quantile, slope, time_call, time_calls, time_table, under_noise)


class Clock:
    "A clock that only the model moves"
    def __init__(self): self.now = 0.
    def __call__(self): return self.now


def streamed(*parts, clock=None):
    "A model whose stream is scripted: (seconds, text, tokens) or an Answer"
    def stream(prompt):
        for p in parts:
            if isinstance(p, Answer): yield Chunk('', 0., 0, p)
            else:
                if clock: clock.now += p[0]
                yield Chunk(p[1], 0., p[2])
    return ns(stream=stream)


# --- quantiles ------------------------------------------------------------------------------------
@pytest.mark.parametrize('x', [[], [None]*80, [math.nan]*80])
def test_nothing_timed_is_insufficient(x): assert verdict(quantile(x), 1e9, '<=') == INSUFFICIENT


def test_the_floor_is_59_and_a_failure_counts_as_infinitely_slow():
    x = list(np.random.default_rng(0).random(59))
    assert verdict(quantile(x), 2., '<=') == PASS and verdict(quantile(x[:58]), 2., '<=') == INSUFFICIENT
    assert verdict(quantile([*x[:58], None]), 2., '<=') == INSUFFICIENT and quantile([*x, None]).high == math.inf
    assert verdict(quantile([None]*20 + list(np.random.default_rng(1).random(300))), 2., '<=') == INSUFFICIENT   # 6 % failed: p95 is not bounded
    with pytest.raises(PlaybookError, match='numbers'): quantile(['fast']*60)


@pytest.mark.parametrize('p', [.05, .5, .95, .99])
def test_bounds_enclose_the_value(p):
    rng = np.random.default_rng(7)
    for n in (1, 2, 5, 30, 500):
        e = quantile(rng.exponential(size=n), p)
        assert e.low <= e.value <= e.high and e.n == n


def test_equal_times_are_no_evidence(): assert verdict(quantile([.5]*100), 1., '<=') == INSUFFICIENT   # a clock that stands still


def test_calls_in_bursts_count_for_less():
    slow = np.random.default_rng(0).permutation(400).astype(float)
    burst = np.sort(slow)   # it gets slower and slower
    assert quantile(slow).high < 400 and not quantile(burst).enough and 'calls worth one' in quantile(burst).method
    assert quantile(burst, independent=True).high == quantile(slow, independent=True).high   # where only the machine's noise can be the cause


def test_noise_takes_the_lower_bound_only():
    busy, calm = Machine(2, 5., 2., .4, 1000.), Machine(2, .1, 0., 1., 1000.)
    e = quantile(np.random.default_rng(0).random(200))
    for noise in (Noise(busy, calm), Noise(calm, busy)):
        assert verdict(under_noise(e, noise), .5, '<=') == INSUFFICIENT and verdict(under_noise(e, noise), 1., '<=') == PASS
    assert verdict(under_noise(e, Noise(calm, calm)), .5, '<=') == FAIL and 'quiet' in under_noise(e, Noise(busy, calm)).note
    assert str(Noise(busy, calm)).startswith('busy') and list(Noise(busy, calm).table()) == ['before', 'after']


def test_machine_is_plausible():
    m = machine(.05)
    assert m.cpus >= 1 and 0 < m.share <= 1 and m.rate > 0 and m.others >= 0


# --- calls ----------------------------------------------------------------------------------------
def test_tokens_are_the_servers_not_the_pieces():
    c = Clock()
    call = time_call(streamed((2., 'four tok', 1), (3., 'ens', 1), Answer('four tokens', tokens_in=3, tokens_out=7), clock=c), 'x', c, c)
    assert (call.ttft, call.e2e, call.shown, call.per_token, call.tokens_in) == (2., 5., 7, .5, 3)


def test_a_silent_last_token_is_not_counted():
    c = Clock()
    call = time_call(streamed((1., 'a', 1), (1., 'b', 1), (1., '', 1), Answer('ab', tokens_out=3), clock=c), 'x', c, c)
    assert (call.e2e, call.seconds, call.shown, call.per_token, call.tokens_out) == (2., 3., 2, 1., 3)


def test_odd_streams_are_failures_with_a_reason():
    assert time_call(streamed(), 'x').error == 'the stream ended without an answer'
    assert time_call(streamed(Answer('')), 'x').error == 'the answer is empty'
    assert time_call(streamed((0, 'half', 1), Answer('half', error='reset')), 'x').error == 'reset' and math.isnan(time_call(streamed((0, 'half', 1), Answer('half', error='reset')), 'x').e2e)
    assert math.isnan(time_call(streamed((0, 'all at once', 9), Answer('all at once', tokens_out=9)), 'x').per_token)


def test_guards_are_inside_the_clock():
    c = Clock()
    def slow_guard(text): c.now += 5; return text
    def model(prompt): c.now += 1; yield 'a'; c.now += 1; yield 'b'
    before, behind = (time_call(System(PythonModel(model), **{k: [slow_guard]}), 'x', c, c) for k in ('guards_in', 'guards_out'))
    assert (before.ttft, before.e2e) == (6., 7.) and (behind.ttft, behind.e2e) == (7., 7.)
    blocked = time_call(System(PythonModel(model), guards_in=[lambda t: None], fallbacks=['no']), 'x', c, c)
    assert (blocked.error, blocked.tier) == (None, 'guard')


def test_calls_stop_by_the_clock_but_not_below_the_least():
    c = Clock()
    def model(prompt): c.now += 1; return 'x'
    ask = lambda **kw: time_calls(PythonModel(model), ['p']*50, clock=c, **kw)
    assert [len(x) for x in ask(seconds=10.)] == [10, 3] and len(ask(seconds=10., least=20)[0]) == 20 and len(ask(warmup=0)[0]) == 50


def test_logged_times_may_be_missing():
    calls = logged_calls([Answer('a', seconds=.5, first_token_seconds=.1), Answer('b'), Answer(error='no recorded answer')])
    assert [c.e2e for c in calls][0] == .5 and math.isnan(calls[1].e2e) and calls[2].error
    assert time_table(calls)['unscored'].max() == 3


def test_growing_prompts_and_slopes():
    model = PythonModel(lambda p: 'x' if len(p) < 12 else 1/0)
    calls = growing(model, ['hello'], (1, 2, 4))
    assert [(k, c.error is None) for k, c in calls] == [(1, True), (2, True), (4, False)] and list(length_table(calls)['failed']) == [0, 0, 1]
    assert growing(model, [[dict(role='user', content='hi')]], (3,))[0][1].error is None
    assert not slope([1]*20, range(20)).enough and not slope([], []).enough and not slope([math.nan]*20, range(20)).enough
    assert math.isnan(jitter([])) and math.isnan(jitter([Call(gaps=[1., 1.])]))


def test_everything_failed_is_still_a_record():
    data = latency_data([Call(seconds=1., cpu=.1, error='down')]*5, True, None)
    assert data['failed'] == 5 and not data['e2e']['p95']['enough']
    json.dumps(plain(data))
    assert in_ms(quantile([.1, .2])).value == 200. and bounds_of(quantile([]))['n'] == 0


# --- a fresh process ------------------------------------------------------------------------------
CARD = '''poc: mine
outcome: {promise: answers}
model: {kind: python, target: "leaky:answer"}
data: {evaluation: rows.csv}
'''


def test_a_leak_is_caught_in_a_real_process_and_a_clean_function_is_not_accused(tmp_path):
    (tmp_path/'poc.yaml').write_text(CARD)
    (tmp_path/'rows.csv').write_text('prompt,reference\nhello,x\n')
    (tmp_path/'leaky.py').write_text("import mmap\nkept = []\ndef answer(p):\n    if p == 'keep':\n        kept.append(mmap.mmap(-1, 10_000))   # of the system itself: room that imports freed would take objects in, and nothing would grow\n        kept[-1].write(b'x'*10_000)\n    return 'fine ' + p\n")
    leak, clean = (cold_start(str(tmp_path/'poc.yaml'), [p], 400) for p in ('keep', 'forget'))
    assert verdict(growth(leak.trace), 1., '<=') == FAIL and 5 < growth(leak.trace).value < 15
    assert verdict(growth(clean.trace), 1., '<=') == PASS
    assert clean.errors == 0 and clean.load < .5 and clean.memory['peak'] >= max(clean.trace)*.999   # nothing is loaded but what is left of imports


def test_a_process_that_cannot_answer_says_why_without_the_prompt(tmp_path):
    (tmp_path/'poc.yaml').write_text(CARD)
    (tmp_path/'rows.csv').write_text('prompt,reference\nhello,x\n')
    (tmp_path/'leaky.py').write_text("import sys\ndef answer(p): raise SystemExit('gone: ' + p)\n")
    with pytest.raises(PlaybookError, match='could not answer') as e: cold_start(str(tmp_path/'poc.yaml'), ['my private words'], 2)
    assert 'private' not in str(e.value)
    with pytest.raises(PlaybookError, match='at least one prompt'): cold_start('demo', [], 2)


# --- memory ---------------------------------------------------------------------------------------
def test_growth_is_careful():
    with pytest.raises(PlaybookError, match='missing'): growth([1e8]*200 + [None])
    assert not growth([]).enough and not growth([1e8]*100).enough
    rng = np.random.default_rng(5)
    trace = 3e8 + rng.normal(0, 1e4, 500)
    a, b = growth(trace), growth(trace + 1e9)
    assert a.value == pytest.approx(b.value, abs=1e-6) and growth(trace + 2000*np.arange(500)).value == pytest.approx(a.value + 2, abs=.05)
    step = 3e8 + np.where(np.arange(500) > 300, 2e7, 0)   # one lazy allocation in the middle is no leak
    assert verdict(growth(step), 1., '<=') == INSUFFICIENT
    assert growth(3e8 - 5000*np.arange(500)).high < 0


# --- distance to the limit ------------------------------------------------------------------------
@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
    m = TransformersModel(make_tiny_model(tmp_path_factory.mktemp('roof')/'tiny', num_attention_heads=4, num_key_value_heads=2), device='cpu')
    return m.loaded


def test_work_is_counted_by_hand(loaded):
    w, h, i, kv, v = work_of(loaded.net), 64, 96, 2*16, len(loaded.tok)
    v = loaded.size
    assert w.body == 2*(2*h*h + 2*h*kv + 3*h*i + 2*h) + h and w.head == h*v and (w.kv_heads, w.head_dim, w.bytes) == (2, 16, 4.)
    assert w.kv(10) == 2*2*2*16*10*4 and w.decode_bytes(10, 3) == w.weight_bytes() + 3*w.kv(10)
    assert w.decode_flop(0, 2) == 2*w.decode_flop(0)


def test_untied_and_half_precision(tmp_path):
    import torch
    net = TransformersModel(make_tiny_model(tmp_path/'t', tie_word_embeddings=True), device='cpu', dtype='bfloat16').loaded.net
    w = work_of(net)
    assert w.bytes == 2. and w.kv_bytes == 2 and w.head == net.get_input_embeddings().weight.numel() and w.body + w.head == net.num_parameters()
    assert memory_kinds(net, 0.)['weights'] == pytest.approx(net.num_parameters()*2/1e6) and net.dtype == torch.bfloat16


def test_narrow_keeps_layers_and_leaves_the_random_state(loaded):
    import torch
    before = torch.random.get_rng_state()
    thin = narrow(loaded)
    assert torch.equal(before, torch.random.get_rng_state())
    kinds = lambda net: [type(m) for m in net.modules()]
    assert kinds(thin.net) == kinds(loaded.net) and thin.net.num_parameters() < .3*loaded.net.num_parameters() and loaded.net.config.hidden_size == 64


def test_free_linears_are_put_back_even_after_an_error(loaded):
    import torch
    x = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = loaded.net(input_ids=x).logits
        with pytest.raises(ZeroDivisionError), free_linears(loaded.net):
            assert not loaded.net(input_ids=x).logits.any()
            raise ZeroDivisionError
        assert torch.equal(before, loaded.net(input_ids=x).logits)


def test_the_account_adds_up_roughly_even_here(loaded):
    r = rounds(breakdown_jobs(loaded, 30, 6), 9)
    e = breakdown(r)['explained']
    assert e.low < 1.5 and e.high > .6 and set(breakdown(r)) == {'overhead', 'weights', 'kv', 'measured', 'explained'}
    assert used([1.]*9, [2.]*9).value == .5 and float(decode_floor(work_of(loaded.net), 10, 1e12, 1e9)) == work_of(loaded.net).decode_bytes(10)/1e9
    assert list(attainable([1, 1e9], 100., 2.)) == [2., 100.]


def test_a_context_that_does_not_fit_is_said(loaded):
    with pytest.raises(PlaybookError, match='at most 256 tokens'): steps(loaded, 250, 16)
    first, later = steps(loaded, 10, 5, batch=3)
    assert first > 0 and len(later) == 4


def test_variants_tell_what_broke_and_what_changed(loaded):
    def zero(net):
        net = copy.deepcopy(net)
        net.get_output_embeddings().weight.data.mul_(-1)
        return net
    res = {t.name: t for t in try_variants(loaded, 20, [range(6, 20)], 6, [*variants('cpu', 'float32', 1), Variant('negated', zero), Variant('broken', lambda net: 1/0)], 5)}
    assert res['as it is'].same == 1. and res['eager attention'].same == 1. and res['negated'].same < .5
    assert 'ZeroDivisionError' in res['broken'].error and res['broken'].speedup is None and res['int8, dynamic'].speedup is not None
    assert loaded.net.config._attn_implementation == 'sdpa'   # trying leaves the model as it was


def test_static_cache_writes_the_same(loaded):
    import torch
    n, context = 8, 12
    _, job, said = static_steps(loaded.net, context, n, compiled=False, vocabulary=200)
    ids = torch.tensor([[(7*i) % 200 for i in range(context)]])
    want = loaded.net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n-1, min_new_tokens=n-1, do_sample=False, pad_token_id=0)[0, context:].tolist()
    assert job() > 0 and (said() == want or 2 in want)   # generate() forbids the end-of-text token, the bare loop does not


def test_telemetry_that_fails_does_not_stop_the_work():
    def dies(h): raise OSError('lost the GPU')
    fake = ns(nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetPowerUsage=dies)
    with Watch(nvml=fake, every=.001) as t: pass
    assert t.summary() == {} and 'lost the GPU' in t.why


# --- the way to an endpoint -----------------------------------------------------------------------
@pytest.fixture
def server():
    "An endpoint on loopback that streams four tokens, and lists its models"
    import asyncio
    from aiohttp import web
    async def chat(request):
        r = web.StreamResponse(headers={'Content-Type': 'text/event-stream'})
        await r.prepare(request)
        for t in ('It ', 'is ', 'on ', 'its way'): await r.write(b'data: ' + json.dumps(dict(choices=[dict(delta=dict(content=t))])).encode() + b'\n\n'); await asyncio.sleep(.002)
        await r.write(b'data: ' + json.dumps(dict(choices=[dict(delta={}, finish_reason='stop')], usage=dict(prompt_tokens=9, completion_tokens=5))).encode() + b'\n\ndata: [DONE]\n\n')
        return r
    async def models(request): return web.json_response(dict(data=[]))
    app = web.Application()
    app.router.add_post('/v1/chat/completions', chat)
    app.router.add_get('/v1/models', models)
    loop, ready, at = asyncio.new_event_loop(), threading.Event(), {}
    async def start():
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, '127.0.0.1', 0)
        await site.start()
        at['port'] = site._server.sockets[0].getsockname()[1]
        at['runner'] = runner
        ready.set()
    threading.Thread(target=lambda: (asyncio.set_event_loop(loop), loop.run_until_complete(start()), loop.run_forever()), daemon=True).start()
    ready.wait(10)
    yield f'http://127.0.0.1:{at["port"]}/v1'
    asyncio.run_coroutine_threadsafe(at['runner'].cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)


def test_journeys(server):
    trips = journeys(server, n=3)
    assert len(trips) == 3 and all(t.status == 200 and 0 < t.connect < 5 and 0 < t.answer < 5 for t in trips)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        assert journeys(f'http://127.0.0.1:{s.getsockname()[1]}/v1', n=2, timeout=1) == []


# --- the chapter, for each kind of model ----------------------------------------------------------
def run_chapter(tmp_path, model, rows='prompt,reference\n' + ''.join(f'where is parcel {i},x\n' for i in range(160))):
    from genai_playbook.runner import run
    (tmp_path/'rows.csv').write_text(rows)
    (tmp_path/'poc.yaml').write_text(f'poc: mine\noutcome: {{promise: answers}}\nmodel: {model}\ndata: {{evaluation: rows.csv}}\n')
    ev = run(tmp_path/'poc.yaml', chapters=['latency'], effort='quick', out=tmp_path/'out')
    assert ev['chapters'][0]['status'] == 'done', ev['chapters'][0]['error']
    return {g['code']: g for g in ev['gates']}, ev['records']['latency']


@pytest.mark.slow
def test_chapter_recorded(tmp_path):
    log = ''.join(json.dumps(dict(prompt=f'where is parcel {i}', answer='there', **(dict(seconds=.2+i/1000) if i else {}))) + '\n' for i in range(160))
    (tmp_path/'log.jsonl').write_text(log)
    gates, record = run_chapter(tmp_path, '{kind: recorded, path: log.jsonl, prompt: prompt}')
    assert gates['LAT01']['verdict'] == 'PASS' and gates['LAT01']['unscored'] == 1
    assert [gates[c]['verdict'] for c in ('LAT02', 'LAT03', 'LAT04')] == ['NOT TESTED']*3 and record['memory'] is None


@pytest.mark.slow
def test_chapter_recorded_without_times(tmp_path):
    (tmp_path/'log.jsonl').write_text(''.join(json.dumps(dict(prompt=f'where is parcel {i}', answer='there')) + '\n' for i in range(160)))
    gates, _ = run_chapter(tmp_path, '{kind: recorded, path: log.jsonl, prompt: prompt}')
    assert {g['verdict'] for g in gates.values()} == {'NOT TESTED'}


@pytest.mark.slow
def test_chapter_python(tmp_path):
    (tmp_path/'mine.py').write_text("def answer(p):\n    if p.endswith('7'): raise RuntimeError('down')\n    return 'there'\n")
    gates, record = run_chapter(tmp_path, '{kind: python, target: "mine:answer"}')
    assert gates['LAT01']['verdict'] == gates['LAT02']['verdict'] == 'INSUFFICIENT' and gates['LAT01']['unscored'] == record['failed'] >= 8   # one call in ten failed
    assert gates['LAT03']['verdict'] == 'PASS' and record['limit'] == {} and record['cpu_seconds_per_call']


@pytest.mark.slow
def test_chapter_endpoint(tmp_path, server):
    gates, record = run_chapter(tmp_path, f'{{kind: openai, base_url: "{server}", model: m}}')
    assert gates['LAT01']['verdict'] == gates['LAT02']['verdict'] == 'PASS' and gates['LAT03']['verdict'] == gates['LAT04']['verdict'] == 'NOT TESTED'
    assert record['tokens_out']['value'] == 5 and 'cpu_seconds_per_call' not in record and record['cold_start'] is None
