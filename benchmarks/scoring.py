"""How fast multiple-choice questions are scored: ours beside lm-evaluation-harness, same model, same questions, one run

    python benchmarks/scoring.py                  # ours, and lm-evaluation-harness too where this Python has it
    python benchmarks/scoring.py --threads 1 --rounds 5 --kinds 'few-shot, 1 token'

The model is a Llama of 21 million random weights, made here; nothing is downloaded. lm-evaluation-harness is a dependency of this script only:
`python -m venv bench`, let it see this project's packages by a .pth file, `bench/bin/pip install lm_eval`, and run this with `PYTHONPATH=. bench/bin/python`.
Its default is batch size 1; the best of the batch sizes given counts. Each figure is the fastest of `--rounds`, taken in turn;
CPU time says the same with less noise when the machine is busy with other things, and its load is printed with each row."""
import argparse
import logging
import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')  # else a single thread is not one

# name: tokens of few-shot text, of the context, of a choice; questions
KINDS = {'20 tokens': (0, 80, 20, 16), '1 token': (0, 150, 1, 16), 'few-shot, 8 tokens': (600, 60, 8, 6), 'few-shot, 1 token': (600, 60, 1, 8)}
# tokens, width, width inside, layers: Llama's own vocabulary, and a small one, where less can be saved at the end of the net
MODELS = {'32,000 tokens': (32000, 256, 688, 6), '8,000 tokens': (8000, 384, 1088, 8)}


def make_model(folder: Path, tokens: int, width: int, inside: int, layers: int):
    "A Llama of 21 million random weights whose tokens are words"
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    vocab = {w: i for i, w in enumerate(['<pad>', '<s>', '</s>', *(f'w{i}' for i in range(tokens - 3))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token='<pad>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>', pad_token='<pad>').save_pretrained(folder)
    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocab), hidden_size=width, intermediate_size=inside, num_hidden_layers=layers, num_attention_heads=width//64, max_position_embeddings=1024,
                                       bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=.06))
    net.save_pretrained(folder)
    return net.num_parameters()


def make_questions(few: int, context: int, choice: int, n: int, seed: int = 0):
    "Lengths vary by a quarter around those asked for; choices of one token stay one token"
    from genai_playbook.scoring import Question
    rnd, words = random.Random(seed), 7997
    def text(mean): return ' '.join(f'w{rnd.randrange(words)}' for _ in range(rnd.randint(mean - mean//4, mean + mean//4)))
    shots = ' '.join(f'w{rnd.randrange(words)}' for _ in range(few))
    return shots + ' '*bool(few), [Question(text(context), [text(choice) for _ in range(4)], rnd.randrange(4)) for _ in range(n)]


def lm_eval(model, batch_size: int):
    "Their scorer over the very same weights; None where it is not installed"
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError: return None
    logging.disable(logging.WARNING)
    lm = HFLM(pretrained=model.loaded.net, tokenizer=model.loaded.tok, batch_size=batch_size, max_length=model.loaded.context)
    def score(few_shot, questions):
        pairs = [(few_shot + q.context, ' ' + c) for q in questions for c in q.choices]
        return [p for p, _ in lm.loglikelihood([Instance('loglikelihood', {}, a, i) for i, a in enumerate(pairs)], disable_tqdm=True)]
    return score


def compare(a, name: str, folder: str, size: int):
    import torch

    from genai_playbook.local_model import TransformersModel
    from genai_playbook.scoring import multiple_choice
    model = TransformersModel(folder, device='cpu', batch_size=a.batch_size)
    model.load()
    theirs = {b: s for b in a.their_batches if (s := lm_eval(model, b))}
    print(f'\nLlama, {size/1e6:.1f} M random weights, vocabulary of {name}, float32; 4 choices a question; requests (question x choice) a second, best of {a.rounds}')
    if not theirs: print('lm-evaluation-harness is not installed in this Python: ours alone')
    print('\n| choices | threads | requests | ours |' + ''.join(f' theirs, batch {b} |' for b in theirs) + (' ratio to their best | ratio in CPU time | largest difference |' if theirs else '') + ' load |')
    print('|---|---|---|---|---|' + '---|'*(len(theirs) + 3*bool(theirs)))
    for kind in a.kinds:
        few, context, choice, n = KINDS[kind]
        few_shot, questions = make_questions(few, context, choice, a.questions or n)
        def ours(few_shot, questions): return [f.total for r in multiple_choice(model, questions, few_shot) for f in r.choices]
        runners = {'ours': ours, **theirs}
        for threads in a.threads:
            torch.set_num_threads(threads)
            model.threads = threads
            best, cpu, found = dict.fromkeys(runners, float('inf')), dict.fromkeys(runners, float('inf')), {}
            for _ in range(a.rounds):
                for who, score in runners.items():
                    start, spent = time.perf_counter(), time.process_time()
                    found[who] = score(few_shot, questions)
                    best[who], cpu[who] = min(best[who], time.perf_counter() - start), min(cpu[who], time.process_time() - spent)
            requests = 4*len(questions)
            row = f'| {kind} | {threads} | {requests} | {requests/best["ours"]:.1f} |' + ''.join(f' {requests/best[b]:.1f} |' for b in theirs)
            if theirs:
                gap = max(abs(x - y) for b in theirs for x, y in zip(found['ours'], found[b]))
                row += ''.join(f' {min(t[b] for b in theirs)/t["ours"]:.1f} |' for t in (best, cpu)) + f' {gap:.1e} |'
            print(row + f' {os.getloadavg()[0]:.1f} |', flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    p.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--their-batches', type=int, nargs='+', default=[1, 16])
    p.add_argument('--batch-size', type=int, default=64, help='ours')
    p.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    p.add_argument('--questions', type=int, help='of each kind; left out: six to sixteen')
    a = p.parse_args()
    from transformers.utils import logging as bars
    bars.disable_progress_bar()
    for name in a.models:
        with tempfile.TemporaryDirectory() as folder: compare(a, name, folder, make_model(Path(folder), *MODELS[name]))


if __name__=='__main__': main()
