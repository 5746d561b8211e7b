# shellcheck shell=bash
# What the templates share: sourced by them, does nothing by itself. Nothing here is evaluated a second time, so a path
# or a subject may hold any characters.

# Go to the checkout, which is where sbatch was called unless VESSELGAN_HOME says otherwise, and take the site's settings.
enter() {
    cd "${VESSELGAN_HOME:-$SLURM_SUBMIT_DIR}" || exit
    [ -d launch ] || fail 2 "$PWD is not a checkout of vesselgan: submit from one, or set VESSELGAN_HOME"
    local site=${VESSELGAN_SITE:-slurm/site.sh}
    [ -f "$site" ] || site=slurm/site.sh.example
    set +u # an environment's own scripts may not be so strict
    # shellcheck source=slurm/site.sh.example
    . "$site"
    set -u
    # The batch shell runs on the first node, where rank 0 does too. Ports below those that systems hand out.
    export MASTER_ADDR=${MASTER_ADDR:-$(hostname)} MASTER_PORT=${MASTER_PORT:-$((15000 + SLURM_JOB_ID % 10000))}
    export PYTHONUNBUFFERED=1
    echo "$SLURM_JOB_NAME: job $(job_name), start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}"
}

# Set `words` from the command line. `--tasks DIR` stands for the words in DIR/<number of the array's task>, one a line.
read_words() {
    words=("$@")
    [ "${1:-}" = --tasks ] || return 0
    mapfile -t words <"$2/${SLURM_ARRAY_TASK_ID:?--tasks needs an array: sbatch --array=0-N}"
    words+=("${@:3}")
}

# Train until the run is finished, or until it was asked to stop and is queued again: train VERB WORD...
train() {
    local verb=$1 run_dir='' code=0 training word before=''
    shift
    for word in "$@"; do
        [ "$before" != --run_dir ] || run_dir=$word
        [[ $word != --run_dir=* ]] || run_dir=${word#*=}
        before=$word
    done
    [ -n "$run_dir" ] || fail 2 "name the run, so that the job can stop it and go on with it: --run_dir DIR"
    rm -f "$run_dir/requeue"
    is_asked=''
    trap 'is_asked=yes' USR1 TERM
    # A rank that dies is named by the others, which then leave by themselves; --wait ends those that do not.
    srun --wait=300 "${PYTHON[@]}" "launch/$verb.py" "$@" &
    training=$!
    wait "$training" || code=$?
    # An interrupted wait has told nothing yet. Asked again and again: a run that begins forgets earlier requests.
    while kill -0 "$training" 2>/dev/null; do
        [ -z "$is_asked" ] || [ ! -f "$run_dir/config.yaml" ] || : >"$run_dir/stop"
        sleep 1
    done
    [ -z "$is_asked" ] || { code=0 && wait "$training" || code=$?; }
    rm -f "$run_dir/stop"
    # Written after the save, so it counts more than an exit code, which a launcher may have changed.
    if [ -f "$run_dir/requeue" ]; then
        go_on_later "$run_dir"
    elif [ "$code" -ne 0 ]; then
        fail "$code" "$run_dir: see above; not queued again, because it would fail again"
    elif [ ! -f "$run_dir/finished.json" ]; then
        fail 75 "$run_dir: stopped before its end, and not to be queued again (see above)"
    fi
}

# Queue this job again. Where that cannot be done from here, say how; the chain must not go on with half a run.
go_on_later() {
    if scontrol requeue "$SLURM_JOB_ID"; then
        echo "$SLURM_JOB_NAME: job $(job_name) is queued again and goes on from $1"
        exit 0
    fi
    fail 75 "$1 is saved, but scontrol cannot queue the job again from here: submit it again, or call pipeline.sh again"
}

# Run the commands in turn, on one task each; an empty word parts them: run_each VERB WORD... ['' VERB WORD...]
run_each() {
    local command=() word
    for word in "$@" ''; do
        if [ -n "$word" ]; then
            command+=("$word")
        elif [ "${#command[@]}" -gt 0 ]; then
            srun --nodes=1 --ntasks=1 "${PYTHON[@]}" "launch/${command[0]}.py" "${command[@]:1}" ||
                fail "$?" "launch/${command[0]}.py"
            command=()
        fi
    done
}

# End the job with a code, its stage by name; pipeline.sh shows what stands in VESSELGAN_FAILURES.
fail() {
    local text
    text="error: stage $SLURM_JOB_NAME failed (job $(job_name), exit $1): $2"
    echo "$text" >&2
    [ -z "${VESSELGAN_FAILURES:-}" ] || echo "$text" >>"$VESSELGAN_FAILURES"
    exit "$1"
}

job_name() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}
