#!/usr/bin/env bash
# What is still to be measured on two GPUs, all of it within MINUTES (26 are meant).
#
#     training/run-two-cards.sh SHARDS_FOLDER VAL_FOLDER OUTPUT MINUTES [NIQE_PARAMS]
#
#     card 0: conditioning by concatenation is trained, then benchmarks/gpu.py
#     card 1: time-aware conditioning is trained, then benchmarks/time_aware.py scores both
#
# Eleven parts in 26 of MINUTES are training (run-time-aware.sh); start-up comes on top, and the rest
# is for benchmark and scores. Meanwhile both scripts are tried at toy size, so that a missing package is
# told in the first minute. gpu.py needs diffusers: have its folder in PYTHONPATH.
#
# OUTPUT/docs gets gpu.json, benchmarks.md, time-aware.json and pictures (copy them to docs/, then
# `benchmarks/time_aware.py --render-only`), OUTPUT/results.tar these and the logs. OUTPUT/log says
# how far it is. TINY=1 in the environment is a rehearsal of seconds on a CPU.
set -uo pipefail
if (($# < 4)); then
  sed -n '2,4p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=$1 val=$2 out=$3 minutes=$4 niqe=()
(($# > 4)) && niqe=(--niqe-params "$5")
for folder in "$data" "$val/lr" "$val/hr"; do
  [[ -d $folder ]] || { echo "$folder: is no folder" >&2; exit 2; }
done
if ! total=$(awk -v m="$minutes" 'BEGIN { if (m !~ /^[0-9]*[.]?[0-9]+$/ || m <= 0) exit 1
    printf "%d", m * 60 + 0.5 }'); then
  echo "MINUTES: $minutes is no number above 0" >&2
  exit 2
fi
if [[ -e $out ]]; then
  echo "OUTPUT: $out is there already; give another folder, or move it away" >&2
  exit 2
fi
mkdir -p "$out/docs" "$out/logs" || exit 1
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
device=cuda train=$(awk "BEGIN { print $total / 60 * 11 / 26 }") changes=() gpu=(--only stablesr) score=(--workers 12)
if [[ -n ${TINY:-} ]]; then
  device=cpu train=$(awk "BEGIN { print $total / 60 * 3 / 26 }")
  changes=(--set run.batch=2 --set run.precision=fp32 --set run.compile=false --set data.crop_px=64
    --set data.pool=4 --set 'net.widths=[32, 32, 32]' --set 'net.depths=[1, 1, 1]'
    --set 'net.decoder_widths=[32, 32, 32]' --set net.context_channels=16 --set net.guide_channels=32)
  gpu+=(--tiny --sizes 32,64 --steps 1,9 --dtypes bf16 --variants channels-last --repeats 1)
  score=(--limit 1 --steps 1,2)
elif (($(python3 -c 'import torch; print(torch.cuda.device_count())') < 2)); then
  echo "this takes two GPUs; with one, call training/run-time-aware.sh and the benchmarks by hand" >&2
  exit 2
fi

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/log"; }
left() { echo $((total - SECONDS - 30 > 5 ? total - SECONDS - 30 : 5)); }
told() { # NAME COMMAND ...: its log, and what became of it
  local name=$1
  shift
  say "$name: begins"
  if "$@" >"$out/logs/$name.log" 2>&1; then say "$name: done"; return 0; fi
  say "$name: FAILED, the end of its log:"
  tail -n 8 "$out/logs/$name.log" | tee -a "$out/log"
  return 1
}
benchmark() { # CARD NAME SECONDS OPTION ...
  CUDA_VISIBLE_DEVICES=$1 told "$2" timeout -k 10 "$3" python3 "$root/benchmarks/gpu.py" \
    --device "$device" "${@:4}"
}
scores() { # CARD NAME SECONDS OPTION ...
  CUDA_VISIBLE_DEVICES=$1 told "$2" timeout -k 10 "$3" python3 "$root/benchmarks/time_aware.py" \
    --val "$val" --device "$device" "${niqe[@]}" "${@:4}"
}
pack() {
  cp "$out"/train/*.log "$out/logs/" 2>/dev/null
  tar -cf "$out/.results.part" -C "$out" docs logs log && mv "$out/.results.part" "$out/results.tar"
}

trap 'kill $(jobs -p) 2>/dev/null; wait; pack; exit 143' TERM INT

failed=0
shipped=$root/src/addsr/models/embedded/compact.safetensors
benchmark 0 try-gpu 120 --tiny --sizes 32 --steps 1 --dtypes bf16 --variants plain \
  --docs "$out/try" &
tries=($!)
scores 1 try-scores 120 --net shipped="$shipped" --limit 1 --steps 1 --fidelities 0.5 \
  --docs "$out/try" &
tries+=($!)
say "training: begins, $train minutes"
"$root/training/run-time-aware.sh" "$data" "$out/train" "$train" concat time-aware \
  -- "${changes[@]}" >"$out/logs/training.log" 2>&1 &
training=$!
for job in "${tries[@]}"; do wait "$job" || failed=1; done
if wait "$training"; then
  say "training: done"
else
  failed=1
  say "training: FAILED, see $out/train/*.log:"
  tail -n 8 "$out/logs/training.log" | tee -a "$out/log"
fi
grep -h "teacher [0-9]* " "$out"/train/*.log | tail -n 4 | tee -a "$out/log"

nets=()
for name in concat time-aware; do
  file=$out/train/$name/weights/net-ema.safetensors
  [[ -f $file ]] && nets+=(--net "$name=$file")
done
# the benchmark stops by its own clock; the signal is for a compiler that does not come back
benchmark 0 gpu "$(left)" --minutes "$(awk "BEGIN { print ($(left) - 15) / 60 }")" \
  --docs "$out/docs" "${gpu[@]}" &
benched=$!
if ((${#nets[@]})); then
  batch=64
  [[ -n ${TINY:-} ]] && batch=2
  scores 1 scores "$(left)" "${nets[@]}" --minutes "$train" --batch "$batch" \
    --docs "$out/docs" "${score[@]}" &
  wait $! || failed=1
  pack # the benchmark may still be at work, and time may end before it does
fi
wait "$benched" || failed=1
# its JSON is complete after every row, its page is made at the end
[[ -f $out/docs/gpu.json ]] && python3 "$root/benchmarks/gpu.py" --render-only --docs "$out/docs"
pack
say "all is over: $out/results.tar"
exit "$failed"
