"The router when arms, flags, judges and callers misbehave: no accepted request is lost"
import asyncio, random, threading
from types import SimpleNamespace

import pytest

from genai_playbook.canary import CanaryJudge, Limit
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer
from genai_playbook.rollout_manifests import argo_steps, argo_template, certain, flagger_canary, flagger_metrics, manifests_yaml
from genai_playbook.router import Closed, Guarded, Router, VirtualLoop, bucket

async def fine(prompt): return 'from the baseline'
async def new(prompt): return 'from the canary'
async def dead(prompt): raise ConnectionError(f'cannot reach the host for {prompt}')
async def hanging(prompt): await asyncio.sleep(10**6)
async def slow(prompt): await asyncio.sleep(1); return 'from the canary'
async def suicidal(prompt): raise asyncio.CancelledError

def routed(canary=new, share=1., baseline=fine, loop=None, **more):
    loop = loop or VirtualLoop()
    return Router(dict(baseline=baseline, canary=canary), share=share, clock=loop.time, **more), loop

async def crowd(router, n=50): return await asyncio.gather(*(router.answer(f'u{i}', 'where is my parcel?') for i in range(n)))

def whole(router): # every accepted request ended in one way
    c = router.counts
    return c['under way'] == 0 and c['accepted'] == c['answered']+c['unanswered']+c['left']

@pytest.mark.parametrize('canary', [dead, hanging, suicidal, lambda p: None, lambda p: 7, lambda p: ' ', lambda p: Answer(error='down'), lambda p: Answer('')])
def test_whatever_the_canary_does_the_baseline_answers(canary):
    if canary.__name__ != '<lambda>': router, loop = routed(canary)
    else: # ordinary functions run in threads, which know no virtual time
        loop = asyncio.new_event_loop(); loop.run = loop.run_until_complete
        router, _ = routed(canary, loop=loop)
    got = loop.run(crowd(router))
    loop.close()
    assert {a.text for a, _ in got} == {'from the baseline'} and all(s.failed and s.arm == 'canary' for _, s in got)
    assert router.counts['answered'] == router.counts['rescued'] == 50 and whole(router)

def test_a_baseline_that_fails_gives_an_answer_that_says_so_without_the_prompt():
    router, loop = routed(dead, baseline=dead)
    (answer, seen), = loop.run(crowd(router, 1))
    assert answer.error and 'parcel' not in answer.error and 'parcel' not in str(router.events) and router.counts['unanswered'] == 1 and whole(router)

def test_a_blocked_answer_is_refused_and_not_failed():
    router, loop = routed(lambda p: Answer('I cannot help with that', tier='guard', error='blocked'))
    loop = asyncio.new_event_loop()
    (answer, seen), = loop.run_until_complete(crowd(router, 1))
    loop.close()
    assert seen.refused and not seen.failed and answer.tier == 'guard'

def test_models_and_functions_are_backends_too():
    class Canned:
        name = 'canned'
        def answer(self, prompts, progress=None): return [Answer('from a model') for _ in prompts]
        def stream(self, prompt): raise AssertionError
    class Caller:
        async def __call__(self, prompt): return Answer('from a caller')
    for backend, text in ((Canned(), 'from a model'), (Caller(), 'from a caller'), (lambda p: 'from a function', 'from a function'), (lambda p: new(p), 'from the canary')):
        router = Router(dict(baseline=fine, canary=backend), share=1.)
        assert asyncio.run(crowd(router, 2))[1][0].text == text

def raising(*_): raise TimeoutError
@pytest.mark.parametrize('ask', [raising, lambda *_: SimpleNamespace(value='purple', error_code=None), lambda *_: SimpleNamespace(value=None, error_code=None),
    lambda *_: SimpleNamespace(value='canary', error_code='PROVIDER_FATAL'), lambda *_: None])
def test_a_broken_flag_means_the_baseline(ask):
    router, loop = routed(client=SimpleNamespace(get_string_details=ask))
    assert {s.arm for _, s in loop.run(crowd(router))} == {'baseline'}
    assert [e['what'] for e in router.events].count('flag failed') == 1 and router.counts['flag failed'] == 50

def test_another_provider_decides():
    from openfeature import api
    from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider
    api.set_provider_and_wait(InMemoryProvider(dict(release=InMemoryFlag('on', dict(on='canary', off='baseline')))), 'test-router')
    router, _ = routed(share=.01, client=api.get_client('test-router'), flag='release')
    assert {router.arm_of(f'u{i}') for i in range(50)} == {'canary'}
    router.rollback('no more')
    assert {router.arm_of(f'u{i}') for i in range(50)} == {'baseline'}

def test_users_stay_where_they_are():
    router, _ = routed(share=.1)
    users = [f'u{i}' for i in range(3000)]
    tenth = {u for u in users if router.arm_of(u) == 'canary'}
    router.set_share(.3, 'going on')
    third = {u for u in users if router.arm_of(u) == 'canary'}
    assert tenth < third and .07 < len(tenth)/3000 < .13 and .26 < len(third)/3000 < .34
    assert bucket('ann') == pytest.approx(bucket('ann'), abs=0) and 0 <= bucket('\udcff') < 1 and bucket('ann') != bucket('ann', 'another')
    assert router.arm_of('') == router.arm_of(None) == 'baseline'

@pytest.mark.parametrize('share', [-.1, 1.1, float('nan'), '0.1', None])
def test_a_share_is_a_share(share):
    with pytest.raises(PlaybookError, match='share'): routed(share=share)
    with pytest.raises(PlaybookError, match='two arms'): Router(dict(baseline=fine, blue=new))

def test_a_rollback_is_final_until_somebody_reopens():
    router, loop = routed()
    router.rollback('bad'); router.rollback('worse')
    assert [e['what'] for e in router.events] == ['share', 'rollback'] and router.stopped == 'bad'
    for again in (lambda: router.set_share(.1, 'ramp'), lambda: router.promote('ramp')):
        with pytest.raises(PlaybookError, match='reopen'): again()
    silent, _ = routed(); silent.rollback('')
    assert silent.arm_of('u') == 'baseline' and silent.stopped
    router.reopen('fixed'); router.set_share(1., 'next try')
    assert loop.run(crowd(router, 1))[0][0].text == 'from the canary'

@pytest.mark.parametrize('canary, text', [(slow, 'from the canary'), (hanging, 'from the baseline')])
def test_requests_under_way_may_finish_and_the_rest_is_rescued(canary, text):
    router, loop = routed(canary, grace=2.)
    async def killed():
        under_way = asyncio.gather(*(router.answer(f'u{i}', 'hi') for i in range(20)))
        await asyncio.sleep(.5)
        router.rollback('mid-request')
        late = await router.answer('u0', 'hi')
        return [*await under_way, late]
    *early, late = loop.run(killed())
    assert {a.text for a, _ in early} == {text} and late[0].text == 'from the baseline' and whole(router)

def test_a_rollback_from_another_thread_reaches_requests_under_way():
    router = Router(dict(baseline=fine, canary=hanging), share=1., grace=.01)
    async def waiting():
        threading.Timer(.05, router.rollback, ['from a thread']).start()
        return await asyncio.wait_for(crowd(router, 5), 20)
    assert {a.text for a, _ in asyncio.run(waiting())} == {'from the baseline'}

def test_a_closed_router_answers_what_it_accepted_and_nothing_more():
    router, loop = routed(hanging)
    async def closing():
        under_way = asyncio.gather(*(router.answer(f'u{i}', 'hi') for i in range(20)))
        await asyncio.sleep(1)
        await router.drain()
        assert under_way.done() or not router.counts['under way']
        with pytest.raises(Closed, match='another'): await router.answer('u0', 'hi')
        return await under_way
    assert {a.text for a, _ in loop.run(closing())} == {'from the baseline'} and router.counts['accepted'] == 20 and whole(router)

def test_a_caller_who_leaves_takes_the_canary_call_along():
    gone = []
    async def watched(prompt):
        try: await asyncio.sleep(100)
        except asyncio.CancelledError: gone.append(1); raise
    router, loop = routed(watched)
    async def leaving():
        task = asyncio.ensure_future(router.answer('u', 'hi'))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        await asyncio.sleep(1)
    loop.run(leaving())
    assert gone == [1] and router.counts['left'] == 1 and whole(router) and not router._gates

def test_what_listens_cannot_break_an_answer():
    def broken(*_): raise ValueError('listener')
    router, loop = routed(on_seen=broken, measure=broken)
    assert {a.text for a, _ in loop.run(crowd(router))} == {'from the canary'}
    assert {e['what'] for e in router.events} == {'share', 'on_seen failed', 'measure failed'}

def test_what_is_measured_reaches_the_judge():
    seen = []
    router, loop = routed(on_seen=seen.append, measure=lambda prompt, answer: dict(quality=.5, cost=.1, harmful=True, refused=None))
    loop.run(crowd(router, 1))
    assert (seen[0].quality, seen[0].cost, seen[0].harmful, seen[0].refused, seen[0].failed) == (.5, .1, True, None, False)

def test_a_judge_that_breaks_takes_the_canary_back():
    router, loop = routed()
    Guarded(router, SimpleNamespace(see=lambda s: 1/0))
    loop.run(crowd(router))
    assert router.stopped.startswith('the judge failed (ZeroDivisionError)') and whole(router)

def test_shadow_copies_neither_delay_nor_pile_up():
    seen = []
    router, loop = routed(hanging, shadow=True, shadows=10, patience=5., on_seen=seen.append)
    async def timed():
        answers = await crowd(router)
        return answers, loop.time(), await asyncio.sleep(10)
    answers, took, _ = loop.run(timed())
    assert took == 0 and {a.text for a, _ in answers} == {'from the baseline'} and router.counts['copy dropped'] == 40 and router.counts['copies'] == 0
    assert sum(s.arm == 'canary' and s.failed for s in seen) == 10

@pytest.mark.parametrize('seed', range(5))
def test_chaos_loses_nothing(seed):
    dice, seen = random.Random(seed), []
    async def moody(prompt):
        await asyncio.sleep(dice.expovariate(2))
        if dice.random() < .3: raise dice.choice([ConnectionError, asyncio.CancelledError, TimeoutError, ValueError])
        return dice.choice(['from the canary', '', None, 7])
    router, loop = routed(moody, share=.5, on_seen=seen.append, patience=2., grace=.05)
    async def turmoil():
        tasks = []
        for i in range(400):
            tasks.append(asyncio.ensure_future(router.answer(f'u{dice.randrange(100)}', f'{i}')))
            await asyncio.sleep(dice.expovariate(50))
            if dice.random() < .02: router.rollback('turmoil')
            if dice.random() < .02 and router.stopped: router.reopen('turmoil'); router.set_share(dice.random(), 'turmoil')
            if dice.random() < .02: tasks[-1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)
    got = [g for g in loop.run(turmoil()) if not isinstance(g, asyncio.CancelledError)]
    assert {a.text for a, _ in got} <= {'from the baseline', 'from the canary'} and not any(isinstance(g, Exception) for g in got)
    assert whole(router) and len(seen) >= len(got) and not router._gates

def test_a_bad_release_goes_and_a_good_one_climbs():
    dice = random.Random(0)
    def arm(p):
        async def answer(prompt):
            await asyncio.sleep(.02)
            if dice.random() < p: raise ConnectionError
            return 'ok'
        return answer
    async def traffic(router, n):
        async def one(i): await asyncio.sleep(i/200); return await router.answer(f'u{i}', 'hi')
        return await asyncio.gather(*(one(i) for i in range(n)))
    for p, n, last in ((.2, 1000, 'rollback'), (.0, 4000, 'promote')):
        router, loop = routed(arm(p), share=.2, baseline=arm(.0))
        Guarded(router, CanaryJudge([Limit('failed', .05)], share=.2), ramp=(.5, 1.))
        loop.run(traffic(router, n))
        assert router.events[-1]['what'] == last and whole(router)

METRIC = dict(name=str, interval=str, initialDelay=str, count=int, failureLimit=int, inconclusiveLimit=int, consecutiveErrorLimit=int, successCondition=str, failureCondition=str, provider=dict)

def test_argo_manifests_have_argos_structure():
    doc = argo_template()
    assert (doc['apiVersion'], doc['kind'], set(doc['spec'])) == ('argoproj.io/v1alpha1', 'AnalysisTemplate', {'args', 'metrics'})
    for m in doc['spec']['metrics']:
        assert {k: type(v) for k, v in m.items()} == METRIC and set(m['provider']['prometheus']) == {'address', 'query'} and m['inconclusiveLimit'] <= m['count']
        query = m['provider']['prometheus']['query']
        assert query.count('(') == query.count(')') and query.count('and (') == 2 and '{{args.canary-hash}}' in query and '{{args.stable-hash}}' in query
    used = {a['name'] for s in argo_steps() if 'analysis' in s for a in s['analysis']['args']}
    assert used == {a['name'] for a in doc['spec']['args']} and argo_steps([.5])[1]['analysis']['templates'] == [dict(templateName=doc['metadata']['name'])]

def test_flagger_manifests_have_flaggers_structure_and_fit_together():
    import yaml
    docs = list(yaml.safe_load_all(manifests_yaml(*flagger_metrics(), flagger_canary())))
    *templates, canary = docs
    assert {d['apiVersion'] for d in docs} == {'flagger.app/v1beta1'} and {'targetRef', 'service', 'analysis'} == set(canary['spec'])
    assert {m['templateRef']['name'] for m in canary['spec']['analysis']['metrics']} == {t['metadata']['name'] for t in templates}
    assert all(set(t['spec']) == {'provider', 'query'} and t['spec']['provider']['type'] == 'prometheus' for t in templates)
    assert all(0 < m['thresholdRange']['max'] < 1 for m in canary['spec']['analysis']['metrics'])
    assert docs == [*flagger_metrics(), flagger_canary()]

def test_manifests_say_what_is_wrong():
    for wrong, text in ((lambda: argo_template(interval='soon'), 'interval'), (lambda: argo_template(looks=0), 'once'), (lambda: argo_steps([0]), 'share'), (lambda: argo_template([]), 'at least one')):
        with pytest.raises(PlaybookError, match=text): wrong()
    assert certain([Limit('failed', .01)], 1)[0] == pytest.approx(1.645, abs=1e-3)
