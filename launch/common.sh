# Sourced by the launch scripts from the root of the repository.
#
# The training's exit codes: 0 finished; 42 interrupted after a checkpoint, so the same command goes on; 2 an error that
# its message explains; anything else a failure. The scripts restart on 42 alone and give back every other code.
# shellcheck shell=bash
# The script that sources this sets what follows.
# shellcheck disable=SC2154

readonly INTERRUPTED=42
train=() # what the training command gets
dry_run='' max_restarts=100
exec 3>&1 # where a dry run prints, also from inside $(…)

die() {
    echo "error: $*" >&2
    exit 2
}

wrong() {
    echo "$usage" >&2
    die "$@"
}

# Reads the arguments: --name=value for the names in `valued` and --name for those in `switches` become variables; what
# the training command takes goes to `train`.
parse() {
    local _key
    while (($#)); do
        _key=${1%%=*} _key=${_key#--} _key=${_key//-/_}
        case $1 in
            --help | -h)
                echo "$usage"
                exit
                ;;
            --config=?* | --config.?*=* | --workdir=?*) train+=("$1") ;;
            --)
                train+=("${@:2}")
                break
                ;;
            --*=?*)
                [[ " $valued " == *" $_key "* ]] || wrong "unknown option $1"
                printf -v "$_key" %s "${1#*=}"
                ;;
            --*)
                [[ " $valued config workdir " != *" $_key "* ]] || wrong "${1%=} needs a value: ${1%=}=…"
                [[ $1 != *= && " $switches " == *" $_key "* ]] || wrong "unknown option $1"
                printf -v "$_key" 1
                ;;
            *) wrong "unexpected argument $1: options are written --name=value" ;;
        esac
        shift
    done
    [[ " ${train[*]-}" == *" --config="* ]] || wrong "--config is missing, e.g. --config=configs/folder.py"
    [[ " ${train[*]-}" == *" --workdir="* ]] || wrong "--workdir is missing, e.g. --workdir=runs/mine"
    whole max-restarts 0
}

# whole OPTION LEAST [MOST]: the option's value must be a whole number.
whole() {
    local _name=${1//-/_}
    if ! [[ ${!_name} =~ ^(0|[1-9][0-9]{0,5})$ ]] || ((_name < $2 || _name > ${3:-999999})); then
        wrong "--$1=${!_name} is not a whole number from $2${3:+ to $3}"
    fi
}

# needs TOOL WHAT-TO-DO: a dry run needs nothing.
needs() {
    [[ $dry_run ]] || command -v "$1" >/dev/null || die "$1 is not on PATH: $2"
}

# The words as a line for a shell.
quoted() {
    local word line=
    for word; do
        [[ $word =~ ^[a-zA-Z0-9_@%+=:,./~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+="${line:+ }$word"
    done
    echo "$line"
}

run() {
    if [[ $dry_run ]]; then quoted "$@" >&3; else "$@"; fi
}

# Like run, but the command takes the place of this process, so that a signal reaches it.
become() {
    if [[ $dry_run ]]; then quoted "$@" >&3; else exec "$@"; fi
}

# install REQUIREMENTS: into .venv, unless the user brings a PYTHON of their own.
install() {
    [[ ${PYTHON-} ]] || run ./setup.sh .venv "$1"
    PYTHON=${PYTHON:-.venv/bin/python}
}

pids=() signalled=''

# What asks this script to end goes on to the training, which saves and exits with 42; a second signal ends it at once.
# Signals within two seconds are one wish: a terminal that closes, or a supervisor, may send several, and to all
# processes of the group.
forward() {
    local signal=TERM
    if [[ $signalled ]]; then
        ((SECONDS - signalled >= 2)) || return 0
        signal=KILL
    fi
    signalled=${signalled:-$SECONDS}
    kill -"$signal" "${pids[@]}" 2>/dev/null || true
}

# together COUNT: runs `process 0` … `process COUNT-1` of the script side by side. Returns 0, or 42 if any of them was
# interrupted, or the code of the first that failed; then the others, which would wait for it, are stopped.
together() {
    local i code result=0
    if [[ $dry_run ]]; then
        for ((i = 0; i < $1; i++)); do process "$i"; done
        return
    fi
    pids=()
    trap forward INT TERM HUP USR1
    for ((i = 0; i < $1; i++)); do
        process "$i" &
        pids+=("$!")
    done
    while ((${#pids[@]})); do
        sleep 0.2 || true # which Ctrl-C ends as well
        for i in "${!pids[@]}"; do
            kill -0 "${pids[i]}" 2>/dev/null && continue
            code=0
            wait "${pids[i]}" 2>/dev/null || code=$?
            unset "pids[i]"
            case $code in
                0) ;;
                "$INTERRUPTED") result=$code ;;
                130) # Ctrl-C, which a terminal sends to the training as well
                    [[ $signalled ]] || failed "$i" "$code" || return "$code"
                    result=$INTERRUPTED
                    ;;
                *)
                    failed "$i" "$code" || return "$code"
                    ;;
            esac
        done
    done
    return "$result"
}

# failed I CODE: says so, stops the others and returns the code.
failed() {
    echo "error: process $1 failed with exit code $2" >&2
    stop
    return "$2"
}

# A process that waits in a collective hears SIGTERM, but cannot act on it.
stop() {
    local i
    ((${#pids[@]})) || return 0
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for ((i = 0; i < 10; i++)); do
        kill -0 "${pids[@]}" 2>/dev/null || break
        sleep 0.2 || true # which Ctrl-C ends as well
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
}

# restarting COMMAND…: again while it returns 42, unless it was this script that was asked to end.
restarting() {
    local code restarts=0
    while true; do
        code=0
        "$@" || code=$?
        [[ $code == "$INTERRUPTED" && ! $signalled ]] || return "$code"
        if ((restarts == max_restarts)); then
            echo "interrupted once more after $restarts restarts (--max-restarts); the same command goes on" >&2
            return "$code"
        fi
        ((restarts += 1))
        echo "interrupted: restart $restarts of at most $max_restarts" >&2
    done
}
