"""Train a transformers encoder in batches larger than memory, in plain PyTorch.

python examples/gradient_cache.py
python examples/gradient_cache.py --model NAME --pairs FILE.tsv --batch-size 4096
"""

import argparse
import tempfile

import torch
import toy
from transformers import AutoModel, AutoTokenizer

from simcse_fast import GradientCache, info_nce

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--model", help="name or folder; by default a small untrained BERT")
parser.add_argument("--pairs", type=toy.read_pairs, help="two texts and a tab between on each line")
parser.add_argument("--batch-size", type=int, default=300)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--learning-rate", type=float, help="default: 2e-5, of the untrained BERT 1e-2")
args = parser.parse_args()

torch.manual_seed(0)
with tempfile.TemporaryDirectory() as scratch:
    name = args.model or toy.save_bert(scratch)
    tokenizer, encoder = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name)
encoder.to("cuda" if torch.cuda.is_available() else "cpu").train()
train, held_out = toy.split(args.pairs or toy.pairs(2000))


def embed(tokens):
    """Means of the last hidden states, (rows, D)."""
    states = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1)


def features(pairs):
    """Tokens of the left texts, and of the right ones."""
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    return [tokenizer(list(x), **options).to(encoder.device) for x in zip(*pairs, strict=True)]


cache = GradientCache(embed, model=encoder)
learning_rate = args.learning_rate or (2e-5 if args.model else 1e-2)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate)
before = toy.accuracy(encoder, cache, *features(held_out))
for _ in range(args.epochs):
    for rows in torch.randperm(len(train)).split(args.batch_size):
        query, key = cache(*features([train[row] for row in rows]))
        optimizer.zero_grad()
        info_nce(query, key, temperature=0.05).backward()
        optimizer.step()
last = cache.statistics
print(f"a batch: {len(rows)} pairs, {last.real_tokens} tokens, {last.mini_batches} mini-batches")
after = toy.accuracy(encoder, cache, *features(held_out))
print(f"accuracy on {len(held_out)} held-out pairs: {before:.3f} before, {after:.3f} after")
