"""Which words carry sentence embeddings: weights, their faithfulness, and pages to share.

python examples/word_weights.py
python examples/word_weights.py --model NAME --sentences FILE.txt --output DIR
"""

import argparse
import tempfile
from pathlib import Path

import toy
from transformers import AutoModel, AutoTokenizer

from simcse_fast import integrated_gradients, shapley_values, token_similarity
from simcse_fast.attribution import faithfulness

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--model", help="name or folder; by default a small untrained BERT")
parser.add_argument("--sentences", type=toy.read_lines, help="a text file, one sentence a line")
parser.add_argument("--output", type=Path, help="folder of the pages; by default none are written")
args = parser.parse_args()

with tempfile.TemporaryDirectory() as scratch:
    name = args.model or toy.save_bert(scratch)
    # A SentenceTransformer may stand here as well.
    model = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
texts = args.sentences or [text for pair in toy.pairs(3) for text in pair]
masking = "mask" if model[1].mask_token else "pad"

gradients = integrated_gradients(model, texts)
shapley = shapley_values(model, texts, samples=64, masking=masking)
print(gradients, shapley, sep="\n\n")
print("\nleft out in the order of their weights:")
for result in (gradients, shapley):
    print(faithfulness(model, result, masking=masking))

first, second = (integrated_gradients(model, text, target="vector") for text in texts[:2])
(similarity,) = token_similarity(first, second)
print(f"\n{similarity}")

if args.output:
    args.output.mkdir(parents=True, exist_ok=True)
    for title, shown in {"weights": gradients, "similarity": similarity}.items():
        shown.to_html(args.output / f"{title}.html")
        print(args.output / f"{title}.html")
