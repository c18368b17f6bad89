#!/usr/bin/env bash
# How the student is trained on further within a fixed time on one or two GPUs.
#
#     training/run-student.sh SHARDS_FOLDER OUTPUT MINUTES [--set TABLE.FIELD=VALUE ...]
#
# The student starts from the embedded model, its discriminator and the teacher of this folder. The
# first step compiles for minutes in which the cards idle; phi' (recipes/features.toml) trains in that
# time. No CUDA graphs: they make the student's step three times as slow (docs/training-log.md, run 4).
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if (($# < 3)); then
  sed -n '2,4p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
data=$1 out=$2 minutes=$3
shift 3
if ! total=$(awk -v m="$minutes" 'BEGIN { if (m !~ /^[0-9]*[.]?[0-9]+$/ || m <= 0) exit 1
    printf "%d", m * 60 + 0.5 }'); then
  echo "MINUTES: $minutes is no number above 0" >&2
  exit 2
fi
export PYTHONPATH=$root/src PYTHONUNBUFFERED=1
cards=$(python3 -c 'import torch; print(max(1, torch.cuda.device_count()))')
mkdir -p "$out/start"
cp "$root/src/addsr/models/embedded/compact.safetensors" "$out/start/net.safetensors"
cp "$root/training/discriminator.safetensors" "$out/start/"
shards="data.train=[\"$data/*.tar\"]"
common=(--set "$shards" --set data.val= --set run.tensorboard=false)
end=$((SECONDS + total))

(
  CUDA_VISIBLE_DEVICES=$((cards - 1)) timeout -k 15 110 python3 -m addsr.train features \
    --config "$root/recipes/features.toml" "${common[@]}" --set run.minutes=1.2 \
    --set run.compile=false --output "$out/features" >"$out/features.log" 2>&1
) &
left=$(python3 -c "print(max(0.1, ($end - $SECONDS) / 60))")
status=0
torchrun --standalone --nproc_per_node="$cards" -m addsr.train student \
  --config "$root/recipes/student.toml" "${common[@]}" --init "$out/start" \
  --set task.teacher="$root/training/teacher.safetensors" --set run.minutes="$left" \
  --set run.steps=1000000 --set run.log_every=250 --set run.checkpoint_every=2000 \
  --output "$out/student" "$@" >"$out/student.log" 2>&1 || status=$?
wait
exit "$status"
