#!/usr/bin/env bash
# An encoder that was never contrasted, the same after SimCSE, unsupervised and then supervised, and
# what that did to the weights of words: bash benchmarks/pair_study.sh RUNS [STEP ...]
#
# Steps: mlm simcse supervised evaluate study; all of them by default. Each goes on where it was
# stopped. On a GPU: LAYERS=6 WIDTH=384 MINUTES=10 bash benchmarks/pair_study.sh RUNS
set -euo pipefail
runs=$1 && shift
steps=${*:-mlm simcse supervised evaluate study}
data=$(cd "$(dirname "$0")/../.." && pwd)/shared/data
wiki=$data/wiki_sentences.parquet
results=$(dirname "$0")/../docs/results
length=(--steps "${MLM_STEPS:-6000}")
[ -z "${MINUTES:-}" ] || length=(--minutes "$MINUTES")
mkdir -p "$runs"

resumed() { # where something is to go on from
    if compgen -G "$1/checkpoint-*" > /dev/null || [ -d "$1/final" ]; then echo --resume; fi
}

mlm() {
    simcse-fast pretrain-mlm "$wiki" --output "$runs/mlm" --layers "${LAYERS:-4}" \
        --width "${WIDTH:-192}" "${length[@]}" $(resumed "$runs/mlm") --json > "$runs/mlm.json"
}

simcse() {
    simcse-fast train --unsupervised "$wiki" --model "$runs/mlm/final" --pooling avg \
        --output "$runs/simcse" --batch-size 256 --steps "${SIMCSE_STEPS:-400}" \
        --learning-rate 1e-4 --evaluate "$data/sts/stsb_dev.tsv" --evaluation-steps 50 \
        --save-steps 50 $(resumed "$runs/simcse") --json > "$runs/simcse.json"
}

supervised() {
    simcse-fast train --triplets "$data/nli_triplets.tsv" --model "$runs/simcse/final" \
        --output "$runs/supervised" --batch-size 128 --epochs 3 --learning-rate 1e-4 \
        --evaluate "$data/sts/stsb_dev.tsv" --evaluation-steps 25 --save-steps 50 \
        $(resumed "$runs/supervised") --json > "$runs/supervised.json"
}

evaluate() {
    simcse-fast evaluate "$runs/mlm/final" "$runs/simcse/final" "$runs/supervised/final" \
        --data-dir "$data" --tasks STS-B SICK-R STS13 alignment uniformity \
        --output "$runs/scores.json"
}

study() {
    for after in simcse supervised; do
        simcse-fast study "$runs/mlm/final" "$runs/$after/final" --corpus "$wiki" \
            --sentences stsb="$data/sts/stsb_test.tsv" wiki="$wiki" sickr="$data/sts/sickr_test.tsv" \
            --methods ig shap norms --quantities information_gain self_information corrected \
            --limit "${LIMIT:-1000}" --norm-limit 300 --output "$runs/study-$after" --json \
            > "$runs/study-$after.json"
        mkdir -p "$results/pair-$after"
        cp "$runs/study-$after"/{table.csv,study.json,bars.svg,scatter-*.png} \
            "$results/pair-$after/"
    done
    cp "$runs"/{mlm,simcse,supervised,scores}.json "$results/pair-simcse/"
}

for step in $steps; do "$step"; done
