#!/usr/bin/env bash
# Training on Cloud TPU VMs. One word says what to do; --dry-run anywhere prints the commands instead of running them.
#   bash launch/tpu_vm.sh create | setup | run -- VFTOK ARGUMENTS | watch | logs | stop | delete
# Settings come from the environment:
#   NAME=vftok TYPE=v5p-128 ZONE=us-east5-a PROJECT=(gcloud's) SPOT=1 RUNTIME=(by TYPE)
#   REPO=https://... the repository every host clones, REF=main   BUCKET=gs://... workdirs and data, mounted at ~/bucket
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME="${NAME:-vftok}" TYPE="${TYPE:-v5p-128}" ZONE="${ZONE:-us-east5-a}" REF="${REF:-main}"
dry=0 words=()
for word in "$@"; do
  if [[ "$word" == "--dry-run" ]]; then dry=1; else words+=("$word"); fi
done
what="${words[0]:-}"

fail() { echo "tpu_vm.sh: error: $*" >&2; exit 2; }

run() {
  if ((dry)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

case "$TYPE" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) fail "TYPE is '$TYPE', expected v5litepod-N (chips), v5p-N (cores, two a chip) or v6e-N (chips)." ;;
esac
RUNTIME="${RUNTIME:-$runtime}"
where=(--zone "$ZONE")
if [[ -n "${PROJECT:-}" ]]; then where+=(--project "$PROJECT"); fi

# On all hosts at once; their output comes back with the number of the host in front.
everywhere() {
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command "$1"
}

case "$what" in
  create)
    spot=()
    if [[ "${SPOT:-0}" == 1 ]]; then spot=(--spot); fi
    run gcloud compute tpus queued-resources create "$NAME" --node-id "$NAME" "${where[@]}" \
      --accelerator-type "$TYPE" --runtime-version "$RUNTIME" "${spot[@]}"
    ;;
  setup)
    [[ -n "${REPO:-}" ]] || fail "REPO is not set, expected the address of a repository that the hosts can clone."
    [[ "${BUCKET:-}" == gs://* ]] || fail "BUCKET is '${BUCKET:-}', expected gs://NAME: checkpoints must be where every host sees them."
    everywhere "set -e; test -d vftok || git clone $REPO vftok; cd vftok; git fetch; git checkout $REF
python3 -m venv .venv; .venv/bin/pip install --quiet -c launch/constraints.txt -e '.[tpu,hub]'
command -v gcsfuse || { echo 'deb https://packages.cloud.google.com/apt gcsfuse-jammy main' | sudo tee /etc/apt/sources.list.d/gcsfuse.list
curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo apt-key add -; sudo apt-get update -qq; sudo apt-get install -y -qq gcsfuse; }
mkdir -p ~/bucket; mountpoint -q ~/bucket || gcsfuse --implicit-dirs ${BUCKET#gs://} ~/bucket"
    ;;
  run)
    arguments=("${words[@]:1}")
    if [[ "${arguments[0]:-}" == "--" ]]; then arguments=("${arguments[@]:1}"); fi
    ((${#arguments[@]})) || fail "run needs the arguments of vftok.main: run -- --config=configs/t2v.py:1.1b --workdir=..."
    line="$(printf '%q ' "${arguments[@]}")"
    # In the background of each host, so that a closed laptop does not end it; one log per host.
    everywhere "cd vftok && nohup .venv/bin/python -m vftok.main --distributed $line > ~/vftok.log 2>&1 < /dev/null & sleep 65; tail -n 3 ~/vftok.log"
    ;;
  watch)
    run gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format "value(state.state)"
    everywhere "tail -n 2 ~/vftok.log"
    ;;
  logs) everywhere "cat ~/vftok.log" ;;
  stop) everywhere "pkill -TERM -f vftok.main || true" ;;
  delete)
    run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
    ;;
  *) fail "the word is '$what', expected create, setup, run, watch, logs, stop or delete." ;;
esac
