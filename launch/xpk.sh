#!/usr/bin/env bash
# Training on GKE by xpk (pip install xpk): a cluster that stays, and jobs that come and go.
#   bash launch/xpk.sh cluster | submit -- VFTOK ARGUMENTS | list | logs | cancel | delete     [--dry-run]
# Settings come from the environment:
#   CLUSTER=vftok JOB=run1 TYPE=v5p-128 ZONE=us-east5-a PROJECT=... SLICES=1 IMAGE=python:3.11
#   REPO=https://... the repository each host clones, REF=main   BUCKET=gs://... mounted at /bucket
set -euo pipefail

CLUSTER="${CLUSTER:-vftok}" JOB="${JOB:-run1}" TYPE="${TYPE:-v5p-128}" ZONE="${ZONE:-us-east5-a}"
SLICES="${SLICES:-1}" IMAGE="${IMAGE:-python:3.11}" REF="${REF:-main}"
dry=0 words=()
for word in "$@"; do
  if [[ "$word" == "--dry-run" ]]; then dry=1; else words+=("$word"); fi
done
what="${words[0]:-}"

fail() { echo "xpk.sh: error: $*" >&2; exit 2; }

run() {
  if ((dry)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

[[ -n "${PROJECT:-}" ]] || fail "PROJECT is not set, expected the Google Cloud project that pays."
where=(--cluster "$CLUSTER" --project "$PROJECT" --zone "$ZONE")

case "$what" in
  cluster)
    capacity=(--on-demand)
    if [[ "${SPOT:-0}" == 1 ]]; then capacity=(--spot); fi
    run xpk cluster create "${where[@]}" --tpu-type="$TYPE" --num-slices="$SLICES" "${capacity[@]}" --enable-gcsfuse-csi-driver
    if [[ -n "${BUCKET:-}" ]]; then
      run xpk storage attach bucket "${where[@]}" --type=gcsfuse --bucket="${BUCKET#gs://}" --mount-point=/bucket \
        --readonly=false --auto-mount=true --size=1000
    fi
    ;;
  submit)
    [[ -n "${REPO:-}" ]] || fail "REPO is not set, expected the address of a repository that the hosts can clone."
    arguments=("${words[@]:1}")
    if [[ "${arguments[0]:-}" == "--" ]]; then arguments=("${arguments[@]:1}"); fi
    ((${#arguments[@]})) || fail "submit needs the arguments of vftok.main: submit -- --config=configs/t2v.py:1.1b --workdir=..."
    line="$(printf '%q ' "${arguments[@]}")"
    # A preempted job starts again by itself and goes on from its newest checkpoint.
    run xpk workload create "${where[@]}" --workload "$JOB" --tpu-type="$TYPE" --num-slices="$SLICES" \
      --docker-image "$IMAGE" --max-restarts=100 --command \
      "git clone $REPO vftok && cd vftok && git checkout $REF && pip install -q -c launch/constraints.txt -e '.[tpu,hub]' && python -m vftok.main --distributed $line"
    ;;
  list) run xpk workload list "${where[@]}" ;;
  logs) run kubectl logs --selector "jobset.sigs.k8s.io/jobset-name=$JOB" --prefix --tail 20 --max-log-requests 200 ;;
  cancel) run xpk workload delete "${where[@]}" --workload "$JOB" ;;
  delete) run xpk cluster delete "${where[@]}" ;;
  *) fail "the word is '$what', expected cluster, submit, list, logs, cancel or delete." ;;
esac
