"Drills: a canary that dies at once, nobody at one arm, a router switched off in the middle, over sockets and in virtual time"
import asyncio
import contextlib
from dataclasses import replace

import pytest

from genai_playbook import rollback as chapter
from genai_playbook.arrivals import poisson
from genai_playbook.canary import CanaryJudge
from genai_playbook.card import load_card
from genai_playbook.drill import (Asked, DrillPlan, DrillRun, Others, Traffic, Version, caught, detection, drill, drill_table, false_rollbacks, grader, invented_traffic, kept_runs,
                                  lateness, plain_grade, play, real_drill, rehearsals, rehearse, switches, traffic_of, version_of, virtually, without_fault)
from genai_playbook.errors import PlaybookError
from genai_playbook.models import Answer, wait
from genai_playbook.release_faults import LEAKED, RELEASE_FAULTS, BadRelease, Endpoint, Invented, Spoilt, Wire, spoiled
from genai_playbook.rollback import Section, allowed, candidate_of, in_time, real_plan, surprises
from genai_playbook.router import Router
from genai_playbook.stats import exact

PEOPLE = invented_traffic(50)
GRADE = plain_grade(PEOPLE.references)
SHORT = DrillPlan(seconds=4.)


def good(seed=0, **kw): return Invented(PEOPLE.references, **dict(errors=0., wrong=0., seconds=.01, seed=seed) | kw)
async def dead(prompt): raise ConnectionRefusedError('connection refused')
async def mute(prompt): return Answer('')
async def deaf(prompt): await asyncio.sleep(3600)


def played(canary, plan=SHORT, baseline=None, fault=None): return virtually(lambda: drill(dict(baseline=baseline or good(), canary=canary), PEOPLE, GRADE, fault or BadRelease(''), plan))


# --- faults ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('kw', [dict(kind='fire'), dict(kind='errors', share=1.1), dict(kind='errors', share=-.1), dict(kind='errors', share=float('nan'))])
def test_impossible_faults(kw):
    with pytest.raises(PlaybookError): BadRelease(**kw)


@pytest.mark.parametrize('kind', RELEASE_FAULTS)
def test_a_fault_strikes_its_share_and_the_same_ones_again(kind):
    a, b = ([f.strikes(i) for i in range(5000)] for f in (BadRelease(kind, .18, 3, since=1000), BadRelease(kind, .18, 3, since=1000)))
    assert a == b and not any(a[:1000]) and abs(sum(a)/4000-.18) < .02


@pytest.mark.parametrize('kind', [*RELEASE_FAULTS, ''])
@pytest.mark.parametrize('text', ['', 'x', 'ä\u2028"\\', 'word '*2000])
def test_spoiling_never_breaks(kind, text):
    a = spoiled(Answer(text, tokens_out=None), kind, 'another')
    assert isinstance(a.text, str) and (kind != 'errors' or a.error) and (kind != 'leak' or LEAKED in a.text)


@pytest.mark.parametrize('kind', RELEASE_FAULTS)
def test_every_fault_is_found_and_nobody_is_dropped(kind):
    run = rehearse(PEOPLE, BadRelease(kind, 1.), replace(SHORT, seconds=10.))
    assert run.caught and not run.dropped and 0 < run.hit < 60 and run.restored < .25 and 'rolled back after' in run.said


def test_a_rehearsal_comes_out_the_same_again():
    a, b = (rehearse(PEOPLE, BadRelease('errors', .5, 1), SHORT, 1).to_dict() for _ in range(2))
    assert a == b and a != rehearse(PEOPLE, BadRelease('errors', .5, 1), SHORT, 2).to_dict()


# --- what goes wrong in a drill -------------------------------------------------------------------

@pytest.mark.parametrize('canary', [dead, mute, deaf])
def test_a_canary_that_dies_at_once_loses_nobody(canary):
    plan = replace(SHORT, seconds=60.) if canary is deaf else SHORT
    run = played(canary, plan)
    assert run.caught and not run.dropped and not run.failed and run.hit
    assert all(a.arm for a in run.asked)


def test_an_arm_without_traffic_gets_no_verdict():
    run = played(dead, replace(SHORT, share=1e-9))
    assert not run.caught and not run.canary and not run.dropped and 'no traffic in canary' in run.said.lower()


def test_a_dead_baseline_is_no_reason_to_keep_a_dead_canary():
    run = played(dead, baseline=dead)
    assert run.dropped == 0 and run.failed == sum(a.failed for a in run.canary) and all(a.failed for a in run.asked)


def test_a_release_that_breaks_after_promotion_goes_back():
    run = rehearse(PEOPLE, BadRelease('errors', .5), DrillPlan(promoted=True))
    assert run.caught and run.detected < 3 and not run.dropped
    assert [e['what'] for e in run.events if e['what'] != 'share'] == ['promote', 'rollback']


def test_nothing_is_compared_with_itself_after_promotion():
    run = rehearse(PEOPLE, BadRelease(''), DrillPlan(promoted=True, seconds=3.))
    assert not run.caught and run.looks[-1][1].n['baseline'] and run.looks[-1][1].n['canary']


@pytest.mark.parametrize('at', [.6, 1.3])
def test_a_router_that_is_switched_off_in_the_middle(at):
    async def go():
        router = Router(dict(baseline=good(), canary=good(1, seconds=.3)), share=.5, clock=asyncio.get_running_loop().time)
        asyncio.get_running_loop().call_later(at, lambda: asyncio.ensure_future(router.drain()))
        return await play(router, PEOPLE, poisson(100, 2., seed=0).at.tolist())
    asked, cut = virtually(go)
    assert not cut and all(a.arm and not a.failed for a in asked) and any(a.around for a in asked) and not all(a.around for a in asked)


def test_a_drill_that_is_cut_short_answers_what_it_accepted():
    async def go():
        arms = dict(baseline=good(), canary=good(1, seconds=.5))
        task = asyncio.ensure_future(drill(arms, PEOPLE, GRADE, BadRelease(''), SHORT))
        asyncio.get_running_loop().call_later(2., task.cancel)
        return await task
    run = virtually(go)
    assert not run.dropped and 'cut short after 2' in run.said and 'no verdict' in run.said and run.asked[-1].at < 2.1


def test_a_judge_that_breaks_rolls_back():
    class Broken(CanaryJudge):
        def verdict(self): raise ZeroDivisionError
    run = virtually(lambda: drill(dict(baseline=good(), canary=good(1)), PEOPLE, GRADE, BadRelease(''), SHORT, Broken))
    assert run.caught and not run.dropped and run.said


def test_switches_answer_everybody():
    times, asked = virtually(lambda: switches(dict(baseline=good(), canary=good(1, seconds=.3)), PEOPLE, 100, 10))
    assert len(times) == 10 and not any(a.failed or not a.arm for a in asked) and max(times) < .25


# --- over sockets ---------------------------------------------------------------------------------

@contextlib.asynccontextmanager
async def two_servers(baseline, canary):
    async with Wire(baseline) as left, Wire(canary) as right: yield left, right


def test_a_canary_whose_server_dies_loses_no_request():
    async def go():
        async with two_servers(good(), good(1)) as (left, right), Endpoint(left.url, '') as near, Endpoint(right.url, '') as far:
            router = Router(dict(baseline=near, canary=far), share=.5, clock=asyncio.get_running_loop().time)
            asyncio.get_running_loop().call_later(.4, lambda: asyncio.ensure_future(right.die()))
            return await play(router, PEOPLE, [i/100 for i in range(80)])
    asked, _ = wait(go())
    assert len(asked) == 80 and all(a.arm and not a.failed for a in asked)
    assert any(a.bad for a in asked if a.arm == 'canary') and any(not a.bad for a in asked if a.arm == 'canary')


def test_a_real_drill_over_sockets_finds_errors():
    async def go():
        async with two_servers(good(), good(1)) as (left, right):
            versions = Version(left.url, ''), Version(right.url, '')
            return await asyncio.to_thread(real_drill, *versions, PEOPLE, GRADE, BadRelease('errors', 1.), DrillPlan(rate=60, share=.5, seconds=20.), CanaryJudge, 'wire')
    run = asyncio.run(go())
    assert run.caught and not run.dropped and not run.failed and run.hit >= 5 and run.name == 'wire'


@pytest.mark.parametrize('status, body', [(200, b'not json'), (200, b'{"choices": 42}'), (404, b'{}'), (302, b''), (200, b'')])
def test_an_endpoint_that_talks_nonsense_gives_an_error_and_no_exception(status, body):
    async def go():
        from aiohttp import web
        app = web.Application()
        async def chat(request): return web.Response(status=status, body=body, headers={'Location': '/elsewhere'} if status == 302 else {})
        app.add_routes([web.post('/v1/chat/completions', chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        async with Endpoint('http://{}:{}/v1'.format(*runner.addresses[0][:2]), 'x') as e: res = await e('the secret prompt')
        await runner.cleanup()
        return res
    a = wait(go())
    assert a.error and 'secret' not in a.error


def test_the_key_of_an_endpoint_is_sent_and_never_told(monkeypatch):
    monkeypatch.setenv('MY_KEY', 'sk-very-secret')
    async def go():
        from aiohttp import web
        seen, app = [], web.Application()
        async def chat(request): seen.append(request.headers.get('Authorization')); return web.json_response(dict(error=dict(message='no sk-very-secret')), status=200)
        app.add_routes([web.post('/v1/chat/completions', chat)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, '127.0.0.1', 0).start()
        async with Endpoint('http://{}:{}/v1'.format(*runner.addresses[0][:2]), 'x', 'MY_KEY') as e: res = await e('hi')
        await runner.cleanup()
        return seen, res
    seen, a = wait(go())
    assert seen == ['Bearer sk-very-secret'] and 'secret' not in a.error
    monkeypatch.delenv('MY_KEY')
    with pytest.raises(PlaybookError, match='MY_KEY'): wait(go())


def test_a_fault_keeps_the_status_of_the_server_behind_it():
    async def refuses(prompt): return Answer(error='HTTP 429')
    async def go():
        async with Wire(Spoilt(refuses, BadRelease('leak'))) as w, Endpoint(w.url, '') as e: return await e('hi')
    assert wait(go()).error == 'HTTP 429'


# --- numbers --------------------------------------------------------------------------------------

def run_of(detect, **kw): return dict(detect_s=detect, hit=3, failed=0, dropped=0, kind='errors', severity=.18, end=20.) | kw


def test_misses_count_with_the_whole_time():
    e = detection([run_of(1.)]*30+[run_of(None)]*10)
    assert e.value == pytest.approx(.75+5) and '10 of 40 were missed' in e.note and e.high <= 20
    assert caught([run_of(1.)]*30+[run_of(None)]*10).value == .75


def test_no_run_is_no_evidence():
    assert not detection([]).n and not caught([]).n and not false_rollbacks([]).n


def test_the_table_has_a_row_for_each_fault_and_severity():
    t = drill_table([run_of(1.), run_of(2., severity=1.), run_of(None, kind='leak')])
    assert len(t) == 3 and list(t['runs']) == [1, 1, 1]


def test_nought_of_twenty_shows_little():
    assert false_rollbacks([[None]]*20).high == pytest.approx(.1391, abs=1e-4)


def test_kept_runs_are_those_of_this_judge_and_of_no_other_settings():
    kept = kept_runs()
    assert kept_runs(share=.2) == [] and kept_runs(rate=10.) == []
    if kept: assert [without_fault(i) for i in range(2)] == kept[:2]


def test_a_good_version_is_seldom_thrown_out(): assert sum(without_fault(i)[0] is not None for i in range(100, 112)) <= 2


def test_lateness_of_nothing_is_nan(): assert lateness([]) != lateness([]) and lateness([Asked(1.)]) != lateness([Asked(1.)])


# --- the chapter ----------------------------------------------------------------------------------

def test_thresholds_of_the_gates_are_keys_of_the_section_or_counts():
    fields = set(Section.model_fields)
    assert {g.key.removeprefix('rollback.') for g in chapter.GATES}-fields == {'dropped', 'surprises', 'holes'}
    assert all(Section.model_fields[k].default == g.default for g in chapter.GATES if (k := g.key.removeprefix('rollback.')) in fields)
    assert [g.code for g in chapter.GATES] == [f'ROL0{i}' for i in range(1, 9)] and all(g.chapter == 'rollback' for g in chapter.GATES)


@pytest.mark.parametrize('bad', [dict(share=0), dict(share=.9), dict(limits={'speed': 1.}), dict(candidate=dict(kind='openai')), dict(restore_s=0), dict(unknown=1)])
def test_impossible_sections(bad):
    with pytest.raises(ValueError): Section(**bad)


def test_limits_of_the_card_reach_the_judge():
    judge = chapter.judge_of(Section(limits=dict(quality=-.1, failed=.5)))(share=.2)
    assert {l.metric: l.worst for l in judge.plan.limits}['quality'] == -.1 and {l.metric: l.worst for l in judge.plan.limits}['seconds'] == .2
    with pytest.raises(PlaybookError): chapter.judge_of(Section(limits=dict(quality=.1)))


def test_the_plan_of_a_slow_machine_gives_the_canary_its_requests():
    p = real_plan(50, Section(), 15)
    assert p.rate == 20 and p.share == .5
    assert real_plan(1e6, Section(), 15) == DrillPlan(200, .1, 15)
    assert real_plan(1e6, Section(), 15, cap=6).rate == 6


def drilled(found, n): return DrillRun('d', BadRelease('errors'), 10, .1, 0., [Asked(.1, .1, .2, 'canary')]*n, [dict(at=1., what='rollback')]*found, [])


def test_a_drill_without_traffic_surprises_nobody():
    assert surprises([drilled(True, 10), drilled(True, 10)]) == exact(0, 2)
    few = surprises([drilled(True, 10), drilled(False, 10)])
    assert not few.enough and 'too few' in few.note
    assert surprises([drilled(False, 500)]).value == 1 and surprises([drilled(False, 500)]).enough
    assert surprises([drilled(False, 500), drilled(False, 5)]).enough
    assert not surprises([]).n


def test_a_late_client_decides_nothing():
    assert in_time([.3]*60, [Asked(1., 1.001)], .25).enough and not in_time([.3]*60, [Asked(1., 1.2)], .25).enough
    assert not in_time([.3]*60, [Asked(1., 1.001)], .25, others=.9).enough and in_time([.1]*60, [Asked(1., 1.2)], .25, others=.9).enough
    assert not in_time([], [], .25).n


def test_a_paid_candidate_needs_a_budget_and_is_not_flooded():
    card, v = load_card('demo'), Version('https://api.example.com/v1', 'm', 'SOME_KEY')
    with pytest.raises(PlaybookError, match='budget'): allowed(v, card, 1000, 0., False)
    assert allowed(v, card, 1000, 0., True) == 6.
    assert allowed(Version('http://127.0.0.1:1/v1', 'm'), card, 1000, 0., False) is None


def test_what_others_use_is_a_share_and_a_process_that_is_gone_is_nobody():
    with Others([2**22+1]) as others: sum(range(10**6))
    assert 0 <= others.share <= 1


def test_candidates():
    card = load_card('demo')
    assert candidate_of(card, Section()) is None
    v = candidate_of(card, Section(candidate=dict(kind='openai', base_url='http://127.0.0.1:9/v1', model='next', api_key_env='K')))
    assert (v.url, v.model, v.key_env, v.server) == ('http://127.0.0.1:9/v1', 'next', 'K', None)
    with pytest.raises(PlaybookError): candidate_of(card, Section(candidate='no-such-card'))


def test_what_cannot_start_says_why():
    def broken(): raise PlaybookError('no such model')
    assert chapter.started(broken)[::2] == (None, 'no such model')


def test_recorded_answers_cannot_be_drilled(tmp_path):
    (tmp_path/'a.csv').write_text('id,prompt,answer,reference\n1,hi,yes,yes\n2,ho,no,no\n')
    (tmp_path/'poc.yaml').write_text('poc: log\noutcome: {promise: answers}\nmodel: {kind: recorded, path: a.csv, answer: answer}\ndata: {evaluation: a.csv}\n')
    with pytest.raises(PlaybookError, match='recorded'): version_of(load_card(tmp_path/'poc.yaml'))


def test_a_grader_without_references_has_no_quality():
    card = load_card('demo')
    t = traffic_of(card, 50)
    seen = grader(card, {})(t.prompts[0], Answer('Write to eve@example.com', tokens_in=1, tokens_out=2))
    assert seen['quality'] is None and seen['harmful'] and seen['cost'] == 2
    assert t[len(t.prompts)+1] == (f'{t.users[1]}/1', t.prompts[1])


def test_rehearsals_of_nothing(): assert rehearsals((), 3) == [] and Traffic(('a',), ('u',), {})[3] == ('u/3', 'a')


@pytest.mark.slow
def test_a_game_day_on_two_endpoints_of_ones_own(tmp_path):
    from genai_playbook.ledger import Ledger
    from genai_playbook.runner import run
    now, later = Wire(good(1, seconds=.03), 'now'), Wire(good(2, seconds=.03), 'next')
    wait(now.__aenter__()), wait(later.__aenter__())
    (tmp_path/'data.csv').write_text('prompt,reference\n'+''.join(f'{p},{r}\n' for p, r in PEOPLE.references.items()))
    (tmp_path/'poc.yaml').write_text(f'poc: mine\noutcome: {{promise: answers}}\nmodel: {{kind: openai, base_url: "{now.url}", model: now}}\ndata: {{evaluation: data.csv}}\n'
                                     f'rollback: {{candidate: {{kind: openai, base_url: "{later.url}", model: next}}}}\n')
    ev = run(tmp_path, chapters=['rollback'], effort='quick', out=tmp_path/'evidence', params=dict(rollback=dict(by='Head of operations')))
    wait(now.die()), wait(later.die())
    assert [c['error'] for c in ev['chapters']] == [''], ev['chapters']
    found = ev['records']['rollback']['rollback'] if 'rollback' in ev['records'].get('rollback', {}) else ev['records']['rollback']
    assert found['endpoints'] == [now.url, later.url] and found['dropped'] == 0
    assert {g['code']: g['verdict'] for g in ev['gates']}['ROL05'] == 'PASS'
    assert [e.kind for e in Ledger(tmp_path/'ledger.sqlite').entries('drill', 'rollback', 'incident')] == ['drill']
