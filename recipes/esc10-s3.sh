#!/bin/sh
# ESC-10 in a bucket, from audio to report, everything against s3://.
#
#     sh recipes/esc10-s3.sh s3://BUCKET/PREFIX ESC10_FOLDER [OPTIONS OF train]
#
# The folder has ESC-50's layout (audio/, meta/esc50.csv). The bucket must exist; endpoint and
# credentials come from the usual AWS variables. Trains on folds 2 to 5, evaluates on fold 1:
# about 10 minutes of training on 2 CPU cores, from random weights.
set -eu
cd "$(dirname "$0")/.."
python=.venv/bin/python
bucket=$1
folder=$2
shift 2

echo "upload"
$python - "$folder" "$bucket/esc10" <<'PYTHON'
import sys
from pipeline import storage

for path in storage.list_files(sys.argv[1]):
    name = path.removeprefix(sys.argv[1]).lstrip("/")
    storage.write_bytes(storage.join(sys.argv[2], name), storage.read_bytes(path))
PYTHON

$python ray_job.py manifest "$bucket/esc10" --out "$bucket/esc10.parquet"
$python ray_job.py prepare "$bucket/esc10.parquet" --out "$bucket/dataset" --num-cpus 2
$python ray_job.py train recipes/esc10-scratch.toml --data "$bucket/dataset" --out "$bucket/run" \
    --workers 2 --num-cpus 2 --no-gpu "$@"
$python ray_job.py evaluate "$bucket/run" --split train --fold 1 --num-cpus 2
$python ray_job.py report "$bucket/run"
