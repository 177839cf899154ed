"Policies under fire: every shape of function, virtual time, races, and what each of them must never do"
import asyncio
import concurrent.futures
import functools
import logging
import random
import threading

import pytest

from genai_playbook.models import BadPrompt, wait
from genai_playbook.resilience import Breaker, Bulkhead, CircuitOpen, Clock, FakeClock, Full, Hedge, Late, Policy, Retry, RetryBudget, Timeout, asked_to_wait, in_thread, passing, stack


class Busy(Exception):
    def __init__(self, after=None, status=429): self.retry_after, self.status = after, status


def policies(clock): return [Policy(clock=clock), Timeout(5, clock=clock), Retry(clock=clock), Breaker(clock=clock), Bulkhead(2, clock=clock), Hedge(5, clock=clock),
                             stack(Retry(clock=clock), Breaker(clock=clock), Bulkhead(4), Timeout(5, clock=clock))]


class Callable_:
    def __call__(self, x): return x*2
class AsyncCallable:
    async def __call__(self, x): return x*2


def plain(x): return x*2
def stream(x): yield from (x, x)
async def coroutine(x): return x*2
async def astream(x):
    yield x
    yield x


async def collect(it): return [p async for p in it]


@pytest.mark.parametrize('i', range(7))
def test_every_shape_keeps_its_shape(i):
    def p(): return policies(FakeClock())[i]
    assert p()(plain)(2) == 4 == p()(Callable_())(2) == p()(functools.partial(plain, 2))()
    assert list(p()(stream)('a')) == ['a', 'a']
    assert wait(p()(coroutine)(2)) == 4 == wait(p()(AsyncCallable())(2)) == wait(p()(functools.partial(coroutine, 2))()) == wait(p()(lambda x: coroutine(x))(2))
    assert wait(collect(p()(astream)('a'))) == ['a', 'a']
    assert p()(plain).__name__ == 'plain'


@pytest.mark.parametrize('i', range(7))
def test_errors_pass_through_in_every_shape(i):
    def p(): return policies(FakeClock())[i]
    def fails(x): raise KeyError(x)
    def sfails(x):
        yield 1
        raise KeyError(x)
    async def afails(x): raise KeyError(x)
    async def asfails(x):
        yield 1
        raise KeyError(x)
    with pytest.raises(KeyError): p()(fails)(1)
    with pytest.raises(KeyError): list(p()(sfails)(1))
    with pytest.raises(KeyError): wait(p()(afails)(1))
    with pytest.raises(KeyError): wait(collect(p()(asfails)(1)))


def test_eight_calls_of_a_tenth_take_a_tenth():
    clock = FakeClock()
    breaker = Breaker(clock=clock)
    @breaker
    async def call(): await clock.asleep(.1)
    async def all_(): await asyncio.gather(*[call() for _ in range(8)])
    wait(all_())
    assert clock.now() == pytest.approx(.1)


def test_threads_are_inside_together():
    barrier, breaker = threading.Barrier(8), Breaker()
    tasks = [in_thread(lambda: breaker(barrier.wait)(20)) for _ in range(8)]
    assert sorted(t.result(20) for t in tasks) == list(range(8))


def opened(clock, **kw):
    b = Breaker(least=3, open_for=10, clock=clock, **kw)
    for _ in range(3):
        with pytest.raises(ConnectionError): b(down)()
    assert b.state == 'open'
    return b


def down(): raise ConnectionError


def test_exactly_one_of_sixteen_coroutines_is_the_probe():
    clock = FakeClock()
    b, inside = opened(clock), []
    clock.sleep(10)
    async def up():
        inside.append(1)
        await clock.asleep(1)
        return 'up'
    async def all_(): return await asyncio.gather(*[b(up)() for _ in range(16)], return_exceptions=True)
    res = wait(all_())
    assert len(inside) == 1 and res.count('up') == 1 and sum(isinstance(r, CircuitOpen) for r in res) == 15 and b.state == 'closed'


def test_a_failed_probe_opens_again_and_an_old_call_does_not_count():
    clock = FakeClock()
    b = Breaker(least=3, open_for=10, clock=clock)
    old = b.enter()
    for _ in range(3):
        with pytest.raises(ConnectionError): b(down)()
    b.leave(old, True)
    assert b.state == 'open'
    clock.sleep(10)
    with pytest.raises(ConnectionError): b(down)()
    assert b.state == 'open' and b.counts['opened'] == 2
    with pytest.raises(CircuitOpen): b(plain)(1)


def test_a_lost_probe_is_given_up():
    clock = FakeClock()
    b = opened(clock)
    clock.sleep(10)
    b.enter()
    with pytest.raises(CircuitOpen): b(plain)(1)
    clock.sleep(10)
    assert b(plain)(1) == 2 and b.state == 'closed'


def test_a_cancelled_probe_makes_room_for_the_next():
    clock = FakeClock()
    b = opened(clock)
    clock.sleep(10)
    it = b(stream)('a')
    next(it)
    it.close()
    assert b.state == 'half-open' and b(plain)(1) == 2 and b.state == 'closed'


def test_bad_prompts_and_few_calls_do_not_open():
    b = Breaker(least=3)
    def bad(): raise BadPrompt('empty')
    for _ in range(9):
        with pytest.raises(BadPrompt): b(bad)()
    assert b.state == 'closed'
    for _ in range(2):
        with pytest.raises(ConnectionError): b(down)()
    assert b.state == 'closed'


def test_share_decides_not_a_single_run_of_luck():
    b, rng = Breaker(share=.5, window=20, least=10), random.Random(0)
    def call(p):
        if rng.random() < p: raise ConnectionError
    for _ in range(300):
        try: b(call)(.2)
        except ConnectionError: pass
    assert b.state == 'closed'


def test_a_stream_that_breaks_off_counts_as_a_failure():
    b = Breaker(least=3)
    def breaks():
        yield 'a'
        raise ConnectionError
    for _ in range(3):
        with pytest.raises(ConnectionError): list(b(breaks)())
    assert b.state == 'open'


@pytest.mark.parametrize('share,calls', [(.2, (1.2, 1.28)), (1., (1.2, 1.3)), (.5, (1.2, 1.3))])
def test_retry_amplification(share, calls):
    rng, n = random.Random(3), [0]
    r = Retry(clock=FakeClock(), draw=lambda: 0.)
    @r
    def f():
        n[0] += 1
        if rng.random() < share: raise ConnectionError
    for _ in range(3000):
        try: f()
        except ConnectionError: pass
    assert calls[0] <= n[0]/3000 <= calls[1]


def test_nested_retries_with_one_budget_do_not_multiply():
    budget, n = RetryBudget(), [0]
    def down_counting():
        n[0] += 1
        down()
    f = stack(*[Retry(4, budget, clock=FakeClock(), draw=lambda: 0.) for _ in range(3)])(down_counting)
    for _ in range(500):
        with pytest.raises(ConnectionError): f()
    assert n[0]/500 < 2
    n[0] = 0
    free = stack(*[Retry(4, RetryBudget(1e9, 1e9), clock=FakeClock(), draw=lambda: 0., total=1e9) for _ in range(3)])(down_counting)
    with pytest.raises(ConnectionError): free()
    assert n[0] == 64


@pytest.mark.parametrize('header,seconds', [('7', 7.), ('Thu, 01 Jan 1970 00:00:40 GMT', 40.), ('soon', 0.), ('', 0.), (None, 0.), ('-5', 0.)])
def test_retry_after_in_headers(header, seconds):
    e = Exception()
    e.headers = {'Retry-After': header} if header is not None else {}
    assert asked_to_wait(e, 0.) == seconds


def test_retry_after_is_waited_for_or_given_up():
    clock, left = FakeClock(), [2]
    def f():
        if left[0]: left[0] -= 1; raise Busy(5)
        return 'ok'
    assert Retry(clock=clock, draw=lambda: 0.)(f)() == 'ok' and clock.now() == 10
    left[0], clock = 2, FakeClock()
    r = Retry(clock=clock, total=4, draw=lambda: 0.)
    with pytest.raises(Busy): r(f)()
    assert clock.now() == 0 and r.counts['no time left'] == 1


def test_what_will_not_pass_is_not_tried_again():
    r, n = Retry(clock=FakeClock()), [0]
    for e in (ValueError, BadPrompt, KeyError, lambda: Busy(status=400)):
        def f(e=e): n[0] += 1; raise e()
        with pytest.raises((ValueError, KeyError, Busy)): r(f)()
    assert n[0] == 4 and passing(TimeoutError()) and passing(Late()) and passing(Busy()) and not passing(CircuitOpen())


def test_streams_are_retried_only_before_the_first_piece():
    r, n = Retry(clock=FakeClock(), draw=lambda: 0.), [0]
    def early():
        n[0] += 1
        if n[0] < 3: raise ConnectionError
        yield 'a'
    def half():
        n[0] += 1
        yield 'a'
        raise ConnectionError
    assert list(r(early)()) == ['a'] and n[0] == 3
    n[0], got = 0, []
    with pytest.raises(ConnectionError):
        for p in r(half)(): got.append(p)
    assert got == ['a'] and n[0] == 1


def test_timeouts_of_threads_and_streams():
    never = threading.Event()
    try:
        with pytest.raises(Late): Timeout(.05)(never.wait)(60)
        def stalls():
            yield 'a'
            never.wait(60)
        got = []
        with pytest.raises(Late):
            for p in Timeout(60, between=.05)(stalls)(): got.append(p)
        assert got == ['a']
        def slow_start():
            never.wait(60)
            yield 'a'
        with pytest.raises(Late, match='0.05'): list(Timeout(60, first=.05)(slow_start)())
    finally: never.set()


def test_a_stream_that_fails_before_it_exists():
    with pytest.raises(KeyError): list(Timeout(60).stream(lambda: {}['x']))


def test_async_stream_limits_in_virtual_time():
    clock = FakeClock()
    async def slow(n, pause):
        for i in range(n):
            await clock.asleep(pause)
            yield i
    with pytest.raises(Late): wait(collect(Timeout(60, first=1, clock=clock)(slow)(3, 2)))
    assert wait(collect(Timeout(60, first=3, clock=clock)(slow)(3, 2))) == [0, 1, 2]
    with pytest.raises(Late, match='10 s'): wait(collect(Timeout(10, clock=clock)(slow)(99, 2)))


def test_a_cancelled_coroutine_is_really_cancelled():
    clock, seen = FakeClock(), []
    async def f():
        try: await clock.asleep(10**9)
        except asyncio.CancelledError: seen.append(1); raise
    with pytest.raises(Late): wait(Timeout(1, clock=clock)(f)())
    wait(asyncio.sleep(0))
    assert seen == [1]


def test_hedge_waits_for_the_one_that_succeeds():
    clock = FakeClock()
    plans = iter([(9, ConnectionError), (2, None)])
    async def f():
        seconds, e = next(plans)
        await clock.asleep(seconds)
        if e: raise e
        return 'ok'
    h = Hedge(1, clock=clock)
    assert wait(h(f)()) == 'ok' and h.counts == dict(hedged=1, **{'second won': 1})
    assert Hedge(5)(plain)(3) == 6
    with pytest.raises(ConnectionError): Hedge(5)(down)()


def test_hedge_of_threads():
    go, n = threading.Event(), [0]
    def f():
        n[0] += 1
        if n[0] == 1: go.wait(20); return 'first'
        return 'second'
    h = Hedge(.02)
    assert h(f)() == 'second' and h.counts['hedged'] == 1
    go.set()


def test_bulkhead_frees_its_place_whatever_happens():
    room = Bulkhead(2)
    for f in (down, lambda: (_ for _ in ()).throw(KeyError)):
        with pytest.raises((ConnectionError, KeyError)): room(f)()
    async def cancelled():
        t = asyncio.ensure_future(room(asyncio.sleep)(60))
        await asyncio.sleep(0)
        assert room.inside == 1
        t.cancel()
        await asyncio.gather(t, return_exceptions=True)
    wait(cancelled())
    assert room.inside == 0
    gate = threading.Event()
    tasks = [in_thread(lambda: room(gate.wait)(20)) for _ in range(6)]
    full = [next(done) for done in [concurrent.futures.as_completed(tasks, 20)] for _ in range(4)]
    gate.set()
    concurrent.futures.wait(tasks, 20)
    assert all(isinstance(t.exception(), Full) for t in full) and sum(t.exception() is None for t in tasks) == 2 and room.inside == 0


def test_prompts_are_in_no_log(caplog):
    caplog.set_level(logging.DEBUG, 'genai_playbook.resilience')
    def f(prompt): raise ConnectionError(prompt)
    s = stack(Retry(clock=FakeClock()), Breaker(least=1), Bulkhead(1), Timeout(1))(f)
    with pytest.raises(CircuitOpen): s('a very private question')
    with pytest.raises(CircuitOpen): s('a very private question')
    assert caplog.records and 'private' not in caplog.text


def test_fake_clock_runs_in_order_and_real_clock_is_real():
    clock, order = FakeClock(), []
    async def f(s):
        await clock.asleep(s)
        order.append(s)
        await clock.asleep(s)
        order.append(s)
    async def go(): await asyncio.gather(*map(f, (3, 1, 2)))
    wait(go())
    assert sorted(order) == [1, 1, 2, 2, 3, 3] and order[0] == 1 and order[-1] == 3 and clock.now() == 6 and Clock().now() > 0
