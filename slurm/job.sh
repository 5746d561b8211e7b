# shellcheck shell=bash
# What the templates share. Nothing here is evaluated a second time, so a path or a subject may hold any characters.

# However a job ends short of its work, its stage is named: in its output, and where pipeline.sh looks for it.
why=''
trap 'tell_failure $?' EXIT
trap 'fail 143 "ended by SIGTERM: out of time, preempted or cancelled"' TERM
tell_failure() {
    [ "$1" -ne 0 ] || return 0
    local text
    text="error: stage $SLURM_JOB_NAME failed (job $(job_name), exit $1): ${why:-see above}"
    echo "$text" >&2
    [ -n "${VESSELGAN_FAILURES:-}" ] || return 0
    mkdir -p -- "$VESSELGAN_FAILURES" && echo "$text" >"$VESSELGAN_FAILURES/$(job_name)"
}

# End the job with a code and the reason.
fail() {
    why=$2
    exit "$1"
}

job_name() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}

# Go to the checkout, where sbatch was called unless VESSELGAN_HOME says otherwise, and take the site's settings.
enter() {
    local home=${VESSELGAN_HOME:-$SLURM_SUBMIT_DIR} site=${VESSELGAN_SITE:-}
    [ -d "$home/launch" ] || fail 2 "$home is not a checkout of vesselgan: submit from one, or set VESSELGAN_HOME"
    cd -- "$home" || fail 2 "$home cannot be entered"
    # What an earlier start of this job said, which was preempted, is over.
    [ -z "${VESSELGAN_FAILURES:-}" ] || rm -f -- "$VESSELGAN_FAILURES/$(job_name)"
    [ -n "$site" ] || { [ -f slurm/site.sh ] && site=slurm/site.sh || site=slurm/site.sh.example; }
    [ -f "$site" ] || fail 2 "VESSELGAN_SITE=$site is not there: name your site's settings, or unset it"
    why="the site's settings, $site"
    set +u # an environment's own scripts may not be so strict
    # shellcheck source=slurm/site.sh.example
    . "$site"
    set -u
    why=''
    # The batch shell runs on the first node, where rank 0 does too. Ports below those that systems hand out.
    export MASTER_ADDR=${MASTER_ADDR:-$(hostname)} MASTER_PORT=${MASTER_PORT:-$((15000 + SLURM_JOB_ID % 10000))}
    # The checkout's own package, also where the environment or the container has another one.
    export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    echo "$SLURM_JOB_NAME: job $(job_name), start $((${SLURM_RESTART_COUNT:-0} + 1)), on ${SLURM_JOB_NODELIST:-?}"
}

# Set `words` from the command line. `--tasks DIR` stands for the words in DIR/<number of the array's task>, one a line.
read_words() {
    words=("$@")
    [ "${1:-}" = --tasks ] || return 0
    [ -n "${SLURM_ARRAY_TASK_ID:-}" ] || fail 2 "--tasks needs an array: sbatch --array=0-N"
    [ -f "$2/$SLURM_ARRAY_TASK_ID" ] || fail 2 "$2/$SLURM_ARRAY_TASK_ID: no such task"
    mapfile -t words <"$2/$SLURM_ARRAY_TASK_ID"
    words+=("${@:3}")
}

# run_watched ASK WORD...: run WORD...; when the job is asked to stop (`asked_by`), call ASK until it has ended: `code`.
run_watched() {
    local ask=$1 child
    shift
    code=0 asked_by=''
    trap 'asked_by=USR1' USR1
    trap 'asked_by=${asked_by:-TERM}' TERM
    "$@" &
    child=$!
    wait "$child" || code=$?
    # An interrupted wait has no exit code yet. Ask again and again: a run that starts forgets earlier requests.
    while kill -0 "$child" 2>/dev/null; do
        [ -z "$asked_by" ] || "$ask" "$child"
        sleep 1
    done
    [ -z "$asked_by" ] || { code=0 && wait "$child" || code=$?; }
}

# Train until the run is finished, or until it was asked to stop and is queued again: train COMMAND WORD...
train() {
    local command=$1 word before=''
    run_dir=''
    shift
    for word in "$@"; do
        [ "$before" != --run_dir ] || run_dir=$word
        [[ $word != --run_dir=* ]] || run_dir=${word#*=}
        before=$word
    done
    [ -n "$run_dir" ] || fail 2 "name the run, so that the job can stop and resume it: --run_dir DIR"
    rm -f "$run_dir/requeue"
    # A rank that dies is named by the others, which then leave by themselves; --wait ends those that do not.
    run_watched ask_run srun --wait=300 "${PYTHON[@]}" -m vesselgan "${command//_/-}" "$@"
    rm -f "$run_dir/stop"
    # Written after the save, so it counts more than an exit code, which a launcher may have changed.
    if [ -f "$run_dir/requeue" ]; then
        requeue "$run_dir"
    elif [ "$code" -ne 0 ]; then
        fail "$code" "$run_dir: see above; not queued again, because it would fail again"
    elif [ ! -f "$run_dir/finished.json" ]; then
        fail 75 "$run_dir: stopped before its end, and not to be queued again (see above)"
    fi
}

ask_run() { [ ! -f "$run_dir/config.yaml" ] || : >"$run_dir/stop"; }

# Run a study, or queue it again when it was asked to stop: study WORD... It is no step of srun, which would kill it at
# the signal that lets its U-Net save.
study() {
    run_watched ask_study "${PYTHON[@]}" -m vesselgan study "$@"
    [ "$code" -ne 0 ] || return 0
    [ -n "$asked_by" ] || fail "$code" "vesselgan study"
    # A step of it that takes longer than the job may would be begun for ever.
    [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ] || fail 75 "queued again 100 times already: call pipeline.sh again"
    requeue "the study"
}

ask_study() { kill -TERM "$1" 2>/dev/null || true; }

# Queue this job again. Where that cannot be done from here, say how; the chain must not continue with half a run.
requeue() {
    # Slurm's end, not the warning before it. Where it wants the job again it queues it itself.
    [ "$asked_by" != TERM ] || fail 143 "$1 is saved; ended by SIGTERM: cancelled, preempted or out of time"
    local answer=0
    scontrol requeue "$SLURM_JOB_ID" || answer=$?
    # Above 128 a signal ended it: a busy Slurm ends the job that it queues again, scontrol too, before it has answered.
    if [ "$answer" -eq 0 ] || [ "$answer" -gt 128 ]; then
        echo "$SLURM_JOB_NAME: job $(job_name) is queued again and resumes from $1"
        exit 0
    fi
    fail 75 "$1 is saved, but scontrol cannot queue the job again from here: submit it again, or call pipeline.sh again"
}

# Run the commands in turn, on one task each, separated by an empty word: run_each COMMAND WORD... ['' COMMAND WORD...]
run_each() {
    local command=() word
    for word in "$@" ''; do
        if [ -n "$word" ]; then
            command+=("$word")
        elif [ "${#command[@]}" -gt 0 ]; then
            srun --nodes=1 --ntasks=1 "${PYTHON[@]}" -m vesselgan "${command[0]//_/-}" "${command[@]:1}" ||
                fail "$?" "vesselgan ${command[0]}"
            command=()
        fi
    done
}
