#!/usr/bin/env bash
# Speed of AddSR and SeeSR and memory of AddSR's training, on two GPUs within MINUTES (26 are meant).
#
#     training/run-gpu-sd2.sh OUTPUT MINUTES
#
#     card 0: benchmarks/gpu.py in bf16, with compiled and CUDA-graph modes
#     card 1: benchmarks/latent_training.py (up to two fifths of the time), then gpu.py in fp16
#
# Weights are random; nothing is fetched. It needs torch, transformers, accelerate and diffusers: have
# what is not installed in PYTHONPATH. First both scripts are tried at toy size, graphs too, so that a
# missing package or a mode that does not work is told in the first minutes. OPTIM="NAME=VALUE ..."
# in the environment names fields of the optimiser to be measured as well. Code is compiled once for
# each card into OUTPUT/cache, which a second call with another OUTPUT finds again by CACHE=FOLDER.
#
# OUTPUT/docs gets gpu.json, benchmarks.md, training-memory.json and training-memory.md (copy them to
# docs/), OUTPUT/results.tar these and the logs. JSON is complete after every row, whatever ends the
# run. OUTPUT/log says how far it is. TINY=1 in the environment is a rehearsal of a minute on a CPU.
set -uo pipefail
if (($# < 2)); then
  sed -n '2,4p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$1 minutes=$2
if ! total=$(awk -v m="$minutes" 'BEGIN { if (m !~ /^[0-9]*[.]?[0-9]+$/ || m <= 0) exit 1
    printf "%d", m * 60 + 0.5 }'); then
  echo "MINUTES: $minutes is no number above 0" >&2
  exit 2
fi
if [[ -e $out ]]; then
  echo "OUTPUT: $out is there already; give another folder, or move it away" >&2
  exit 2
fi
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
device=cuda models=addsr,seesr memory=(--only addsr)
layouts=channels-last,tiny-decoder,batch-4,graphs-channels-last,graphs-tiny-decoder
bf16=(--variants "$layouts,compile-channels-last,graphs-fused") fp16=(--variants "$layouts")
for one in ${OPTIM:-}; do memory+=(--optim "$one"); done
if [[ -n ${TINY:-} ]]; then
  device=cpu
  small=(--tiny --sizes 32,64 --steps 1,2 --repeats 1 --variants channels-last,tiny-decoder)
  bf16=("${small[@]}") fp16=("${small[@]}") memory+=(--tiny --passes 1)
elif (($(python3 -c 'import torch; print(torch.cuda.device_count())') < 2)); then
  echo "this takes two GPUs; with one, call benchmarks/gpu.py and latent_training.py by hand" >&2
  exit 2
fi
mkdir -p "$out/docs" "$out/logs" || exit 1

say() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$out/log"; }
left() { echo $((total - SECONDS - 30 > 5 ? total - SECONDS - 30 : 5)); }
told() { # CARD NAME SECONDS SCRIPT OPTION ...: its log, and what became of it
  local card=$1 name=$2 seconds=$3 script=$4
  say "$name: begins"
  CUDA_VISIBLE_DEVICES=$card TORCHINDUCTOR_CACHE_DIR=${CACHE:-$out/cache}/$card \
    timeout -k 10 "$seconds" python3 "$root/benchmarks/$script" --device "$device" "${@:5}" \
    >"$out/logs/$name.log" 2>&1 &
  if wait $!; then # a signal ends this and not a command in the foreground
    say "$name: done"
    return 0
  fi
  say "$name: FAILED, the end of its log:"
  tail -n 8 "$out/logs/$name.log" | tee -a "$out/log"
  return 1
}
minutes_left() { awk "BEGIN { print ($(left) - 15) / 60 }"; }
pack() { # the folder of the fp16 run is packed too: card 0 may still be writing its own
  tar -cf "$out/.results.part" -C "$out" $(cd "$out" && ls -d docs fp16 logs log 2>/dev/null) &&
    mv "$out/.results.part" "$out/results.tar"
}
stop='kill $(jobs -p) 2>/dev/null; wait; exit 143'
card0() {
  local failed=0
  trap "$stop" TERM
  told 0 try-gpu 180 gpu.py --tiny --only "$models" --sizes 32 --steps 2 --dtypes bf16 \
    --variants "$tried" --repeats 1 --minutes 2.5 --docs "$out/try" || failed=1
  # it stops by its own clock; the signal is for a compiler that does not come back
  told 0 gpu-bf16 "$(left)" gpu.py --only "$models" --dtypes bf16 --minutes "$(minutes_left)" \
    --docs "$out/docs" "${bf16[@]}" || failed=1
  return "$failed"
}
card1() {
  local failed=0
  trap "$stop" TERM
  told 1 try-training 120 latent_training.py --tiny --passes 1 --only addsr --minutes 1.5 \
    --budgets "" --folder "$out/weights/try" --docs "$out/try" || failed=1
  told 1 training "$(awk "BEGIN { print int($total * 0.4) + 60 }")" latent_training.py \
    --minutes "$(awk "BEGIN { print $total * 0.4 / 60 }")" --folder "$out/weights/full" \
    --docs "$out/docs" "${memory[@]}" || failed=1
  told 1 gpu-fp16 "$(left)" gpu.py --only "$models" --dtypes fp16 --minutes "$(minutes_left)" \
    --docs "$out/fp16" "${fp16[@]}" || failed=1
  return "$failed"
}

trap 'kill $(jobs -p) 2>/dev/null; wait; pack; exit 143' TERM INT
tried=graphs-tiny-decoder
[[ -n ${TINY:-} ]] && tried=tiny-decoder
failed=0
card0 &
first=$!
card1 &
second=$!
wait "$second" || failed=1
pack # the other card may still be at work, and time may end before it is done
wait "$first" || failed=1
rm -rf "$out/weights"
# JSON is complete after every row, pages are made at the end
if [[ -f $out/fp16/gpu.json ]]; then
  python3 "$root/benchmarks/gpu.py" --add "$out/fp16/gpu.json" --docs "$out/docs" || failed=1
elif [[ -f $out/docs/gpu.json ]]; then
  python3 "$root/benchmarks/gpu.py" --render-only --docs "$out/docs" || failed=1
fi
pack
say "all is over: $out/results.tar"
exit "$failed"
