"What a budget must survive: many threads at once, hostile amounts, windows, broken models"
import math
import threading

import pytest
from hypothesis import given, settings, strategies as st

from genai_playbook.budget import Budget, Budgeted, BudgetSpent, Tariff
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, Model, PythonModel


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(0, 500), calls=st.lists(st.tuples(st.integers(0, 80), st.floats(0, 1)), max_size=40), threads=st.integers(1, 8))
def test_concurrent_calls_never_pass_the_budget(limit, calls, threads):
    budget, spent, lock, todo = Budget(money=limit, tokens=limit), [], threading.Lock(), list(calls)
    def work():
        while True:
            with lock:
                if not todo: return
                most, share = todo.pop()
            try: held = budget.reserve(most, most)
            except BudgetSpent: continue
            used = int(most*share)
            with lock: spent.append(used)
            budget.settle(held, used, used)
    ts = [threading.Thread(target=work) for _ in range(threads)]
    for t in ts: t.start()
    for t in ts: t.join()
    assert sum(spent) <= limit
    assert budget.left['tokens'] == limit - sum(spent)


@pytest.mark.parametrize('bad', [-1, math.nan, math.inf])
def test_hostile_amounts(bad):
    with pytest.raises(PlaybookError): Budget(money=bad)
    with pytest.raises(PlaybookError): Budget(money=1).reserve(bad)
    held = Budget(money=1)
    r = held.reserve(.5)
    with pytest.raises(PlaybookError): held.settle(r, bad)
    assert held.left['money'] == .5


def test_settled_once():
    b = Budget(tokens=10)
    r = b.reserve(tokens=5)
    b.settle(r, tokens=1)
    with pytest.raises(PlaybookError, match='settled before'): b.settle(r, tokens=1)
    assert b.left['tokens'] == 9


def test_a_call_under_way_counts_in_the_next_window():
    now = [0.]
    b = Budget(tokens=10, window=60, clock=lambda: now[0])
    r = b.reserve(tokens=8)
    now[0] = 61
    with pytest.raises(BudgetSpent): b.reserve(tokens=5)
    b.settle(r, tokens=8)
    assert b.left['tokens'] == 2
    now[0] = 121
    assert b.left['tokens'] == 10


class Broken(Model):
    name, about, digest = 'broken', {}, 'x'
    def answer(self, prompts, progress=None): raise OSError('gone')
    def stream(self, prompt): raise OSError('gone'); yield


def test_what_broke_is_booked_whole_and_nothing_stays_reserved():
    b = Budget(tokens=1000)
    m = Budgeted(Broken(), b)
    with pytest.raises(OSError): m.answer(['hi'])
    assert b.left['tokens'] == 1000-130 and not b._held
    with pytest.raises(OSError): list(m.stream('hi'))
    assert b.left['tokens'] == 1000-260 and not b._held


def test_a_stream_left_early_is_settled():
    b = Budget(tokens=1000)
    s = Budgeted(PythonModel(lambda p: iter(['a', 'b'])), b).stream('hi')
    next(s)
    s.close()
    assert not b._held and b.left['tokens'] == 870


def test_cached_answers_cost_nothing_and_order_is_kept():
    class Cached(Broken):
        def answer(self, prompts, progress=None): return [Answer(p, cached=True) for p in prompts]
    b = Budget(money=1.)
    got = Budgeted(Cached(), b, Tariff(1e3, 1e3)).answer(['a', 'x'*20_000, 'c'])
    assert [a.text for a in got] == ['a', '', 'c'] and got[1].finish_reason == 'budget' and b.left['money'] == 1.
