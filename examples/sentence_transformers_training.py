"""Train a sentence-transformers model in batches of any size: one import differs from its docs.

python examples/sentence_transformers_training.py
python examples/sentence_transformers_training.py --model NAME --pairs FILE.tsv --batch-size 4096
"""

import argparse
import tempfile

import toy
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator
from transformers import set_seed

from simcse_fast.losses import CachedMultipleNegativesRankingLoss  # the line that changes

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--model", help="name or folder; by default a small untrained BERT")
parser.add_argument("--pairs", type=toy.read_pairs, help="two texts and a tab between on each line")
parser.add_argument("--batch-size", type=int, default=300)
parser.add_argument("--epochs", type=float, default=2)
parser.add_argument("--learning-rate", type=float, help="default: 2e-5, of the untrained BERT 1e-2")
parser.add_argument("--output", help="folder for the trained model; by default it is not kept")
args = parser.parse_args()

set_seed(0)
scratch = tempfile.TemporaryDirectory()
model = SentenceTransformer(args.model or toy.save_bert(scratch.name))
train, held_out = toy.split(args.pairs or toy.pairs(2000))
anchors, positives = zip(*train, strict=True)
evaluator = TranslationEvaluator(*zip(*held_out, strict=True), write_csv=False)
before = evaluator(model)["mean_accuracy"]

trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=args.output or scratch.name,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        batch_sampler="no_duplicates",
        learning_rate=args.learning_rate or (2e-5 if args.model else 1e-2),
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
    # What fits in memory is a mini-batch; the loss is that of the whole batch.
    loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=64),
)
trainer.train()
if args.output:
    model.save_pretrained(args.output)
after = evaluator(model)["mean_accuracy"]
print(f"accuracy on {len(held_out)} held-out pairs: {before:.3f} before, {after:.3f} after")
