#!/usr/bin/env bash
# Everything that is to be measured on a GPU, most valuable first, within so many seconds: docs/gpu.md.
#
#     scripts/gpu.sh SECONDS OUT
#
# Wants a python3 with PyTorch, Lightning and what else docs/gpu.md names, and .gpu (`make gpu-wheels`); no network.
# OUT gets logs and one archive, gpu-results.tar.gz; scripts/gpu_unpack.py takes that apart into results/.
# A dry run sets DEVICE, CAPSNET (the command) and GROUPS_OF_ROWS.
set -u -o pipefail
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ && -n ${2:-} ]]; then
  echo "usage: scripts/gpu.sh SECONDS OUT" >&2
  exit 2
fi
SECONDS=0 # bash counts on from here
budget=$1
mkdir -p "$2" && out=$(cd "$2" && pwd) || exit 2
if [ -n "$(ls -A "$out")" ]; then
  echo "the folder $2 is not empty" >&2
  exit 2
fi
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3} device=${DEVICE:-cuda}
capsnet=${CAPSNET:-"$python -m capsnet"}
end=$((budget - 5)) # the last archive takes a moment
# Share of what is left, in percent; seeds; rows. By the largest gap first.
groups=${GROUPS_OF_ROWS:-"
  35 1 multimnist-best
  55 3 mnist-best
  55 1 affnist-r3-rec-best affnist-cnn-best
  100 1 mnist-r3-rec mnist-r1-rec mnist-r3 mnist-r1 mnist-cnn"}

export PYTHONPATH=$PWD/src:$PWD/.gpu/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")") # checkpoints are kept in memory
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work XDG_CACHE_HOME=$work/cache

# part NAME SECONDS COMMAND…: run it for at most so long; what it prints goes to NAME.log, or standard output to $answer.
part() {
  local name=$1 limit=$2 status
  shift 2
  ((limit <= end - SECONDS)) || limit=$((end - SECONDS))
  if ((limit < 5)); then
    echo "$name: left out, no time is left" | tee -a "$out/parts.txt"
    return
  fi
  local started=$SECONDS
  timeout --kill-after=4 "$limit" "$@" </dev/null 2>>"$out/$name.log" >>"${answer:-$out/$name.log}"
  status=$?
  local how="exit $status"
  ((status == 0)) && how=done
  ((status == 124 || status == 137)) && how="cut off"
  echo "$name: $how after $((SECONDS - started)) s, of $limit" | tee -a "$out/parts.txt"
  "$python" scripts/gpu_pack.py "$work" "$out" || echo "$name: no archive could be made" | tee -a "$out/parts.txt"
}

echo "budget $budget s on $device, $(date -u +%FT%TZ)" | tee "$out/parts.txt"
{ nvidia-smi || echo "there is no nvidia-smi"; } >"$out/machine.log" 2>&1

part tests $((budget > 540 ? budget / 12 : 45)) "$python" -m pytest -o addopts= -v -rs -m gpu -p no:cacheprovider --color=no \
  $(grep -l 'mark\.gpu' tests/test_*.py)

answer=$out/bench.json part bench $((budget > 540 ? budget / 6 : 90)) env -C "$work" $capsnet bench --device "$device" --json

number=0
while read -r share seeds rows; do
  [ -n "$share" ] || continue
  number=$((number + 1))
  seconds=$(((end - SECONDS) * share / 100))
  read -ra rows <<<"$rows"
  # Eight seconds are for the start of Python. A run that takes longer than planned may end; one that hangs is cut off.
  part "runs-$number" $((seconds + seconds / 3 + 10)) \
    env -C "$work" $capsnet reproduce "${rows[@]}" --budget "$((seconds > 15 ? seconds - 8 : seconds))" --seeds "$seeds" \
    --device "$device"
done <<<"$groups"

"$python" scripts/gpu_pack.py "$work" "$out" --summary
