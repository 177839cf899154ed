"Guards under faults, hostile texts, crowds and streams: what breaks blocks, and harmless text stays as it is"
import asyncio
import random
import threading
import time

import pytest
from hypothesis import given, settings, strategies as st

from genai_playbook import system as system_module
from genai_playbook.access import Policy, RateLimit, Session, access_matrix, asking_as, mixed_up, runs_to_see, who
from genai_playbook.card import load_card
from genai_playbook.defence import FAULTS, SPOKEN, bypasses
from genai_playbook.detector_card import SETS, read_labels
from genai_playbook.errors import PlaybookError
from genai_playbook.guards import Blocked, Guarded, Placeholders, apasses, block_injection, clean_text, injection_filter, keeps_prompt, known_links, length_limit, polite, redact_personal_data, redact_secrets, short_enough, topic_limit
from genai_playbook.models import PythonModel
from genai_playbook.system import System, passes

CHAIN_IN, CHAIN_OUT = [clean_text, short_enough, block_injection], [redact_secrets, redact_personal_data]


def test_200_broken_guards_let_nothing_through():
    found = bypasses(CHAIN_IN, CHAIN_OUT, ['A colleague will answer.'], 200, 0)
    assert len(found) == 200 and not [f for f in found if f[2]]
    assert {k for k, *_ in found} == set(FAULTS) and len({w for _, w, _ in found}) == 4


def test_broken_guards_let_nothing_through_in_coroutines():
    async def tell(q): return SPOKEN
    async def all_of_them():
        for side in ('input', 'output'):
            for name, fault in FAULTS.items():
                bot = Guarded(tell, fallback='no', seconds=.05 if name == 'hangs' else 5., **{side: [fault]})
                assert await bot.ask('hello') == 'no', name
    asyncio.run(all_of_them())


def test_a_coroutine_that_hangs_blocks():
    async def never(text): await asyncio.sleep(60)
    assert asyncio.run(apasses([never], 'hello', .02)) is None
    assert passes([never], 'hello', .02) is None


def test_guards_that_hang_for_ever_block_everything_in_the_end(monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(system_module, 'MOST_STUCK', 3)
    hang = lambda text: stop.wait(30) and text
    for _ in range(3): assert passes([hang], 'hello', .01) is None
    assert passes([str.strip], 'hello') is None
    stop.set()
    for _ in range(200):
        if not system_module._stuck: break
        time.sleep(.01)
    assert passes([str.strip], ' hello ') == 'hello'


def hostile(n=515):
    rng, res = random.Random(8), []
    kinds = [lambda: ''.join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(60))), lambda: ''.join(chr(rng.randrange(32)) for _ in range(40)), lambda: '\ud800'*rng.randrange(1, 9), lambda: rng.choice('aé漢\u202e\u200b')*rng.randrange(1, 4000),
             lambda: '%s%n{0}{x}${jndi:ldap://x}'*rng.randrange(1, 5), lambda: "'; DROP TABLE orders; --", lambda: '<script>alert(1)</script>'*rng.randrange(1, 20), lambda: '{"a":'*rng.randrange(1, 200), lambda: '\U000e0041'*rng.randrange(1, 99),
             lambda: '\u202eabc\u2066'*5, lambda: '\n'*rng.randrange(1, 500), lambda: bytes(rng.randrange(256) for _ in range(60)).decode('latin-1'), lambda: 'e'+'\u0301'*rng.randrange(1, 900), lambda: '../'*30+'etc/passwd', lambda: 'A'*rng.randrange(1, 3000)+'=']
    while len(res) < n: res.append(kinds[len(res) % len(kinds)]())
    return res


def test_515_hostile_strings_crash_nothing():
    said = Guarded(lambda q: q, CHAIN_IN, CHAIN_OUT, fallback='no')
    for t in hostile():
        out = said(t)
        assert isinstance(out, str)
        out.encode('utf8')
        ''.join(Guarded(lambda q: iter([q]), CHAIN_IN, CHAIN_OUT, fallback='no').stream(t)).encode('utf8')


def test_the_demo_answers_hostile_strings():
    card = load_card('demo-hardened')
    answers = card.system().uncached.answer(hostile())
    assert len(answers) == 515 and all(a.text or a.error for a in answers)


def test_harmless_text_is_unchanged():
    card = load_card('demo')
    for t in card.evaluation()['prompt'].drop_duplicates(): assert passes([clean_text, short_enough], t) == t
    for r in read_labels(SETS/'injection.dev.jsonl'):
        if not r['label']: assert passes([clean_text], r['text']) == r['text']
    for t in ('Zoë 👨‍👩‍👧', 'می‌خواهم', 'नमस्ते क्‍ष', 'שלום\u200f!', 'naïve café', '注文', '\tindented\r\n'): assert clean_text(t) == t


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from(['call', '+1 555 274 2960', 'eva@example.com', 'DE33', '1234 5678 5511 3396 02', 'DE33 1234 5678 5511 3396 02', 'the', 'parcel.', '4111 1111 1111 1111', 'on', '12', 'May', '192.0.2.7', 'password:', 'hunter2!x', '\n', 'sk-abcdefghij0123456789', 'is']), max_size=14), cuts=st.randoms(use_true_random=False))
def test_a_stream_says_what_the_whole_would(words, cuts):
    text = ' '.join(words)
    at = sorted(cuts.sample(range(len(text)+1), min(len(text)+1, 6)))
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)])]
    whole = passes(CHAIN_OUT, text) if text.strip() else text
    assert ''.join(Guarded(lambda q: iter(pieces), output=CHAIN_OUT, fallback='no').stream('?')) == whole


def test_a_stream_holds_back_only_what_it_must():
    words = [w+' ' for w in 'Your parcel comes on Monday and the driver rings at the door of the house'.split()]
    shown = list(Guarded(lambda q: iter(words), output=[redact_personal_data]).stream('?'))
    assert len(shown) > 8
    system = System(PythonModel(lambda p: iter(words)), guards_out=[redact_personal_data])
    assert len([c for c in system.stream('hello') if c.text]) > 8
    assert list(system.stream('hello'))[-1].answer.text == ''.join(words)


def test_a_guard_that_blocks_late_ends_the_stream():
    class Stops:
        def __call__(self, text): return None if 'bad' in text else text
        def streamed(self):
            class Reader:
                def feed(self, piece, last): return None if 'bad' in piece else piece
            return Reader()
    system = System(PythonModel(lambda p: iter(['good ', 'bad ', 'worse'])), guards_out=[Stops()], fallbacks=['no'])
    chunks = list(system.stream('hello'))
    assert ''.join(c.text for c in chunks) == 'good '
    assert chunks[-1].answer.tier == 'guard' and chunks[-1].answer.error and 'worse' not in chunks[-1].answer.text


def test_without_a_fallback_a_service_says_which_side_stopped_it_and_nothing_else():
    bot = Guarded(lambda q: 'the secret', output=[lambda t: None])
    with pytest.raises(Blocked) as e: bot('my private words')
    assert 'output' in str(e.value) and 'secret' not in str(e.value) and 'private' not in str(e.value)
    with pytest.raises(Blocked): list(Guarded(lambda q: iter('ab'), output=[lambda t: None]).stream('x'))


def test_guards_stay_right_under_a_crowd():
    bot = Guarded(lambda q: q, CHAIN_IN, CHAIN_OUT, fallback='no')
    assert not any(mixed_up(bot, 32, 4))


def test_a_planted_shared_variable_is_found():
    shared = {}
    def forgetful(message):
        shared['last'] = message
        time.sleep(.001)
        return shared['last']
    assert any(mixed_up(forgetful, 32, 3)) and runs_to_see(.1) == 44


@pytest.mark.parametrize('make', [lambda: length_limit(0), lambda: injection_filter(0), lambda: injection_filter(2), topic_limit, lambda: RateLimit(0, 1), lambda: RateLimit(1, 0)])
def test_senseless_settings_are_explained(make):
    with pytest.raises(PlaybookError): make()


def test_nobody_may_nothing():
    p = Policy(dict(agent=dict(order=['read'])))
    assert who() is None and p.guard('order', 'read')('x') is None and RateLimit(5, 1)('x') is None
    with asking_as(Session('a', 'agent', 't')):
        assert passes([p.guard('order', 'read'), RateLimit(1, 10, clock=lambda: 0.)], 'x') == 'x'
        assert not p.allows(who(), 'order', 'read', 'other') and p.visible([('t', 'mine')], 'order') == ['mine']
    assert who() is None


def test_every_cell_of_a_matrix_of_over_500():
    roles, resources, actions = [f'r{i}' for i in range(6)], [f'k{i}' for i in range(9)], list('abcde')
    meant = lambda r, k, a, own: own and (int(r[1])+int(k[1])) % 2 == 0
    assert access_matrix(meant, meant, roles, resources, actions).tried == 540
    bad = access_matrix(lambda r, k, a, own: r != 'r1' and meant(r, k, a, True), meant, roles, resources, actions)
    assert bad.leaks and bad.denials and not any(own for *_, own in bad.leaks)


def test_a_rate_limit_holds_for_many_threads():
    limit, taken, lock = RateLimit(50, 1e6, clock=lambda: 0.), [], threading.Lock()
    def work():
        for _ in range(40):
            ok = limit.take('eva')
            with lock: taken.append(ok)
    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sum(taken) == 50


@settings(max_examples=80, deadline=None)
@given(parts=st.lists(st.sampled_from(['eva@example.com', 'max@example.com', '+1 555 274 2960', '<email-1>', '<email-2>', '<phone-1>', 'and', '192.0.2.7', 'x']), max_size=12))
def test_placeholders_are_taken_back_whatever_the_customer_wrote(parts):
    talk, text = Placeholders(), ' '.join(parts)
    hidden = talk.hide(text)
    assert '@example.com' not in hidden and talk.show(hidden) == text


def test_placeholders_of_one_conversation_say_nothing_in_another():
    mine, yours = Placeholders(), Placeholders()
    mine.hide('eva@example.com')
    assert yours.show('<email-1>') == '<email-1>'


@pytest.mark.parametrize('text, ok', [('https://example.com', True), ('HTTPS://A.EXAMPLE.COM/x', True), ('https://evil.test', False), ('https://example.com.evil.test', False), ('https://example.com@evil.test', False), ('www.evil.test', False), ('https:///evil.test', False), ('![](//evil.test/x?d=1)', False), ('http://evil.test\\@example.com', False), ('plain', True)])
def test_links_to_other_hosts_stop_an_answer(text, ok): assert (known_links('example.com')(f'see {text} now') is not None) == ok


def test_output_filters_stop_what_they_are_for():
    prompt = 'You are the assistant of a parcel service and never promise a refund above fifty euros.'
    assert keeps_prompt(prompt)(prompt) is None and keeps_prompt(prompt)('Fine.') == 'Fine.'
    assert polite('You complete idiots') is None and polite('Have a nice day') == 'Have a nice day'
