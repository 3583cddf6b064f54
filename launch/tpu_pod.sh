#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

usage='usage: launch/tpu_pod.sh --name=… --zone=… --config=… --workdir=gs://… [--config.x=…] [options]

Trains on a Cloud TPU of any size, follows the log, and starts again after a preemption. The training runs detached on
the hosts: after Ctrl-C or a lost connection the same command follows it again.

  --name=…            of the queued resource and of its TPU; one that exists is used, another one is created
  --type=…            to create it: the accelerator, e.g. v5litepod-16, v6e-8
  --runtime=…         to create it: the image, e.g. v2-alpha-tpuv5-lite, v2-alpha-tpuv6e
  --spot              to create it: as a spot TPU
  --project=…         of Google Cloud, by default that of gcloud
  --data=A,B,…        gs:// addresses or local paths, copied once to data/ on every host; --config.data.root=data/…
  --max-restarts=100  how often an interrupted training, or a TPU that was taken away, is started again
  --delete            delete the TPU at the end, whatever the end was; without it, it goes on and is billed
  --dry-run           only print the commands, as if nothing existed yet and all went well

Every gs:// address among the arguments of the training becomes a folder: the bucket is mounted with gcsfuse. All hosts
write to the same workdir, so with more than one host it has to be such an address. Paths are relative to the
repository, of which the hosts get a copy.'
valued='name zone type runtime project data max_restarts' switches='spot delete dry_run'
name='' zone='' type='' runtime='' project='' data='' spot='' delete=''
parse "$@"
[[ $name && $zone ]] || wrong '--name and --zone are needed'
[[ $type && $runtime || ! $type$runtime$spot ]] || wrong '--type and --runtime belong together: give both to create a TPU'
IFS=, read -ra sources <<<"$data"
for source in "${sources[@]}"; do
    [[ $source == gs://* || -e $source ]] || die "--data: $source does not exist"
done
needs gcloud 'install the Google Cloud CLI, https://cloud.google.com/sdk/docs/install, and run gcloud init'

readonly LOST=255
pause=${POLL_SECONDS:-30}
scratch=${TMPDIR:-/tmp}/cvsa_jax.$$ errors=/dev/null
trap 'stop_following; rm -rf "$scratch"' EXIT
trap 'echo "The training goes on; the same command follows it again." >&2; exit 130' INT TERM

# tpu GROUP VERB ARGUMENT…
tpu() {
    run gcloud compute tpus "$1" "$2" "${@:3}" --zone="$zone" ${project:+--project="$project"}
}

# on WORKER COMMAND…: on one host or on all, in the copy of the repository. gcloud fails if it failed on any of them.
on() {
    tpu tpu-vm ssh "$name" --worker="$1" --command="cd cvsa_jax && launch/tpu_host.sh $(quoted "${@:2}")"
}

# The states of the queued resource and of its TPU: nothing where it does not exist, ? where gcloud cannot tell.
state() {
    local queue node=''
    queue=$(describe queued-resources 'value(state.state)')
    [[ $queue != ACTIVE ]] || node=$(describe tpu-vm 'value(state)')
    echo "$queue $node"
}

describe() {
    tpu "$1" describe "$name" --format="$2" 2>"$errors" && return
    grep -q NOT_FOUND "$errors" || {
        cat "$errors" >&2
        echo '?'
    }
}

acquire() {
    local now before=''
    while true; do
        now=$(state)
        case $now in
            'ACTIVE READY') return ;;
            ' ')
                [[ $type ]] || die "there is no queued resource $name in $zone: give --type and --runtime to create it"
                tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
                    --runtime-version="$runtime" ${spot:+--spot}
                [[ ! $dry_run ]] || return 0
                ;;
            # A TPU that was taken away does not come back, and its queued resource stands in the way of a new one.
            'SUSPENDED '* | 'ACTIVE PREEMPTED' | 'ACTIVE TERMINATED') tpu queued-resources delete "$name" --force --quiet ;;
            'FAILED '*)
                die "the request for $name failed; the reason: gcloud compute tpus queued-resources describe $name" \
                    "--zone=$zone; then delete it there and try again"
                ;;
            *)
                [[ $now == "$before" ]] || echo "waiting for $name: $now" >&2
                sleep "$pause"
                ;;
        esac
        before=$now
    done
}

# Whether all the hosts are at this training; ends the script where they are at another.
running() {
    local answer command
    command="cvsa_jax/launch/tpu_host.sh running $(quoted "${train[@]}")"
    answer=$(tpu tpu-vm ssh "$name" --worker=all \
        --command="if [ -e cvsa_jax ]; then $command; else echo idle; fi")
    [[ $answer != *other* ]] || die "another training runs on $name: ${answer#*other: }"$'\n'"wait for it, or take" \
        "another --name"
    [[ $answer == *running* && $answer != *idle* ]]
}

prepare() {
    local bundle=$scratch/code.tgz
    run tar --exclude=__pycache__ -czf "$bundle" cvsa_jax configs launch setup.sh requirements.txt &&
        tpu tpu-vm scp "$bundle" "$name:cvsa_jax.tgz" --worker=all &&
        tpu tpu-vm ssh "$name" --worker=all --command='mkdir -p cvsa_jax && tar -xzf cvsa_jax.tgz -C cvsa_jax' &&
        on all setup &&
        copy_data
}

copy_data() {
    local source missing
    for source in "${sources[@]}"; do
        if [[ $source == gs://* ]]; then
            on all download "$source" || return
            continue
        fi
        missing=$(on all missing "$source") || return
        if [[ $missing || $dry_run ]]; then
            tpu tpu-vm scp "${source%/}" "$name:cvsa_jax/data/" --recurse --worker=all && on all copied "$source" || return
        fi
    done
}

# Returns the training's exit code, or LOST where not every host told one.
follow() {
    local word code log result=0
    if [[ $dry_run ]]; then
        on 0 log
        on all wait
        return
    fi
    # With job control each of the two is a group, of which kill reaches also the ssh; its input must not be the terminal.
    set -m
    on 0 log </dev/null 2>/dev/null &
    log=$!
    { on all wait || echo lost; } </dev/null >"$scratch/ends" &
    set +m
    while read -r word code; do
        case "$word $code" in
            'exit 0') ;;
            "exit $INTERRUPTED") ((result)) || result=$code ;;
            'lost ') result=$LOST ;;
            exit*)
                result=$code
                break
                ;;
            *) echo "$word $code" ;;
        esac
    done <"$scratch/ends"
    # The others wait for the one that failed.
    ((result == 0 || result == INTERRUPTED || result == LOST)) || on all stop || true
    # The log ends by itself, a moment after the training.
    for ((code = 0; code < 50 && result != LOST; code++)); do
        kill -0 "$log" 2>/dev/null || break
        sleep 0.2
    done
    stop_following
    return "$result"
}

# By bash's own list of its jobs, as a Ctrl-C may come between the start of one and the line after it; and by SIGKILL, as
# a shell that has just been forked, with this one's traps still in place, would lose a SIGTERM and follow for ever. Bash
# tells of the jobs that were killed, unless they are no longer its own.
stop_following() {
    local group groups
    groups=$(jobs -p)
    disown -a
    for group in $groups; do
        kill -KILL -- "-$group" 2>/dev/null || true
    done
}

attempt() {
    running || { prepare && on all stop && on all start "${train[@]}"; } || return 1
    follow
}

if [[ ! $dry_run ]]; then
    mkdir -m 700 "$scratch"
    mkfifo "$scratch/ends"
    errors=$scratch/errors
fi
restarts=0
while true; do
    acquire
    code=0
    attempt || code=$?
    ((code)) || break
    # A preemption ends the training first; only then the state tells of it.
    sleep "$pause"
    if ((code == INTERRUPTED)); then
        reason='interrupted'
    elif [[ $(state) != 'ACTIVE READY' ]]; then
        reason='the TPU was taken away'
        code=$INTERRUPTED
    elif ((code == LOST)); then
        reason='the connection was lost'
    else
        echo "error: failed with exit code $code" >&2
        break
    fi
    if ((restarts == max_restarts)); then
        echo "$reason once more after $restarts restarts (--max-restarts); the same command goes on" >&2
        break
    fi
    ((restarts += 1))
    echo "$reason: restart $restarts of at most $max_restarts" >&2
done

if [[ $delete ]]; then
    tpu queued-resources delete "$name" --force --quiet
elif [[ ! $dry_run ]]; then
    echo "$name still exists and is billed; delete it with: gcloud compute tpus queued-resources delete $name" \
        "--zone=$zone${project:+ --project=$project} --force" >&2
fi
exit "$code"
