#!/usr/bin/env bash
# What launch/tpu_pod.sh calls on every host of a TPU, in its copy of the repository. Each command can be repeated, as
# gcloud does by itself when it loses a connection.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$HOME/.local/bin:$PATH # where uv is installed
mkdir -p data

# The training holds this lock as long as it lives; a number of a process could belong to another one after a reboot.
lock=train.lock

is_running() {
    ! flock --nonblock "$lock" true
}

marker() {
    local name=${1%/}
    echo "data/.copied-${name##*/}"
}

# Ends where data/ holds a copy of another source of the same name, which this one would be mixed with.
only_copy() {
    [[ ! -e $(marker "$1") ]] || is_copied "$1" || {
        echo "error: data/$(basename "$1") is a copy of $(<"$(marker "$1")"), and not of $1: rename one of them" >&2
        exit 2
    }
}

is_copied() {
    [[ -e $(marker "$1") ]] || return
    local there
    there=$(<"$(marker "$1")")
    [[ $(plain "$there") == "$(plain "$1")" ]]
}

# A source without what may be spelled or left out: a slash at its end, ./ before it.
plain() {
    local source=${1#./}
    echo "${source%/}"
}

mount_bucket() {
    local folder=$HOME/gcs/$1 keys=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
    mountpoint --quiet "$folder" && return
    if ! command -v gcsfuse >/dev/null; then
        curl -fsSL "$site/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
        echo "deb [signed-by=$keys] $site gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
        sudo apt-get update -qq
        sudo apt-get install -qq gcsfuse
    fi
    mkdir -p "$folder"
    # Checkpoints are finished by renaming their folder, which gcsfuse does for so many files at most.
    gcsfuse --implicit-dirs --rename-dir-limit=10000 "$1" "$folder"
}

case ${1-} in
    setup) # The image's own Python is too old; uv brings one that fits.
        command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
        ./setup.sh .venv launch/requirements-tpu.txt
        ;;
    download)
        is_copied "$2" && exit
        only_copy "$2"
        gcloud storage cp "${2%/}" data/ --recursive --no-clobber
        echo "$2" >"$(marker "$2")"
        ;;
    missing)
        only_copy "$2"
        is_copied "$2" || echo missing
        ;;
    copied) echo "$2" >"$(marker "$2")" ;;
    running) # running, other: and what runs there, or idle
        if ! is_running; then
            echo idle
        elif [[ ! -e train.args || $(<train.args) == "${*:2}" ]]; then
            echo running
        else
            echo "other: $(<train.args)"
        fi
        ;;
    start)
        arguments=()
        for argument in "${@:2}"; do
            if [[ $argument == *=gs://* ]]; then
                path=${argument#*=gs://}
                mount_bucket "${path%%/*}"
                argument=${argument%%=*}=$HOME/gcs/$path
            fi
            arguments+=("$argument")
        done
        # Only from here on, so that gcsfuse does not inherit it.
        exec 9>"$lock"
        flock --nonblock 9 || exit 0
        rm -f train.code
        echo "${*:2}" >train.args
        # The inner shell outlives a SIGTERM, to write the code down.
        # shellcheck disable=SC2016
        setsid bash -c 'trap : TERM; "$@"; echo $? >train.code' train env JAX_PLATFORMS=tpu,cpu \
            .venv/bin/python -m cvsa_jax.main "${arguments[@]}" >train.log 2>&1 </dev/null &
        echo $! >train.pid
        ;;
    log)
        tail --lines=100 --follow=name --retry train.log &
        flock --shared "$lock" true
        sleep 0.3 # for the last lines
        kill $! 2>/dev/null || true
        ;;
    wait) # for the end of the training; then the exit code, and the end of the log if it failed
        flock --shared "$lock" true
        code=$(cat train.code 2>/dev/null || echo 1)
        case $code in
            0 | 42) ;;
            *) tail --lines=20 train.log | sed "s/^/$(hostname): /" ;;
        esac
        echo "exit $code"
        ;;
    stop)
        if is_running; then
            kill -KILL -- "-$(<train.pid)" || true
            flock "$lock" true
        fi
        ;;
    *)
        echo 'error: this is for launch/tpu_pod.sh to call' >&2
        exit 2
        ;;
esac
