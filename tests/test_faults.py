"Faults on purpose: the same ones again, through every shape of function, through models, and over a real socket"
import asyncio
import json
from collections import Counter

import pytest

from genai_playbook.endpoint import OpenAIModel
from genai_playbook.errors import PlaybookError
from genai_playbook.faults import ABORT, FAULTS, STALL, Faulty, FaultyModel, FaultyServer, Injector, fault_matrix, outcome, script, with_faults
from genai_playbook.models import Answer, PythonModel, wait
from genai_playbook.perturb import Dice
from genai_playbook.resilience import Breaker, Bulkhead, FakeClock, Retry, RetryBudget, Timeout, stack
from genai_playbook.system import System
from genai_playbook.tiers import fallback

TEXT = 'Your parcel arrives on Monday at noon.'


def answer(prompt): return TEXT
async def aanswer(prompt): return TEXT
def pieces(prompt): yield from TEXT.split(' ')


def test_there_are_the_faults_that_were_asked_for():
    assert len(FAULTS) >= 16
    assert {'rate_limit', 'server_error', 'refused', 'reset', 'hang', 'slow_first', 'slow_tokens', 'truncated_json', 'invalid_utf8', 'empty', 'length', 'content_filter', 'wrong_schema', 'duplicated_chunk', 'garbage', 'out_of_memory'} <= set(FAULTS)


def test_the_share_is_met_and_every_kind_occurs():
    met = Counter(Injector(.2, seed=4).fault(i) for i in range(20_000))
    assert abs(1-met['']/20_000-.2) < .01 and set(met) == {'', *FAULTS} and min(met.values()) > 100


@pytest.mark.parametrize('bad', [dict(share=-.1), dict(share=1.1), dict(kinds=()), dict(kinds=('no such',))])
def test_impossible_injectors(bad):
    with pytest.raises(PlaybookError): Injector(**bad)


@pytest.mark.parametrize('kind', FAULTS)
def test_scripts_are_the_same_bytes(kind):
    one, two = (script(kind, TEXT, Dice(7, 'x')) for _ in range(2))
    assert one == two and all(isinstance(s, bytes) or s in (ABORT, STALL) for s in one[2])
    assert script(kind, '', Dice(1)) and script(kind, '\ud800 🙂', Dice(1))


@pytest.mark.parametrize('kind', FAULTS)
def test_a_stack_survives_every_fault_of_a_function(kind):
    clock = FakeClock()
    def guarded(fn): return stack(Retry(again=lambda e: True, clock=clock, draw=lambda: 0.), Breaker(clock=clock), Bulkhead(8), Timeout(5, clock=clock), Faulty(Injector(1., (kind,)), clock=clock))(fn)
    got = wait(fallback([guarded(aanswer), 'sorry'], clock=clock).ask('x'))
    assert got.text and (got.tier == 'text' or FAULTS[kind][0] == 'silent')
    assert clock.now() < 100


@pytest.mark.parametrize('kind', [k for k in FAULTS if FAULTS[k][0] != 'stall'])
def test_sync_functions_and_streams_too(kind):
    for fn in (answer, pieces):
        chain = fallback([Retry(1, clock=FakeClock())(Faulty(Injector(1., (kind,)))(fn)), 'sorry'])
        assert chain('x').text
        try: assert ''.join(chain.pieces('x'))
        except Exception as e: assert FAULTS[kind][0] == 'break', e # half a sentence was told: nobody can take over


def test_a_fifth_of_faults_through_the_tiers():
    clock, n = FakeClock(), 3000
    faulty = Faulty(Injector(.2, seed=5), clock=clock)
    retry = Retry(again=lambda e: True, budget=RetryBudget(burst=1000), clock=clock, draw=lambda: 0.)
    chain = fallback([stack(retry, Breaker(clock=clock), Timeout(5, clock=clock), faulty)(aanswer), 'sorry'], clock=clock)
    async def day(): return [await chain.ask(str(i)) for i in range(n)]
    got = wait(day())
    assert all(r.text for r in got) and sum(r.tier == 'aanswer' for r in got)/n > .95
    assert retry.counts['retried']/n <= .3


def test_models_fail_alike_in_batches_and_alone():
    prompts = [f'q {i}' for i in range(60)]
    def run(ask): m = FaultyModel(PythonModel(answer), Injector(.5, seed=2)); return ask(m), m.met
    batch, met = run(lambda m: m.answer(prompts))
    alone, _ = run(lambda m: [m.answer([p])[0] for p in prompts])
    back, _ = run(lambda m: list(reversed(m.answer(prompts[::-1]))))
    told = [(a.text, a.error) for a in batch]
    assert told == [(a.text, a.error) for a in alone] == [(a.text, a.error) for a in back] and met['none'] < 45
    stream, _ = run(lambda m: [list(m.stream(p))[-1].answer for p in prompts])
    assert told == [(a.text, a.error) for a in stream]


def test_asked_again_it_may_work():
    m = FaultyModel(PythonModel(answer), Injector(.5, seed=1))
    assert len({m.answer(['same'])[0].error for _ in range(40)}) > 2


def test_the_matrix_names_who_answered():
    table = fault_matrix(System(PythonModel(answer), fallbacks=['sorry']), ['a', 'b', [dict(role='user', content='c')]])
    assert (table.sum(axis=1) == 3).all() and set(table.index) == set(FAULTS)
    assert all(table.loc[k, 'fallback'] == 3 for k, (family, _) in FAULTS.items() if family != 'silent') and all(table.loc[k, 'wrong'] == 3 for k in ('length', 'duplicated_chunk', 'garbage'))
    class Broken(PythonModel):
        def answer(self, prompts, progress=None): raise RuntimeError
    assert outcome(Answer('x', seconds=99.), 'x', 60.) == 'hang' and outcome(Answer(''), 'x', 60.) == 'error'
    good = System(PythonModel(answer))
    good.model = Broken(answer)
    with pytest.raises(RuntimeError): fault_matrix(good, ['a'])


def test_a_system_behind_faults_leaves_the_original_alone():
    s = System(PythonModel(answer))
    with_faults(s, Injector(1.)).answer(['x'])
    assert s.answer(['x'])[0].text == TEXT


def ask_server(injector, prompts, **kw):
    async def go():
        server = FaultyServer(answer, injector, stall=30.)
        async with server as url:
            model = OpenAIModel(url, 'm', first_token_timeout=2., total_timeout=4., **kw)  # long enough for a busy machine to answer what is not stalled
            model.sleep = lambda s: asyncio.sleep(0)
            return await model.aanswer(prompts), dict(server.met)
    return wait(go())


@pytest.mark.parametrize('kind', FAULTS)
def test_the_client_survives_each_fault_over_a_socket(kind):
    got, met = ask_server(Injector(1., (kind,)), ['a', 'b'], retries=0)
    assert met == {kind: 2} and len(got) == 2
    if kind in ('length', 'duplicated_chunk', 'garbage'): assert all(a.text and not a.error for a in got)
    elif kind not in ('empty', 'content_filter', 'invalid_utf8'): assert all(a.error for a in got)


def test_a_fifth_of_faults_over_a_socket_with_retries_and_a_last_sentence():
    prompts = [f'q {i}' for i in range(120)]
    got, met = ask_server(Injector(.2, seed=1), prompts, retries=2)
    assert 8 < sum(v for k, v in met.items() if k != 'none') and len(got) == 120
    again, same = ask_server(Injector(.2, seed=1), prompts, retries=2)
    assert [(a.text, a.error) for a in got] == [(a.text, a.error) for a in again] and met == same
    s = System(PythonModel(answer), fallbacks=['sorry'])
    final = [s._finish(a, p) for a, p in zip(got, prompts)]
    assert all(a.text and not a.error for a in final)
    assert json.dumps(met)
