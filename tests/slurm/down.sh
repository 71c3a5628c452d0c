#!/usr/bin/env bash
# Ends what up.sh began: cancels its jobs, stops its processes by their pid files, removes its namespaces and files.
set -uo pipefail
DIR=${DIR:-/tmp/ouroboros-slurm}
export SLURM_CONF=$DIR/etc/slurm.conf
[ -d "$DIR" ] || { echo "down.sh: nothing at $DIR"; exit 0; }

timeout 10 scancel --user=root >/dev/null 2>&1
sleep 1
for file in "$DIR"/run/slurmd.*.pid "$DIR"/run/{slurmctld,slurmdbd,mariadbd}.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null
    for _ in $(seq 100); do [ -e "/proc/$pid/exe" ] || break; sleep 0.1; done
    [ -e "/proc/$pid/exe" ] && kill -9 "$pid" 2>/dev/null
done
for name in $(ip netns list | awk '/^node[0-9]+/ {print $1}'); do
    ip netns del "$name"
    rm -rf "/etc/netns/$name"
done
ip link del ourobr 2>/dev/null
for file in slurm.conf gres.conf; do
    [ "$(readlink "/etc/slurm/$file")" = "$DIR/etc/$file" ] && rm "/etc/slurm/$file"
done
rmdir /etc/slurm 2>/dev/null
rm -rf "$DIR"
echo "SLURM is down"
