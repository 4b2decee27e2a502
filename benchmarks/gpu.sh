#!/bin/sh
# All GPU benchmarks, in under 8 minutes on an H100 or H200, the most important first.
#
#   sh benchmarks/gpu.sh             every part
#   sh benchmarks/gpu.sh loop steps  these parts alone
#
# Needs torch, torchaudio, timm, transformers, pyarrow, pytest and what the core imports (pydantic,
# xxhash; for audio miniaudio, soundfile, soxr and PyAV), but neither Ray nor a network; torchao for FP8. Run it in
# the project's root. Every part has a time limit; figures measured by then are kept. At the end all
# figures are printed as one table and written to $OUT/figures.json (OUT: build/gpu unless set). The
# exit status is 1 if a part failed.
#
#   PYTHON   the interpreter (python3)
#   LIMIT_S  seconds for everything (470); the limits of the parts scale with it
#
# Without a GPU the same parts run on the CPU at small sizes, to try the script.
set -u
export PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
limit_s=${LIMIT_S:-470}
wanted=${*:-machine tests steps variants loop fbank evaluation learning extras}
start_s=$(date +%s)
mkdir -p "$out" || exit 1
sets=$(mktemp -d) || exit 1
trap 'rm -rf "$sets"' EXIT
export FIGURES="$out/figures.jsonl"
rm -f "$FIGURES"
failed=""

# Runs a command as a part: its name, its limit in seconds of 470, the command.
part() {
    name=$1 share_s=$2
    shift 2
    case " $wanted " in *" $name "*) ;; *) return ;; esac
    left_s=$((limit_s - $(date +%s) + start_s))
    allowed_s=$((share_s * limit_s / 470))
    [ "$allowed_s" -lt "$left_s" ] || allowed_s=$left_s
    if [ "$allowed_s" -lt $((limit_s / 47)) ]; then
        "$python" benchmarks/figures.py add "$name" status "not run: no time left"
        return
    fi
    printf '\n=== %s, at most %s s\n' "$name" "$allowed_s"
    began_s=$(date +%s)
    timeout --kill-after=10 "$allowed_s" "$@"
    status=$?
    took_s=$(($(date +%s) - began_s))
    case $status in
    0) verdict="done in $took_s s" ;;
    124 | 137) verdict="stopped at its limit of $allowed_s s" ;;
    *) verdict="failed with $status after $took_s s" failed="$failed $name" ;;
    esac
    "$python" benchmarks/figures.py add "$name" status "$verdict"
    echo "=== $name: $verdict"
}

gpu=$("$python" -c 'import torch; print(int(torch.cuda.is_available()))') || exit 1
"$python" -c 'import pydantic, xxhash, soxr, soundfile, miniaudio' ||
    echo "warning: a library is missing: parts that read prepared data or audio will fail" >&2
if [ "$gpu" = 1 ]; then
    sizes="32 12 96" few="--batch-sizes 32" small=""
else
    sizes="2 3" few="--batch-sizes 2"
    small="--clips 96 --eval-clips 32 --clip-s 2 --sounds 40 --sound-s 1.3"
    echo "no GPU here: small sizes on the CPU"
fi

# Data sets are prepared during the first two parts, which leave most cores idle.
case " $wanted " in *" loop "* | *" evaluation "* | *" learning "*)
    # shellcheck disable=SC2086
    timeout --kill-after=10 $((150 * limit_s / 470)) \
        "$python" benchmarks/prepared_sets.py "$sets" $small &
    preparing=$!
    ;;
*) preparing="" ;;
esac

part machine 40 "$python" benchmarks/machine.py
part tests 90 "$python" -m pytest tests/test_gpu.py -q -p no:cacheprovider
[ -z "$preparing" ] || wait "$preparing" || failed="$failed prepared_sets"
# shellcheck disable=SC2086
{
part steps 150 "$python" benchmarks/train_throughput.py --batch-sizes $sizes \
    --seconds $((130 * limit_s / 470)) \
    --sides ours transformers authors
part loop 100 "$python" benchmarks/train_loop.py "$sets"
part variants 80 "$python" benchmarks/train_throughput.py $few \
    --seconds $((60 * limit_s / 470)) --title ", variants" \
    --sides ours "ours, whole model" "ours, CUDA graphs" "ours, not compiled" "ours, patchout" \
    "ours, checkpointed"
part fbank 25 "$python" benchmarks/fbank_throughput.py --rounds 50
part evaluation 40 "$python" benchmarks/evaluation_throughput.py "$sets"
part learning 140 "$python" benchmarks/learning.py "$sets"
part extras 60 "$python" benchmarks/train_throughput.py $few \
    --seconds $((45 * limit_s / 470)) --title ", extras" \
    --sides ours "ours, unfolded patches" "ours, compiled loss" "ours, FP8"
}
for backend in flash_attention cudnn_attention efficient_attention; do
    [ "$gpu" = 1 ] || break
    # A separate compiler cache for each: its keys do not include the chosen back-end.
    export TORCHINDUCTOR_CACHE_DIR="$sets/$backend"
    # shellcheck disable=SC2086
    part extras 45 "$python" benchmarks/train_throughput.py $few --sides ours \
        --attention $backend --title ", $backend"
done

printf '\n=== all figures, after %s s\n' "$(($(date +%s) - start_s))"
"$python" benchmarks/figures.py show "$FIGURES" --json "$out/figures.json"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
