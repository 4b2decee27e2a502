#!/bin/sh
# Installs Slurm for the tests of cluster/slurm, if there is none and apt can do it.
missing=""
for name in slurmctld slurmd munged sbatch; do
    PATH="$PATH:/usr/sbin" command -v "$name" >/dev/null || missing="$missing $name"
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null; then
    echo "no Slurm found: the tests of its jobs will be skipped" >&2
    exit 0
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo -n"
echo "installing Slurm for the tests of its jobs" >&2
if ! { $run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq \
    --no-install-recommends slurmctld slurmd slurm-client munge; } >/dev/null 2>&1; then
    echo "Slurm could not be installed: the tests of its jobs will be skipped" >&2
fi
