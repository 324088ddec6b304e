#!/usr/bin/env bash
# An encoder that was never contrasted, the same after SimCSE, unsupervised and supervised, and what
# that did to the weights of words: bash benchmarks/pair_study.sh RUNS [STEP ...]
#
# Steps: sample mlm recipe simcse supervised evaluate study ablate batches; all of them by default.
# Each goes on where it was stopped. On a GPU:
#
#     LAYERS=6 WIDTH=384 MINUTES=10 BATCH_TOKENS=32768 BF16=--bf16 bash benchmarks/pair_study.sh RUNS
#
# RECIPE are options of `simcse-fast train` instead of those that the step recipe finds, RATE is a
# learning rate instead of its. TEXTS=nli contrasts the sentences of the triplets, each by itself,
# instead of Wikipedia's. DATA is the folder with texts (../shared/data); SHARED_BY processes share
# the runs of a recipe or an ablation (2, each with one thread on a CPU).
set -euo pipefail
runs=$1 && shift
steps=${*:-sample mlm recipe simcse supervised evaluate study ablate batches}
here=$(cd "$(dirname "$0")/.." && pwd)
data=${DATA:-$here/../shared/data}
wiki=$data/wiki_sentences.parquet
development=$data/sts/stsb_dev.tsv
texts=$runs/${TEXTS:-wiki}.txt
length=(--steps "${MLM_STEPS:-6000}")
[ -z "${MINUTES:-}" ] || length=(--minutes "$MINUTES")
mkdir -p "$runs"

resumed() { # where something is to go on from
    if compgen -G "$1/checkpoint-*" > /dev/null || [ -d "$1/final" ]; then echo --resume; fi
}

sharing() { # the same command in several processes at once
    local all=()
    for _ in $(seq "${SHARED_BY:-2}"); do
        OMP_NUM_THREADS=1 "$@" & all+=($!)
    done
    for one in "${all[@]}"; do wait "$one"; done
}

sample() { # sentences to contrast, the same for all that follows
    python3 - "$wiki" "$data/nli_triplets.tsv" "$runs" << 'PYTHON'
import sys

import numpy as np
import pyarrow.parquet as pq

wiki, triplets, runs = sys.argv[1:]
texts = pq.read_table(wiki)["text"]
rows = np.sort(np.random.default_rng(0).choice(len(texts), min(200_000, len(texts)), replace=False))
with open(f"{runs}/wiki.txt", "w", encoding="utf-8") as file:
    file.writelines(text + "\n" for text in texts.take(rows).to_pylist())
with open(triplets, encoding="utf-8") as file:
    cells = [cell.strip() for line in list(file)[1:] for cell in line.split("\t")]
with open(f"{runs}/nli.txt", "w", encoding="utf-8") as file:
    file.writelines(text + "\n" for text in dict.fromkeys(cells) if text)
PYTHON
}

mlm() {
    simcse-fast pretrain-mlm "$wiki" --output "$runs/mlm" --layers "${LAYERS:-4}" \
        --width "${WIDTH:-192}" --batch-tokens "${BATCH_TOKENS:-4096}" "${length[@]}" ${BF16:-} \
        $(resumed "$runs/mlm") --json > "$runs/mlm.json"
}

recipe() {
    sharing python3 -m benchmarks.pair_recipe "$runs/mlm/final" "$texts" "$development" \
        "$runs/recipe" --steps "${RECIPE_STEPS:-400}" ${BF16:-}
}

simcse() {
    simcse-fast train --unsupervised "$texts" --model "$runs/mlm/final" \
        --pooling avg ${RECIPE:-$(cat "$runs/recipe/best.txt")} ${BF16:-} \
        --output "$runs/simcse" $(resumed "$runs/simcse") --json > "$runs/simcse.json"
}

supervised() {
    simcse-fast train --triplets "$data/nli_triplets.tsv" --model "$runs/mlm/final" \
        --pooling avg --batch-size 128 --epochs 2 --learning-rate 2e-4 ${BF16:-} \
        --evaluate "$development" --evaluation-steps 25 --output "$runs/supervised" \
        $(resumed "$runs/supervised") --json > "$runs/supervised.json"
}

evaluate() {
    simcse-fast evaluate "$runs/mlm/final" "$runs/simcse/final" "$runs/supervised/final" \
        --data-dir "$data" --tasks STS-B SICK-R STS13 alignment uniformity \
        --output "$runs/scores.json"
}

study() {
    for after in ${AFTER:-simcse supervised}; do
        simcse-fast study "$runs/mlm/final" "$runs/$after/final" --corpus "$wiki" \
            --sentences stsb="$data/sts/stsb_test.tsv" wiki="$wiki" sickr="$data/sts/sickr_test.tsv" \
            --methods ${METHODS:-ig shap norms} --quantities information_gain self_information corrected \
            --limit "${LIMIT:-1000}" --norm-limit "${NORM_LIMIT:-300}" \
            --output "$runs/study-$after" --json > "$runs/study-$after.json"
    done
}

ablate() {
    sharing simcse-fast ablate --model "$runs/mlm/final" --unsupervised "$texts" \
        --triplets "$data/nli_triplets.tsv" --development "$development" \
        --test "$data/sts/stsb_test.tsv" --pooling avg --batch-size "${ABLATION_BATCH:-64}" \
        --steps "${ABLATION_STEPS:-200}" --learning-rate "${RATE:-$(cat "$runs/recipe/rate.txt")}" \
        ${BF16:-} --vary dropout augmentation pooling temperature hard_negatives objective \
        --seeds "${SEEDS:-5}" --output "$runs/ablation"
}

batches() { # sizes that a transformer on a CPU does not reach: word vectors from random numbers
    python3 - "$wiki" "$runs/static" << 'PYTHON'
import sys

from simcse_fast import information_gain
from simcse_fast.static_encoders import random_encoder

words = information_gain(sys.argv[1], min_count=10).head(20_000).column("word").tolist()
random_encoder(words, 64, seed=0).save(sys.argv[2], create_model_card=False)
PYTHON
    sharing simcse-fast ablate --model "$runs/static" --unsupervised "$runs/wiki.txt" \
        --development "$development" --test "$data/sts/stsb_test.tsv" --vary batch \
        --batch-size 65536 --steps "${BATCHES_STEPS:-4}" --learning-rate 5e-3 --trajectories 0 \
        --seeds "${SEEDS:-5}" --output "$runs/batches"
}

for step in $steps; do "$step"; done
