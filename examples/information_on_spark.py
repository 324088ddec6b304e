"""Information gain of the words of a corpus, counted on a Spark cluster.

spark-submit --master MASTER examples/information_on_spark.py FILE.parquet [FILE ...]
python examples/information_on_spark.py

Workers need the package, too: `pip install simcse-fast[information] pyspark[sql]` in the Python
that PYSPARK_PYTHON names.
"""

import argparse
import os
import sys

import numpy as np
from pyspark.sql import SparkSession

from simcse_fast.information.spark import count_on_spark

WORDS = "salt pepper sugar honey lemon olive garlic thyme".split()  # noqa: SIM905
PLACES = "harbour island river forest desert valley mountain meadow".split()  # noqa: SIM905


def toy_sentences(count, seed=0):
    """Each about food or about places; `and` is beside everything."""
    rng = np.random.default_rng(seed)
    topics = [WORDS, PLACES]
    return [(" and ".join(rng.choice(topics[rng.integers(2)], 3)),) for _ in range(count)]


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("files", nargs="*", help=".parquet, .txt, .txt.gz or .jsonl; else toy data")
parser.add_argument("--column", help="of the sentences; by default text, sentence or the only one")
parser.add_argument("--probability", choices=["unigram", "marginal"], default="unigram")
parser.add_argument("--presence", action="store_true", help="a word counts once a sentence")
parser.add_argument("--min-count", type=int, default=10, help="rarer words are not shown")
parser.add_argument("--top", type=int, default=10, help="words to show")
args = parser.parse_args()

builder = SparkSession.builder.appName("information gain")
if "PYSPARK_GATEWAY_PORT" not in os.environ:  # without spark-submit: this machine is the cluster
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = builder.master("local[2]").config("spark.driver.bindAddress", "127.0.0.1")
    builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.ui.enabled", "false")
session = builder.getOrCreate()
session.sparkContext.setLogLevel("ERROR")

corpus = args.files or session.createDataFrame(toy_sentences(2000), "text string")
options = {"probability": args.probability, "presence": args.presence}
try:
    found = count_on_spark(corpus, column=args.column, session=session, **options)
except ValueError as error:
    parser.error(str(error))
finally:
    session.stop()

print(f"{found.tokens:,} tokens, {found.sentences:,} sentences, {len(found.counts):,} words")
print(f"{'word':<16}{'count':>12}{'information gain [nats]':>26}")
gains = np.where(found.counts >= args.min_count, found.gains, np.nan)
order = [i for i in np.argsort(-gains)[: args.top] if np.isfinite(gains[i])]  # NaN comes last
for i in order:
    print(f"{found.vocabulary[i].as_py():<16}{found.counts[i]:>12,}{gains[i]:>26.4f}")
