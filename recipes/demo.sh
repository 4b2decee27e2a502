#!/bin/sh
# All steps on the built-in data set, with local files and a local Ray: sounds are synthesised,
# prepared, trained on, evaluated and reported. `make demo` runs it.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
out=${DEMO_FOLDER:-build/demo}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1/5 Synthesise 800 clips of ten kinds of sound, and a few broken files"
$python -m pipeline.manifest.synthetic "$out/audio"

say "2/5 manifest: list the clips"
$python ray_job.py manifest "$out/audio/clips.csv" --out "$out/clips.parquet"

say "3/5 prepare: fbanks and shards"
$python ray_job.py prepare "$out/clips.parquet" --out "$out/dataset" --num-cpus 2

say "4/5 train: a small AST from scratch, on two workers"
$python ray_job.py train recipes/demo.toml --data "$out/dataset" --out "$out/run" \
    --workers 2 --num-cpus 2 --no-gpu

say "5/5 report"
$python ray_job.py report "$out/run"
