"Chapter 04 and what it stands on: price books and records as people and other chapters leave them, no traffic, no success, other currencies"
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from types import SimpleNamespace as ns

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from genai_playbook.card import load_card
from genai_playbook.card_errors import CardError
from genai_playbook.cost import GATES, Item, Section, after_cost, item_lines, judged, opened, seconds_each, unit_price
from genai_playbook.costing import (EACH, SECONDS, Line, batch_table, day_curve, endpoint_cost, energy, estimate_in, machine_line, meeting_volumes, number_in, paid, per_million, priced, repeated,
                                    replicas_paid, request_table, rows_decide, token_costs, total, unsampled, utilisation)
from genai_playbook.errors import PlaybookError
from genai_playbook.evidence import FAIL, INSUFFICIENT, PASS, gate, gate_step, verdict
from genai_playbook.prices import Book, Price, price_book, read_prices
from genai_playbook.returns import CASE, earned_back, left, left_at, month_ranges, pay_back, pays, routed, shares, than_today, tornado
from genai_playbook.runner import ChapterRun, Run, execute_chapter
from genai_playbook.evidence import MIME, read_evidence
from genai_playbook.stats import Estimate, exact, mean, proportion

NAN, INF = math.nan, math.inf


# --- prices -------------------------------------------------------------------------------------
@pytest.mark.parametrize('text, said', [
    ('a: {value: -1}', 'Price `a`, `value`'), ('a: {value: .nan}', 'Price `a`, `value`'), ('a: {value: .inf}', 'Price `a`, `value`'), ('a: {value: 1e300}', 'Price `a`, `value`'),
    ('a: {low: 1}', 'Price `a`, `value`'), ('a: {value: 2, low: 3}', 'low ≤ value ≤ high'), ('a: {value: 2, high: 1}', 'low ≤ value ≤ high'), ('a: {value: 1, prise: 2}', 'Price `a`, `prise`'),
    ('a: many', 'Price `a`'), ('a: true', 'Price `a`'), ('a:', 'Price `a`'), ('a: [1, 2]', 'Price `a`'), ('- 1', 'mapping of names'), ('3', 'mapping of names'), ('', 'mapping of names'),
    ('a: {value: 1', 'no price book'), ('a: 1\na: 2', 'no price book'), ('\x00', 'no price book')])
def test_a_price_book_that_is_none(tmp_path, text, said):
    (tmp_path/'book.yaml').write_text(text, encoding='utf-8')
    with pytest.raises(PlaybookError, match=said): read_prices(tmp_path/'book.yaml')


def test_a_price_book_that_is_not_there(tmp_path):
    with pytest.raises(PlaybookError, match='gone.yaml is no price book'): read_prices(tmp_path/'gone.yaml')


def test_every_price_of_the_package_has_a_range_a_date_and_a_source():
    for name, p in price_book().prices.items():
        assert p.least < p.most and p.unit and p.date and len(p.source) > 20, name
        assert p.currency or name in ('usd_in_eur', 'co2_kwh')


@pytest.mark.parametrize('currency', ['GBP', 'EUR', 'USD', 'eur'])
def test_a_currency_without_a_rate_is_said_when_it_is_needed(currency):
    book = price_book({}, currency)
    if currency != 'GBP': assert book['cpu_hour'].currency == currency
    else:
        with pytest.raises(PlaybookError, match=f'usd_in_{currency.lower()}'): book['cpu_hour']
        assert price_book(dict(cpu_hour=.1), currency)['cpu_hour'].value == .1


def test_bounds_of_the_rate_are_carried_both_ways():
    rate = Price(value=.8, low=.5, high=1., currency='')
    there = Book(dict(a=Price(value=10, low=8, high=12, currency='USD'), usd_in_eur=rate), 'EUR')['a']
    back = Book(dict(a=Price(value=10, low=8, high=12, currency='EUR'), usd_in_eur=rate), 'USD')['a']
    assert (there.least, there.value, there.most) == (4, 8, 12) and (back.least, back.value, back.most) == (8, 12.5, 24)
    never = Book(dict(a=Price(value=1, currency='EUR'), usd_in_eur=Price(value=0., currency='')), 'USD')
    with pytest.raises(PlaybookError, match='eur_in_usd'): never['a']


def test_the_card_may_add_prices_and_rates():
    book = price_book(dict(licence=dict(value=5, unit='seat'), usd_in_gbp=dict(value=.75, low=.7, high=.8), cpu_hour=dict(value=1, currency='USD')), 'GBP')
    assert book['licence'].source == 'the card' and book['cpu_hour'].most == pytest.approx(.8)
    with pytest.raises(PlaybookError, match='`unit`'): price_book(dict(licence=5))
    with pytest.raises(PlaybookError, match='did you mean `cpu_hour`'): price_book(dict(cpu_huor=5))


# --- the card -----------------------------------------------------------------------------------
@pytest.mark.parametrize('given', [
    dict(budget_per_month=0), dict(budget_per_month=NAN), dict(payback_months=-1), dict(prices=dict(a=-1)), dict(prices=dict(a=NAN)), dict(prices=dict(a='cheap')), dict(prices=dict(a=dict(value=1, low=2))),
    dict(month=[dict(kind='data', what='x', price='label', amount=-1)]), dict(month=[dict(kind='data', what='x', price='label', amount=INF)]), dict(once=[dict(kind='lunch', what='x', price='label', amount=1)]),
    dict(evaluations_per_month=-1), dict(cheaper=dict(kind='oracle')), dict(budgets=3)])
def test_a_section_that_is_none(given):
    with pytest.raises(ValidationError): Section(**given)


def test_an_item_with_a_price_that_is_none():
    card = ns(error=lambda text, key: CardError('poc.yaml', [ns(text=text, key=key, line=1)]), outcome=ns(currency='EUR'))
    with pytest.raises(PlaybookError): item_lines(card, [Item(kind='data', what='labels', price='lable', amount=1)], price_book())
    assert item_lines(card, [], price_book()) == []


@pytest.mark.parametrize('poc', ['demo', 'demo-hardened', 'demo-regressed'])
def test_the_bundled_cards_name_prices_that_exist(poc):
    card = load_card(poc)
    s = card.section('cost')
    book = price_book(s.prices, card.outcome.currency)
    assert all(not l.missing and l.high > 0 for l in item_lines(card, s.month+s.once, book)) and card.with_model(s.cheaper).model().answer(['region: x | shop: 8 to 9\nWhen do you open?'])[0].text == 'The x shop is open from 8 to 9.'


# --- records of other chapters ------------------------------------------------------------------
HOSTILE = [None, {}, [], 'NaN', 3, True, dict(expected=None, peak=None), dict(expected='NaN', peak=2), dict(expected=0, peak=0), dict(expected=-3, peak=1), dict(expected=INF, peak=INF), dict(peak=4), dict(expected={}, peak=[])]


@pytest.mark.parametrize('replicas', HOSTILE)
def test_a_capacity_plan_that_is_none(replicas):
    line = machine_line(replicas, Price(value=1.))
    assert 'run chapter load' in line.missing and not total([line]).enough and verdict(total([line]), 1e9, '<=') == INSUFFICIENT


@pytest.mark.parametrize('record', [*HOSTILE, dict(cpu=None), dict(cpu=dict(value=1, low=2, high=3, n=9)), dict(cpu=dict(value=1, low=0, high=3, n=0)), dict(cpu=dict(value='x', low=0, high=3, n=9)), dict(cpu=dict(value=1, low=0, high='Infinity', n=9))])
def test_an_estimate_that_was_not_measured(record):
    assert estimate_in(record, 'cpu') is None and math.isnan(number_in(record, 'cpu', 'value', 'more'))


@pytest.mark.parametrize('batches', [None, [], 3, {}, {'1': None, 'x': 1, '-2': 1, '0': 1, '2': 'NaN', '4': 0, '8': -1}])
def test_a_batch_sweep_that_is_none(batches): assert len(batch_table(batches, Price(value=1.))) == 0


# --- sums ---------------------------------------------------------------------------------------
def test_a_bill_is_never_evidence_while_something_is_missing():
    lines = [Line('other', 'rent', 1, 1, 1), paid('people', 'takeovers', Estimate(NAN, 0, 1, 0, 'x', enough=False, note='no answer has a score'), Price(value=3))]
    est = total(lines, 100)
    assert est.note == 'takeovers: no answer has a score' and est.high == INF and verdict(est, 1e12, '<=') == INSUFFICIENT
    assert not total([]).enough


def test_an_exact_bill_is_a_fact_and_a_wide_one_says_that_rows_do_not_decide():
    card = ns(threshold=lambda spec: 100., is_hard=lambda spec: True, outcome=ns(currency='CHF'))
    assert verdict(total([Line('other', 'rent', 99, 99, 99)]), 100, '<=') == PASS
    lines = [Line('inference', 'machines', 90, 50, 400), Line('people', 'takeovers', 5, 0, 9, sampled=True)]
    spec, note = opened(GATES[0], card, lines, *unsampled(lines))
    g = gate(spec, total(lines, 500), card, note)
    assert (g.verdict, g.needed, g.unit) == (INSUFFICIENT, None, 'CHF') and 'machines' in gate_step(g)['step'] and 'rows will not decide' in gate_step(g)['step']
    lines[0] = Line('inference', 'machines', 90, 90, 92)
    spec, note = opened(GATES[0], card, lines, *unsampled(lines))
    assert spec.rows_decide and not note and gate(spec, total(lines, 500), card).needed > 500


def test_a_price_range_stays_open_however_many_requests_are_counted():
    card = ns(threshold=lambda spec: 100., is_hard=lambda spec: True, outcome=ns(currency='EUR'))
    line = paid('inference', 'tokens', Estimate(1, .9, 1.1, 500, 'bootstrap'), Price(value=90, low=50, high=130))
    spec, note = opened(GATES[0], card, [line], *unsampled([line]))
    assert unsampled([line]) == (50, 130) and not spec.rows_decide and '"tokens"' in note


def test_bounds_of_a_bill_hold_the_truth():
    rng, missed = np.random.default_rng(5), 0
    for _ in range(300):
        handed, costs = rng.random(200) < .05, rng.lognormal(0, .5, 200)
        lines = [paid('people', 'takeovers', proportion(handed.astype(float), level=EACH), Price(value=3), 1000), paid('inference', 'tokens', mean(costs, level=EACH), Price(value=1), 1000)]
        missed += total(lines, 200).high < 1000*(.05*3+math.exp(.125))
    assert missed <= 15+12


@pytest.mark.parametrize('seed', range(20))
def test_a_sum_lies_within_its_bounds(seed):
    rng = np.random.default_rng(seed)
    lines = [Line('other', str(i), v, v*lo, v*hi, sampled=bool(rng.integers(2))) for i, (v, lo, hi) in enumerate(zip(rng.lognormal(3, 3, 7), rng.random(7), 1+rng.random(7)))]
    e, (a, b) = total(lines), unsampled(lines)
    assert e.low <= a <= e.value*(1+1e-12) and e.value <= b*(1+1e-12) <= e.high*(1+1e-11)


# --- machines, requests, volumes ----------------------------------------------------------------
def test_no_traffic_and_no_success_are_no_division_by_zero():
    assert utilisation(0, 1, 1) == 0 and math.isnan(utilisation(5, 0, 1)) and math.isnan(utilisation(5, 1, 0)) and per_million(1, 0) == INF
    table = request_table({'x': (.1, .1, .1), 'y': (NAN,)*3, 'z': (INF,)*3}, proportion([0]*50))
    assert table.loc['x', '1,000 solved'] == INF and table.loc['x', 'solved, at least'] > 100 and math.isnan(table.loc['y', '1,000 solved'])
    assert than_today(proportion([0]*50), Estimate(0, 0, 0, 1, 'exact'), 10, .5, 1).value == INF
    zero = than_today(proportion([0]*50), Estimate(10, 9, 11, 1, ''), 10, .5, 1)
    assert zero.value == 0 and verdict(zero, 1, '>=') == FAIL


@pytest.mark.parametrize('stamps', [[], [None]*1000, pd.date_range('2025-01-01', periods=100, freq='h')])
def test_too_few_time_stamps_for_a_day(stamps): assert day_curve(pd.Series(stamps, dtype='datetime64[ns]')) is None


def test_a_scaled_fleet_costs_between_one_machine_and_the_peak():
    day = day_curve(pd.Series(pd.date_range('2025-01-01', periods=2400, freq='h')))
    assert day == pytest.approx(np.ones(24)) and replicas_paid(3, 9, day, True).value == 3
    for e, p in product((1, 3, 40), (1, 3, 90)):
        n = replicas_paid(e, p, day*np.linspace(0, 2, 24), True).value
        assert 1 <= n <= max(e, p)
    assert machine_line(dict(expected=2, peak=5), Price(value=1.), None, True).high == pytest.approx(5*730)


@pytest.mark.parametrize('seed', range(30))
def test_break_even_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    hour, capacity, each = rng.uniform(.01, 5), float(rng.integers(100, 10_000)), rng.uniform(.001, 3)
    first, for_good = meeting_volumes(hour, capacity, each)
    v = np.arange(1, int(40*capacity), max(1, int(capacity/200)))
    dearer = np.ceil(v/capacity)*hour*730 > each*v
    if first == INF: assert dearer.all(); return
    assert not dearer[v >= for_good*(1+1e-9)].any() and dearer[v < first*(1-1e-9)].all()
    if for_good > first*1.5 and for_good < v[-1]: assert dearer[(v < for_good*(1-1e-9))][-1] or capacity/200 > .02*for_good/each


def test_tokens_that_nobody_counted():
    answers = [ns(tokens_in=100, tokens_out=10)]*150+[ns(tokens_in=None, tokens_out=3)]
    est = endpoint_cost(answers, Price(value=1), Price(value=2))
    assert not est.enough and est.value == pytest.approx(120/1e6) and '1 of 151' in est.note
    assert np.isnan(token_costs([None], [1], 1, 1)).all()
    assert paid('inference', 'tokens', est, Price(value=1)).missing
    none = endpoint_cost([ns(tokens_in=None, tokens_out=None)]*3, Price(value=1), Price(value=1))
    assert not none.enough and math.isnan(none.value)


def test_money_of_a_request_keeps_the_bounds_of_its_price():
    e = priced(Estimate(10, -1, 12, 99, 'x'), Price(value=2, low=1, high=5))
    assert (e.low, e.value, e.high) == (0, 20, 60) and 'price' in e.method


def test_seconds_of_calls_that_failed_are_not_free():
    calls = [ns(error=None, cpu=.1, seconds=.3), ns(error='timed out', cpu=0., seconds=60.)]
    assert seconds_each(calls, 'cpu')[0] == .1 and math.isnan(seconds_each(calls, 'cpu')[1]) and seconds_each(calls, 'cuda')[0] == .3
    card = ns(spec=ns(hardware=ns(price_per_hour=None)))
    assert unit_price(card, price_book(), 'cuda') is None and unit_price(card, price_book(), 'cpu').value < 1e-4


def test_repeats():
    assert repeated([]) == [] and sum(repeated(['a']*10)) == 9


@pytest.mark.parametrize('watts, seconds', [(NAN, 1), (-1, 1), (1, -1), (INF, 1), (1, NAN)])
def test_power_that_is_none(watts, seconds):
    with pytest.raises(PlaybookError): energy(watts, seconds)


# --- returns ------------------------------------------------------------------------------------
def test_wrong_answers_count_and_handed_ones_count_once():
    solved, handed = [1, 0, 0, NAN], [False, False, True, False]
    assert [x.sum() for x in shares(solved, handed)] == [1, 1, 2]
    with pytest.raises(PlaybookError, match='every case needs one'): shares([1, 0], [False])


def test_paying_back():
    never, some = Estimate(-5, -9, -1, 9, ''), Estimate(100, 100, 100, 1, 'exact')
    assert pay_back(some, never) == (INF, INF, INF) and verdict(earned_back(some, never, 12), 1, '>=') == FAIL
    assert not earned_back(exact(0), never, 12).enough
    assert earned_back(some, Estimate(10, -10, 20, 9, ''), 12).low == pytest.approx(-1.2)


def test_a_return_without_a_bill_is_no_evidence():
    est = left(Estimate(2, 1, 3, 500, 'Gaffke'), total([Line('inference', 'machines', missing='run chapter load')]), 100)
    assert not est.enough and 'run chapter load' in est.note and verdict(est, -1e9, '>=') == INSUFFICIENT


def test_probability_that_it_pays():
    assert pays(np.full(10, 5.), [Line('other', 'x', 5, 5, 5)]) == (1., 1.)
    drawn, worst = pays(np.full(4000, 10.), [Line('other', 'x', 10, 0, 20)])
    assert worst == 0 and drawn == pytest.approx(.5, abs=.03)


def test_a_tornado_knows_every_position_even_of_one_name():
    o = ns(volume_per_month=10, success_value=1., wrong_cost=2., escalation_cost=0.)
    bill = [Line('people', 'x', 5, 4, 6), Line('people', 'x', 7, 7, 9), Line('other', 'y', missing='?')]
    ranges = month_ranges(o, Estimate(1., .9, 1., 9, ''), Estimate(0., 0., .2, 9, ''), bill)
    assert len(ranges) == len(CASE)+2 and all(lo <= v <= hi for lo, v, hi in ranges.values())
    assert left_at({k: v[1] for k, v in ranges.items()}) == pytest.approx(10-12) and len(tornado(ranges, left_at)) == len(ranges)


def test_a_tier_that_is_no_better_is_not_chosen_for_luck():
    rng, wins = np.random.default_rng(0), 0
    for _ in range(60):
        a, b, kinds = rng.normal(size=300), rng.normal(size=300), rng.integers(0, 12, 300)
        wins += routed(a, b, kinds.tolist(), np.arange(300) < 150)[1].low > 0
    assert wins <= 8


def test_costs_of_answers_that_nobody_counted_are_taken_at_the_mean():
    assert after_cost(np.array([1., 1.]), np.array([.5, NAN])).tolist() == [.5, .5] and after_cost(np.array([1.]), np.array([NAN])).tolist() == [1.] and after_cost(np.ones(3), [.25, .5]).tolist() == [.625]*3


def test_a_gate_where_rows_decide():
    assert rows_decide(1, 2, 1) and rows_decide(1, 2, 2) and not rows_decide(1, 2, 1.5)


# --- the chapter --------------------------------------------------------------------------------
CARD = '''poc: mine
outcome: {{promise: answers as the rules say{outcome}}}
model: {model}
data: {{evaluation: rows.csv, columns: {{intent: kind}}}}
hardware: {{price_per_hour: 0.1}}
cost: {{budget_per_month: 500, month: [{{kind: people, what: looks after it, price: person_hour, amount: 2}}], once: [{{kind: data, what: labels, price: label, amount: 100}}]}}
'''
FULL = ', baseline: 0.5, success_value: 2, wrong_cost: 3, escalation_cost: 1, volume_per_month: 5000'


def chapter(folder, records=None, outcome=FULL, model='{kind: python, target: "mine:answer", deterministic: true}', said='prompt.split()[-1]', rows=300):
    "Gates, records and text of the chapter, after a run that left `records`"
    from genai_playbook.chapters import find_chapters
    (folder/'rows.csv').write_text('prompt,reference,kind\n'+''.join(f'question {i} word{i%7},word{i%7},{"easy" if i%2 else "hard"}\n' for i in range(rows)), encoding='utf-8')
    (folder/'mine.py').write_text(f'def answer(prompt): return dict(text={said}, tokens_in=len(prompt), tokens_out=2)', encoding='utf-8')
    (folder/'poc.yaml').write_text(CARD.format(outcome=outcome, model=model), encoding='utf-8')
    made = folder/'run'
    made.mkdir()
    cells = [dict(cell_type='code', id=str(i), source='', metadata={}, outputs=[dict(output_type='display_data', data={MIME: dict(type='record', name=k, data=v)})]) for i, (k, v) in enumerate((records or {}).items())]
    (made/'02.ipynb').write_text(json.dumps(dict(cells=cells)), encoding='utf-8')
    Run(made, 'mine', str(folder/'poc.yaml'), 'full', chapters=[ChapterRun('latency', 'Latency', status='done', notebook='02.ipynb')]).save()
    out = folder/'out.ipynb'
    assert execute_chapter(find_chapters()['cost'].path, out, dict(poc=str(folder/'poc.yaml'), run_dir=str(made), effort='full', calls=110)) == ('done', '')
    ev = read_evidence(out)
    return {g.code: g for g in ev.gates}, ev.records, out.read_text(encoding='utf-8')


LOAD = dict(rate_at_slo=dict(value=50, low=40, high=None), replicas=dict(expected=1, peak=2), utilisation=.1, tokens_per_second=90)


def test_a_function_with_every_record(tmp_path):
    gates, records, text = chapter(tmp_path, dict(load=LOAD, latency=dict(batches={'1': .01, '4': .02}, cpu_seconds_per_call=dict(value=.01, low=.009, high=.011, n=140))))
    assert [gates[c].verdict for c in ('COS01', 'COS02', 'COS03', 'COS04')] == [PASS]*4
    assert gates['COS01'].value == pytest.approx(2*.1*730+2*37.3, rel=.01) and gates['COS02'].value == pytest.approx(2*5000-gates['COS01'].value, rel=1e-6)
    assert records['cost']['utilisation'] == pytest.approx(5000/(2*50*SECONDS)) and 'labels' not in json.dumps(records['cost']['lines'])


@pytest.mark.slow
@pytest.mark.parametrize('records', [{}, dict(load=dict(LOAD, replicas=dict(expected=None, peak=None)), latency={}), dict(load=dict(replicas=None, rate_at_slo=None, utilisation=None), latency=dict(batches='x')), dict(load={}, latency=dict(cpu_seconds_per_call=dict(value='NaN')))])
def test_records_that_lack_what_is_needed(tmp_path, records):
    gates, _, text = chapter(tmp_path, records)
    assert {g.verdict for g in gates.values()} == {'NOT TESTED'} and 'run chapter load' in gates['COS01'].note


@pytest.mark.slow
def test_nothing_is_solved_and_wrong_answers_cost(tmp_path):
    gates, _, text = chapter(tmp_path, dict(load=LOAD), said='"no"')
    assert (gates['COS01'].verdict, gates['COS02'].verdict, gates['COS03'].verdict, gates['COS04'].verdict) == (PASS, FAIL, FAIL, FAIL)
    assert gates['COS02'].value < -3*5000


@pytest.mark.slow
@pytest.mark.parametrize('outcome, code, said', [('', 'COS02', 'success_value'), (', success_value: 2, wrong_cost: 3', 'COS01', 'volume_per_month'), (FULL+', currency: GBP', 'COS01', None)])
def test_a_card_that_says_little(tmp_path, outcome, code, said):
    if said is None:
        (tmp_path/'poc.yaml').touch()
        with pytest.raises(AssertionError, match='usd_in_gbp|eur_in_gbp'): chapter(tmp_path, dict(load=LOAD), outcome)
    else: assert said in chapter(tmp_path, dict(load=LOAD), outcome)[0][code].note


@pytest.mark.slow
def test_recorded_answers(tmp_path):
    (tmp_path/'log.jsonl').write_text(''.join(json.dumps(dict(prompt=f'question {i} word{i%7}', answer=f'word{i%7}'))+'\n' for i in range(300)), encoding='utf-8')
    gates, records, text = chapter(tmp_path, {}, model='{kind: recorded, path: log.jsonl, answer: answer, prompt: prompt}')
    assert gates['COS01'].verdict == 'NOT TESTED' and 'Traceback' not in text


class Endpoint(BaseHTTPRequestHandler):
    "Answers with the last word of the prompt, and counts tokens"
    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers['Content-Length'])))['messages'][-1]['content']
        chunks = [dict(choices=[dict(index=0, delta=dict(content=said.split()[-1]), finish_reason='stop')]), dict(choices=[], usage=dict(prompt_tokens=len(said), completion_tokens=2))]
        raw = ''.join(f'data: {json.dumps(c)}\n\n' for c in chunks).encode()+b'data: [DONE]\n\n'
        self.send_response(200)
        for k, v in {'Content-Type': 'text/event-stream', 'Content-Length': str(len(raw))}.items(): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(raw)
    def log_message(self, *a): pass


@pytest.mark.slow
def test_an_endpoint_is_paid_by_its_tokens(tmp_path):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: gates, records, text = chapter(tmp_path, dict(load=LOAD), model=f'{{kind: openai, base_url: "http://127.0.0.1:{server.server_port}/v1", model: m, price_in: 10, price_out: 20}}')
    finally: server.shutdown()
    each = sum(len(f'question {i} word{i%7}')*10+2*20 for i in range(300))/300/1e6
    line = next(l for l in records['cost']['lines'] if l['kind'] == 'inference')
    assert line['value'] == pytest.approx(5000*each) and line['sampled'] and line['low'] < line['value'] < line['high']
    assert gates['COS01'].verdict == PASS and 'NOT TESTED: it takes a model of your own' in text


def test_judged_says_why_nothing_could_be_scored():
    card = ns(section=lambda name: ns(metric=None, solved_from=1.))
    ok, handed, why = judged(card, pd.DataFrame(dict(prompt=['a'])), [ns(error='gone', tier=None)], {})
    assert math.isnan(ok[0]) and handed == [True] and 'data.columns.reference' in why
