#!/bin/bash
# Runs a step of ast-ray on the nodes of a Slurm job, in a Ray cluster that lives as long as the job:
#
#   sbatch cluster/slurm/job.sh train esc50 --data /shared/esc50 --out /shared/run --workers 8
#
# Submit it from the checkout, on a disk that all nodes share. Steps: start Ray on every node; wait
# until all have joined; run the step on the first node; end Ray. The job has the step's status.
# Before the time limit and when preempted, it is put back into the queue, and the step resumes.
#
# The five values to change, here or as options of sbatch:
#SBATCH --partition=gpu
#SBATCH --nodes=2
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#
#SBATCH --ntasks-per-node=1
#SBATCH --job-name=ast-ray
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# This script alone is told, a minute before the limit: time for a checkpoint.
#SBATCH --signal=B:TERM@60
set -uo pipefail

python=${AST_RAY_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}
join_s=${AST_RAY_JOIN_S:-300}             # longest wait for all nodes
max_restarts=${AST_RAY_MAX_RESTARTS:-100} # a job too short to get anywhere ends some day
# AST_RAY_LOGS: a folder on the shared disk that is to keep Ray's logs, for finding faults

say() { echo "job.sh: $*" >&2; }

# In a task of srun on each node: Ray, in a folder of its own, until USR1 says that the step is over.
run_node() {
    local folder ray="" over="" told=""
    folder=$(mktemp -d /tmp/ray.XXXXXX) || exit 1 # short, as paths of sockets must be
    trap 'over=yes; [ -z "$ray" ] || kill -TERM "$ray" 2>/dev/null' USR1
    # Slurm sends TERM when it ends the job: Ray is left the time that a checkpoint takes.
    trap 'told=yes; (sleep 20 && kill -USR1 $$ 2>/dev/null) &' TERM
    local options=(--block --disable-usage-stats "--temp-dir=$folder"
        "--num-cpus=$SLURM_CPUS_ON_NODE" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}"
        # Any free port, as other jobs may share the node.
        --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0)
    # Ray looks at the machine alone, not at this job's share.
    local limit_mb=${SLURM_MEM_PER_NODE:-$((${SLURM_MEM_PER_CPU:-0} * SLURM_CPUS_ON_NODE))}
    options+=("--memory=$("$AST_RAY_PYTHON" -c "from cluster.local_ray import worker_bytes
print(worker_bytes($limit_mb * 2**20 or None))")") || exit 1
    if [ "$SLURM_PROCID" = 0 ]; then
        options+=(--head "--node-ip-address=$AST_RAY_HEAD" "--port=$AST_RAY_PORT"
            "--dashboard-port=$AST_RAY_DASHBOARD_PORT" "--ray-client-server-port=$AST_RAY_CLIENT_PORT")
    else
        # Ray itself tries for some seconds only.
        until (exec 3<>"/dev/tcp/$AST_RAY_HEAD/$AST_RAY_PORT") 2>/dev/null || [ -n "$over" ]; do
            sleep 1
        done
        options+=("--address=$AST_RAY_HEAD:$AST_RAY_PORT")
    fi
    if [ -z "$over" ]; then
        # In a session of its own, where signals for this task do not reach it.
        setsid "${AST_RAY_PYTHON%/*}/ray" start "${options[@]}" >"$folder/start.log" 2>&1 &
        ray=$!
        while kill -0 "$ray" 2>/dev/null; do wait "$ray"; done
        if [ -z "$over$told" ]; then
            echo "job.sh: Ray ended on $SLURMD_NODENAME:" >&2
            tail -n 20 "$folder/start.log" >&2
        fi
        kill -KILL -- "-$ray" 2>/dev/null
    fi
    if [ -n "${AST_RAY_LOGS:-}" ]; then
        mkdir -p "$AST_RAY_LOGS" &&
            cp -r "$folder/session_latest/logs" "$AST_RAY_LOGS/$SLURM_JOB_ID-$SLURMD_NODENAME"
    fi
    rm -rf "$folder"
    [ -n "$over$told" ]
}

address_of() { # a node's address, by which Slurm reaches it
    local name
    name=$(scontrol show node "$1" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    # Debian's /etc/hosts has 127.0.1.1 for the machine itself.
    getent ahostsv4 "$name" | awk '$1 != "127.0.1.1" { print $1; exit }'
}

free_ports() { # below those that the kernel gives to clients
    "$python" - "$1" "$2" <<'PY'
import contextlib, random, socket, sys

free = []
for port in random.sample(range(20_000, 32_000), 1_000):
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.bind((sys.argv[1], port))
        free.append(port)
    if len(free) == int(sys.argv[2]):
        break
print(*free)
PY
}

# Run a command until it ends, and set `status`. TERM for this script goes on to the command.
run() {
    "$@" &
    command=$!
    [ -z "$stopping" ] || kill -TERM "$command"
    wait "$command"
    status=$?
    while kill -0 "$command" 2>/dev/null; do # the wait ended by a signal
        wait "$command"
        status=$?
    done
    command=""
}

# End Ray on all nodes.
end_nodes() {
    trap '' USR2
    kill -USR1 "$nodes" 2>/dev/null # srun passes it on to every node
    for _ in {1..60}; do
        kill -0 "$nodes" 2>/dev/null || return
        sleep 0.5
    done
    scancel --signal=KILL --quiet "$SLURM_JOB_ID" # the nodes' tasks, not this script
}

cd "$SLURM_SUBMIT_DIR" || exit 1
[ -f ray_job.py ] || { say "$PWD has no ray_job.py: run sbatch in the checkout"; exit 1; }
[ -x "$python" ] || { say "$python is missing: set AST_RAY_PYTHON to the environment's"; exit 1; }

stopping="" command="" status=0
trap 'stopping=yes; [ -z "$command" ] || kill -TERM "$command"' TERM
trap 'say "Ray has ended before the step"; [ -z "$command" ] || kill -TERM "$command"' USR2

export AST_RAY_PYTHON=$python
AST_RAY_HEAD=$(address_of "$SLURMD_NODENAME")
[ -n "$AST_RAY_HEAD" ] || { say "no address of $SLURMD_NODENAME"; exit 1; }
read -r AST_RAY_PORT AST_RAY_DASHBOARD_PORT AST_RAY_CLIENT_PORT <<<"$(free_ports "$AST_RAY_HEAD" 3)"
export AST_RAY_HEAD AST_RAY_PORT AST_RAY_DASHBOARD_PORT AST_RAY_CLIENT_PORT
# A token for each job, in the environment alone: another job or user cannot join or call this Ray.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
unset RAY_AUTH_TOKEN_PATH RAY_ADDRESS
address=$AST_RAY_HEAD:$AST_RAY_PORT
say "start ${SLURM_RESTART_COUNT:-0}: Ray at $address on $SLURM_JOB_NODELIST," \
    "dashboard at $SLURMD_NODENAME:$AST_RAY_DASHBOARD_PORT"

# A task sees all CPUs and GPUs of its node, whatever it is bound to.
srun --export=ALL --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=1 --quiet \
    bash -c "$(declare -f run_node); run_node" &
nodes=$!
(
    while kill -0 "$nodes" 2>/dev/null; do sleep 1; done
    kill -USR2 $$ 2>/dev/null
) &

export RAY_ADDRESS=$address
run "$python" -m cluster.join "$address" --num "$SLURM_JOB_NUM_NODES" --timeout "$join_s"
[ "$status" != 0 ] || run "$python" ray_job.py "$@"

end_nodes
# Not after scancel, nor when Slurm itself puts the job back.
if [ -n "$stopping" ] && [ "$status" -ge 128 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$max_restarts" ] &&
    [ "$(squeue --noheader --job="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
    say "stopped before the end: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
