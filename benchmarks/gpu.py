"""Chapter 02's measurements on a Llama of 1 or 8 billion random weights: ceilings, distance to them, account of a token's time, batches, variants

    python benchmarks/gpu.py --size 1b --size 8b > benchmarks/results/gpu.md   # on a CUDA device; nothing is downloaded
    python benchmarks/gpu.py --tiny                                           # smoke test of the same code, anywhere, in seconds

Random weights cost what trained ones cost: time depends on shapes and number formats, not on values. The answers mean nothing."""
import argparse
import statistics
from datetime import date
from types import SimpleNamespace

SIZES = {  # width, width inside, layers, heads, heads of keys and values, vocabulary: Llama 3.2 1B and Llama 3 8B
    '1b': (2048, 8192, 16, 32, 8, 128_256), '8b': (4096, 14336, 32, 32, 8, 128_256), 'tiny': (128, 256, 2, 4, 2, 1000)}


def make(size: str, device: str, dtype: str, context: int):
    "A network of random weights, with what the loop that answers prompts needs to know of it"
    import inspect
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    width, inside, layers, heads, kv, vocab = SIZES[size]
    config = LlamaConfig(vocab_size=vocab, hidden_size=width, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
                         max_position_embeddings=context, tie_word_embeddings=size == '1b', pad_token_id=0, bos_token_id=1, eos_token_id=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))  # 8 billion float32 weights would not fit beside their copies
    try:
        torch.manual_seed(0)
        with torch.device(device): net = LlamaForCausalLM(config).eval()
    finally: torch.set_default_dtype(before)
    return SimpleNamespace(net=net, ends=set(), pad=0, context=context, size=vocab, takes=inspect.signature(net.forward).parameters)


def row(*cells): print('| ' + ' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in cells) + ' |', flush=True)


def table(*names):
    print()
    row(*names)
    row(*['---']*len(names))


def limits(loaded, device, context, new, k, sizes):
    "Ceilings, and how much of them prefill and decode use at each batch"
    from genai_playbook.roofline import decode_floor, distance, matrix_rate, prefill_floor, read_rate, rounds, steps, used
    far = distance(loaded, context, new, k)
    w, middle = far.work, far.context
    ceilings = dict(flops=matrix_rate(loaded.net.dtype, device), bandwidth=read_rate(w.weight_bytes(), device))
    print(f'\nCeilings, median of {k} rounds: {far.flops/1e12:.4g} TFLOP/s, {far.bandwidth/1e9:.4g} GB/s; weights {w.weight_bytes()/1e9:.4g} GB')
    table('part of a token', 'ms', 'at least', 'at most')
    for name, e in far.parts.items(): row(name, *(x*(1 if name == 'explained' else 1e3) for x in (e.value, e.low, e.high)))
    table('batch', 'prefill, ms', 'MFU', 'at least', 'at most', 'token, ms', 'tokens/s', 'share of the floor (MBU where reading binds)', 'at least', 'at most')
    for b in sizes:
        def both(b=b):
            first, later = steps(loaded, context, new, b)
            both.later.append(statistics.median(later))
            return first
        both.later = []
        r = rounds(ceilings | dict(prefill=both), k)
        later = both.later[1:]
        mfu, mbu = used(prefill_floor(w, context, r['flops'], r['bandwidth'], b), r['prefill']), used(decode_floor(w, middle, r['flops'], r['bandwidth'], b), later)
        t = statistics.median(later)
        row(b, 1e3*statistics.median(r['prefill']), mfu.value, mfu.low, mfu.high, 1e3*t, b/t, mbu.value, mbu.low, mbu.high)


def tries(loaded, device, context, new, k, compiled):
    "Variants beside the model as it is; a static cache with and without a compiled graph"
    from genai_playbook.roofline import rounds, static_steps, try_variants, variants
    ids = [[(11*i + 17*r) % loaded.size for i in range(context)] for r in range(2)]
    table('variant', 'token, ms', 'times as fast', 'at least', 'at most', 'same tokens', 'error')
    for t in try_variants(loaded, context, ids, new, variants(device, str(loaded.net.dtype).removeprefix('torch.')), k):
        row(t.name, 1e3*t.seconds, *((t.speedup.value, t.speedup.low, t.speedup.high) if t.speedup else ('', '', '')), t.same, t.error)
    first, jobs = {}, {}
    for name, c in (('static cache', False), ('static cache, compiled', True))[:1 + compiled]: first[name], jobs[name], _ = static_steps(loaded.net, context, new, compiled=c, vocabulary=loaded.size)
    for name, t in rounds(jobs, k).items(): row(name, 1e3*statistics.median(t), '', '', '', '', f'first step {first[name]:.3g} s')


def inside(loaded, device, context, new):
    "Operators, memory by kind of tensor, telemetry"
    from genai_playbook.accelerator import Watch, memory_kinds, profile_top
    from genai_playbook.roofline import steps, work_of
    table('operator', 'calls', 'share of time')
    for name, r in profile_top(lambda: steps(loaded, context, new), 10, device).iterrows(): row(name.replace('|', '/')[:80], int(r.calls), r.share)
    table('memory', 'MB')
    for name, mb in memory_kinds(loaded.net, work_of(loaded.net).kv(context + new), device).items(): row(name, mb)
    with Watch() as t: steps(loaded, context, new*4)
    print(f'\nTelemetry: {t.summary() or t.why}')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--size', action='append', choices=['1b', '8b'], help='which configurations; left out: 1b')
    p.add_argument('--tiny', action='store_true', help='a tiny configuration on whatever there is: does the code run?')
    p.add_argument('--context', type=int, default=512)
    p.add_argument('--new', type=int, default=32, help='tokens to write')
    p.add_argument('--rounds', type=int, default=21)
    p.add_argument('--no-compile', action='store_true')
    a = p.parse_args()
    import torch
    import transformers
    cuda = torch.cuda.is_available()
    if not (cuda or a.tiny): p.error('no CUDA device: use --tiny for a smoke test on this CPU')
    device, sizes = 'cuda' if cuda else 'cpu', (1, 4) if a.tiny else (1, 4, 16, 64)
    context, new, k = (32, 8, 5) if a.tiny else (a.context, a.new, a.rounds)
    print(f'# Distance to the limit, {date.today():%d %B %Y}\n\n{torch.cuda.get_device_name() if cuda else "CPU, smoke test: these figures mean nothing"}; torch {torch.__version__}, transformers {transformers.__version__}')
    for size in ['tiny'] if a.tiny else a.size or ['1b']:
        dtype = 'bfloat16' if cuda else 'float32'
        loaded = make(size, device, dtype, context + 4*new + 1)
        print(f'\n## {size}: {loaded.net.num_parameters()/1e9:.3g} billion random weights, {dtype}, context {context}, {new} new tokens')
        limits(loaded, device, context, new, k, sizes)
        tries(loaded, device, context, new, k, not (a.no_compile or a.tiny))
        inside(loaded, device, context, new)
        del loaded
        if cuda: torch.cuda.empty_cache()


if __name__ == '__main__': main()
