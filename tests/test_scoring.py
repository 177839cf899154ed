"Log-likelihoods: equal to one sequence at a time, whatever is shared, split, padded or broken"
import math
import random

import pytest

from conftest import make_tiny_model
from genai_playbook import scoring
from genai_playbook.errors import PlaybookError
from genai_playbook.local_model import TransformersModel
from genai_playbook.scoring import LogLikelihood, Question, batch_spread, loglikelihoods, multiple_choice, split_tokens

CONTEXTS = ['where is it?', 'my parcel is late, very late', 'a', 'x'*70, 'Grüße 🎉', 'ends in space  ', 'where is it?', '', '   ']
CONTINUATIONS = [' home', ' gone', ' go', ' at the post office in town', 'y', ' home']
PAIRS = [(c, k) for c in CONTEXTS for k in CONTINUATIONS]
SHOTS = 'Q: where? A: here. '*4


@pytest.fixture(scope='module')
def model(tmp_path_factory): return TransformersModel(make_tiny_model(tmp_path_factory.mktemp('m')/'llama', template=False), device='cpu')


def brute(model, context, continuation):
    "One sequence, one full forward pass, no mask, no cache"
    import torch
    [(a, b)] = split_tokens(model.loaded.tok, [context], [continuation])
    with torch.inference_mode(): logp = model.loaded.net(torch.tensor([a+b])).logits[0].float().log_softmax(-1)[len(a)-1:-1]
    return logp[range(len(b)), b].double().sum().item(), logp.argmax(-1).tolist()==b


def check(model, pairs, **kw):
    found = loglikelihoods(model, *map(list, zip(*pairs)), **kw)
    for (c, k), f in zip(pairs, found):
        total, greedy = brute(model, c, k)
        assert f.error is None and f.total==pytest.approx(total, abs=1e-4) and f.greedy==greedy and f.tokens==len(split_tokens(model.loaded.tok, [c], [k])[0][1])
    return found


@pytest.mark.parametrize('size', [1, 3, 64])
def test_equal_to_brute_force(model, size):
    check(model, PAIRS, batch_size=size)
    assert model.loaded.branches


def test_equal_with_a_shared_prefix(model):
    check(model, [(SHOTS+c, k) for c, k in PAIRS if c.strip()])
    check(model, [(SHOTS, k) for k in CONTINUATIONS]+[(SHOTS+'more', ' of it')]) # one context is the prefix of the other


def test_the_prefix_is_encoded_once_and_a_context_once(model, monkeypatch):
    loglikelihoods(model, ['a'], ['b']) # the check of the architecture is not counted
    widths, net = [], model.loaded.net
    class Counted:
        def __getattr__(self, k): return getattr(net, k)
        def __call__(self, **kw): widths.append(tuple(kw['input_ids'].shape)); return net(**kw)
    monkeypatch.setattr(model.loaded, 'net', Counted())
    monkeypatch.setitem(model.__dict__, 'threads', 1) # each core has a batch of its own
    loglikelihoods(model, [SHOTS+c for c in ('one', 'two') for _ in range(3)], [' a', ' b', ' abc']*2)
    assert widths==[(1, len(SHOTS)), (2, 3+len(' ab'))] # ' a' and ' b' ask for one token beyond the context, ' abc' for two more; the last is read, not written
    widths.clear()
    loglikelihoods(model, ['Is it so?']*4, list('abcd'))
    assert widths==[(1, len('Is it so?'))] # choices of one token share their logits


@pytest.mark.parametrize('kind', ['gqa', 'half', 'gpt2', 'window', 'eager', 'pythia', 'mamba'])
def test_other_architectures(tmp_path, kind):
    import torch, transformers
    from transformers.utils import logging
    folder = make_tiny_model(tmp_path/'m', template=False, **dict(num_key_value_heads=1) if kind=='gqa' else {})
    small = dict(vocab_size=262, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    logging.disable_progress_bar()
    torch.manual_seed(5)
    config = dict(gpt2=lambda: transformers.GPT2Config(**small, n_embd=64, n_layer=2, n_head=2, n_positions=256, initializer_range=.3),
                  window=lambda: transformers.MistralConfig(**small, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, sliding_window=40,
                                                            max_position_embeddings=256, initializer_range=.3),
                  pythia=lambda: transformers.GPTNeoXConfig(**small, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=256, initializer_range=.3),
                  mamba=lambda: transformers.MambaConfig(**small, hidden_size=32, state_size=4, num_hidden_layers=2, initializer_range=.3)).get(kind)
    if config: transformers.AutoModelForCausalLM.from_config(config()).save_pretrained(folder)
    model = TransformersModel(folder, device='cpu', dtype='bfloat16' if kind=='half' else None)
    if kind=='eager': model.loaded.net.set_attn_implementation('eager')
    pairs = PAIRS+[(SHOTS+c, k) for c, k in PAIRS[:12]]
    if kind!='half': check(model, pairs)
    else:
        for (c, k), f in zip(pairs, loglikelihoods(model, *map(list, zip(*pairs)))): assert f.total==pytest.approx(brute(model, c, k)[0], rel=.05, abs=.5)
    assert model.loaded.branches==(kind!='mamba')


@pytest.mark.parametrize('limit', ['_LONG', '_SHARED', '_LOGITS', '_TOKENS'])
def test_equal_at_every_limit(model, monkeypatch, limit):
    monkeypatch.setattr(scoring, limit, dict(cpu=30) if limit=='_TOKENS' else 10)
    check(model, PAIRS+[(SHOTS+c, k) for c, k in PAIRS])
    check(model, [(SHOTS+c, k) for c, k in PAIRS if c.strip()])


@pytest.mark.parametrize('threads', [1, 2])
def test_order_and_repeats(model, threads, monkeypatch):
    monkeypatch.setitem(model.__dict__, 'threads', threads)
    pairs = PAIRS*2
    random.Random(0).shuffle(pairs)
    told = []
    check(model, pairs, batch_size=2, progress=lambda done, n: told.append((done, n)))
    assert told[-1]==(len(pairs), len(pairs)) and told==sorted(told)


@pytest.mark.parametrize('error', ['DefaultCPUAllocator: not enough memory', MemoryError()])
def test_out_of_memory(model, monkeypatch, error):
    model.load()
    net, most, want = model.loaded.net, [100], [brute(model, c, k)[0] for c, k in PAIRS]
    class Small:
        def __getattr__(self, k): return getattr(net, k)
        def __call__(self, **kw):
            if kw['input_ids'].numel()>most[0]: raise RuntimeError(error) if isinstance(error, str) else error
            return net(**kw)
    with monkeypatch.context() as m:
        m.setattr(model.loaded, 'net', Small())
        found = loglikelihoods(model, *map(list, zip(*PAIRS)))
        assert [f.total for f in found]==pytest.approx(want, abs=1e-4)
        most[0] = 60 # now the longest context does not fit even alone
        found = loglikelihoods(model, *map(list, zip(*PAIRS)))
        assert {c for (c, _), f in zip(PAIRS, found) if f.error}=={'x'*70} and 'the memory does not hold' in found[PAIRS.index(('x'*70, ' go'))].error
        with pytest.raises(PlaybookError, match='the memory does not hold the 76 tokens'): loglikelihoods(model, [SHOTS+'a', SHOTS+'b'], ['c', 'd'])


def test_another_error_is_not_swallowed(model, monkeypatch):
    model.load()
    _ = loglikelihoods(model, ['a'], ['b'])
    def broken(*a, **k): raise IndexError('kaputt')
    monkeypatch.setattr(scoring, '_read', broken)
    with pytest.raises(IndexError, match='kaputt'): loglikelihoods(model, ['a'], ['b'])


def test_bad_requests_among_good_ones(model):
    found = loglikelihoods(model, ['fine', 'empty', 'x'*300, 'y'*254, 'y'*254], [' one', '', ' long', 'abc', 'abcd'])
    assert [f.error for f in found]==[None, 'the continuation is empty', 'context and continuation have 305 tokens, but the model reads at most 256', None,
                                      'context and continuation have 258 tokens, but the model reads at most 256']
    assert found[0].total==pytest.approx(brute(model, 'fine', ' one')[0], abs=1e-4) and all(math.isnan(f.total) and not f.greedy for f in found if f.error)
    assert loglikelihoods(model, [], [])==[] and multiple_choice(model, [])==[]


def test_weights_that_are_no_numbers(tmp_path):
    import torch
    model = TransformersModel(make_tiny_model(tmp_path/'m', template=False), device='cpu')
    with torch.no_grad(): model.loaded.net.lm_head.weight[5] = math.nan
    found, = multiple_choice(model, [Question('a', ['b', 'cd'], 0)])
    assert (found.pick, found.pick_norm)==(None, None) and math.isnan(found.right) and 'no number' in found.error


def test_misuse(model):
    from genai_playbook.recorded_model import RecordedModel
    with pytest.raises(PlaybookError, match='one continuation for each context'): loglikelihoods(model, ['a', 'b'], ['c'])
    with pytest.raises(PlaybookError, match='not RecordedModel'): loglikelihoods(RecordedModel.__new__(RecordedModel), ['a'], ['b'])
    with pytest.raises(PlaybookError, match='at least one'): batch_spread(model, [], (1,))


def test_picks_and_what_cannot_be_picked(model):
    items = [Question('where is it?', ['home', 'at the post office', 'x']), Question('a', ['b', ''], 0), Question('a', []), Question('a', ['b', 'c'], 2), Question('a', ['b'*300, 'c'], 1), Question('z', ['one'], 0)]
    found = multiple_choice(model, items)
    assert [p.error for p in found]==[None, 'choice 1 is empty', 'the question has no choices', 'the answer is 2, but the choices are 0 to 1',
                                      'context and continuation have 302 tokens, but the model reads at most 256', None]
    totals = [brute(model, 'where is it?', ' '+c)[0] for c in items[0].choices]
    norms = [t/len(c) for t, c in zip(totals, items[0].choices)]
    assert (found[0].pick, found[0].pick_norm)==(totals.index(max(totals)), norms.index(max(norms))) and math.isnan(found[0].right)
    assert (found[5].right, found[5].right_norm)==(1, 1)
    again, = multiple_choice(model, items[:1], SHOTS)
    assert [f.total for f in again.choices]==pytest.approx([brute(model, SHOTS+'where is it?', ' '+c)[0] for c in items[0].choices], abs=1e-4)


def test_tokens_are_split_as_by_lm_eval(tmp_path):
    "Space at the end of a context belongs to the continuation; a token over the boundary counts as the context's; BOS is never doubled (lm_eval 0.4.13, `_encode_pair`)"
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    vocab = {t: i for i, t in enumerate(['<s>', '</s>', 'a', 'b', ' ', 'c', 'ab', ' c'])}
    tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, [('a', 'b'), (' ', 'c')])), bos_token='<s>', eos_token='</s>')
    def texts(c, k): return tuple([tok.convert_ids_to_tokens(i) for i in ids] for ids in split_tokens(tok, [c], [k])[0])
    assert texts('b ', 'c')==(['b'], [' c'])
    assert texts('b', ' c')==(['b'], [' c'])
    assert texts('a', 'bc')==(['a'], ['c']) # whole: ab c
    assert texts('a', 'b')==(['a'], []) # nothing is left: an error, not a score
    assert texts('', 'ab')==(['<s>'], ['ab'])
    assert texts('', '<s>ab')==(['<s>'], ['ab'])
    assert texts('  ', 'c')==(['<s>'], [' ', ' ', 'c']) or texts('  ', 'c')==(['<s>'], [' ', ' c'])
    assert texts('<s>a', 'c')==(['<s>', 'a'], ['c'])


def test_batch_spread(model):
    rnd = random.Random(1)
    items = [Question('x'*rnd.randint(1, 60), [''.join(rnd.choices('abcdef ', k=rnd.randint(1, 20))) for _ in range(3)], rnd.randrange(3)) for _ in range(30)]
    s = batch_spread(model, items, (1, 7, 30))
    assert s.sizes==[1, 7, 30] and 0<=s.largest<1e-4 and len(s.accuracy)==3
    assert s.flips==[] and len(set(s.accuracy))==1 # a lead below the rounding error is not among thirty
    assert math.isnan(batch_spread(model, [Question('a', ['', 'b'], 0)], (1,)).accuracy[0])


def test_greedy(model):
    "What greedy decoding writes is greedy, and with another last token it is not"
    import torch
    tok, net = model.loaded.tok, model.loaded.net
    ids = tok('where', add_special_tokens=True).input_ids
    for _ in range(3):
        with torch.inference_mode(): ids.append(net(torch.tensor([ids])).logits[0, -1].argmax().item())
    [context], written = split_tokens(tok, ['where'], ['x'])[0][:1], ids[-3:]
    other = written[:-1]+[(written[-1]+1)%262]
    found = scoring._read(model.loaded, [scoring._grow(context, [(0, written), (1, other)])])
    assert [g for _, _, g in found]==[True, False]


def test_equality_is_of_values():
    assert LogLikelihood(-1., 2, True)==LogLikelihood(-1., 2, True)
