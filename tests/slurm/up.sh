#!/usr/bin/env bash
# A real SLURM cluster on one machine, for tests: `make slurm-up`, `make slurm-down`. Debian, root, no systemd.
#
# Controller and accounting run on the host, each compute node's slurmd in a network namespace of its own with a bridge
# between them. GPUs are character devices that no driver answers: SLURM hands them out, nobody can compute on them.
# Run again, it starts only what is missing. It refuses to touch a SLURM that is not its own.
#
#   DIR    state, logs and configuration (default /tmp/ouroboros-slurm)
#   NODES, CPUS, MEM, GPUS   nodes, and what each of them claims; by default they share out what the machine has
set -euo pipefail

DIR=${DIR:-/tmp/ouroboros-slurm}
NODES=${NODES:-2} GPUS=${GPUS:-8}
CPUS=${CPUS:-$(( $(nproc) / NODES > 0 ? $(nproc) / NODES : 1 ))}
MEM=${MEM:-$(( $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) * 9 / 10 / NODES ))}
NET=10.77.0 DBPORT=13306 CLUSTER=ouroboros
HOST=$(hostname -s)
export SLURM_CONF=$DIR/etc/slurm.conf

die() { echo "up.sh: $*" >&2; exit 1; }
running() { [ -s "$1" ] && [ -e "/proc/$(cat "$1")/exe" ]; }
until_true() { # until_true WHAT COMMAND...: for half a minute
    local what=$1; shift
    for _ in $(seq 300); do timeout 10 "$@" >/dev/null 2>&1 && return; sleep 0.1; done
    die "$what did not come up; see $DIR/log"
}

[ "$(id -u)" = 0 ] || die "must be root: it makes network namespaces and devices"
if [ -e /etc/slurm/slurm.conf ] && [ "$(readlink /etc/slurm/slurm.conf)" != "$DIR/etc/slurm.conf" ]; then
    die "/etc/slurm/slurm.conf is not this script's; it stays as it is"
fi
for pid in $(pgrep -x slurmctld); do # one that has ended and is not reaped yet has no exe
    if [ -e "/proc/$pid/exe" ] && [ "$pid" != "$(cat "$DIR/run/slurmctld.pid" 2>/dev/null)" ]; then
        die "a slurmctld that is not this script's is running"
    fi
done

packages="slurmctld slurmd slurm-client slurmdbd mariadb-server munge iproute2"
if ! dpkg -s $packages >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # Packages start their services as they are installed; this says no to all of them.
    policy=/usr/sbin/policy-rc.d
    [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap "rm -f $policy" EXIT; }
    apt-get install -y -qq --no-install-recommends $packages >/dev/null || die "apt-get could not install $packages"
fi

mkdir -p "$DIR"/{etc,log,run,state,mysql,dev} /etc/slurm

# Who is who: munge, with the key that its package made. One socket serves every namespace.
install -d -o munge -g munge /run/munge
if ! timeout 5 munge -n >/dev/null 2>&1; then
    rm -f /run/munge/munge.socket.2*
    setpriv --reuid munge --regid munge --init-groups munged
    until_true munge munge -n
fi

# A bridge, and a namespace for every node. Entered by nsenter: `ip netns exec` hides /sys/fs/cgroup from slurmd.
ip link show ourobr >/dev/null 2>&1 || {
    ip link add ourobr type bridge
    ip addr add $NET.1/24 dev ourobr
    ip link set ourobr up
}
names="127.0.0.1 localhost"$'\n'"$NET.1 $HOST"
for i in $(seq "$NODES"); do names+=$'\n'"$NET.$((10 + i)) node$i"; done
for i in $(seq "$NODES"); do
    mkdir -p "/etc/netns/node$i" "$DIR/spool/node$i"
    echo "$names" >"/etc/netns/node$i/hosts"
    ip netns list | grep -qw "node$i" && continue
    ip netns add "node$i"
    ip link del "ouro$i" 2>/dev/null || true # left while the kernel was still taking an old namespace down
    ip link add "ouro$i" type veth peer name eth0 netns "node$i"
    ip link set "ouro$i" master ourobr up
    ip -n "node$i" addr add "$NET.$((10 + i))/24" dev eth0
    ip -n "node$i" link set eth0 up
    ip -n "node$i" link set lo up
done

for g in $(seq 0 $((GPUS - 1))); do
    [ -c "$DIR/dev/gpu$g" ] || mknod "$DIR/dev/gpu$g" c 240 "$g"
done

# Memory is enforced by the accounting plugin; preemption requeues; a lower partition loses its nodes to a higher one.
cat >"$SLURM_CONF" <<EOF
ClusterName=$CLUSTER
SlurmctldHost=$HOST($NET.1)
SlurmUser=root
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=1
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStorageTRES=gres/gpu,gres/gpu:h100
AccountingStoreFlags=job_comment
$(for i in $(seq "$NODES"); do
    echo "NodeName=node$i NodeAddr=$NET.$((10 + i)) CPUs=$CPUS RealMemory=$MEM Gres=gpu:h100:$GPUS"
done)
PartitionName=cpu Nodes=node[1-$NODES] Default=YES MaxTime=1-0 DefMemPerCPU=100 PriorityTier=10
PartitionName=gpu Nodes=node[1-$NODES] MaxTime=2-0 DefMemPerCPU=100 PriorityTier=10
PartitionName=low Nodes=node[1-$NODES] MaxTime=2-0 DefMemPerCPU=100 PriorityTier=1
EOF
printf 'AutoDetect=off\nName=gpu Type=h100 File=%s/dev/gpu[0-%s]\n' "$DIR" $((GPUS - 1)) >"$DIR/etc/gres.conf"
for file in slurm.conf gres.conf; do ln -sfn "$DIR/etc/$file" "/etc/slurm/$file"; done

# Accounting, with one account to charge.
cat >"$DIR/etc/slurmdbd.conf" <<EOF
AuthType=auth/munge
DbdHost=$HOST
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DBPORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/run/slurmdbd.pid
EOF
chmod 600 "$DIR/etc/slurmdbd.conf"
chown mysql "$DIR/mysql"
database="--no-defaults --datadir=$DIR/mysql --user=mysql"
[ -d "$DIR/mysql/mysql" ] ||
    mysql_install_db $database --auth-root-authentication-method=normal --skip-test-db >"$DIR/log/mysql.log" 2>&1
if ! running "$DIR/run/mariadbd.pid"; then
    setsid mariadbd $database --port=$DBPORT --bind-address=127.0.0.1 --socket="$DIR/mysql/s" --pid-file="$DIR/mysql/pid" \
        --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
        >>"$DIR/log/mysql.log" 2>&1 </dev/null &
    echo $! >"$DIR/run/mariadbd.pid"
fi
grant="create user if not exists slurm@'127.0.0.1' identified by 'slurm'; grant all on slurm.* to slurm@'127.0.0.1'"
until_true database mysql --no-defaults -S "$DIR/mysql/s" -uroot -e "$grant"
running "$DIR/run/slurmdbd.pid" || setsid slurmdbd </dev/null >/dev/null 2>&1
until_true accounting sacctmgr -n list cluster
sacctmgr -n list cluster format=cluster%30 | grep -qw $CLUSTER || sacctmgr -iQ add cluster $CLUSTER >/dev/null
if ! sacctmgr -n list account format=account%30 | grep -qw research; then
    sacctmgr -iQ add account research cluster=$CLUSTER >/dev/null
    sacctmgr -iQ add user root account=research defaultaccount=research >/dev/null
fi

running "$DIR/run/slurmctld.pid" || setsid slurmctld </dev/null >/dev/null 2>&1
until_true controller sh -c 'scontrol ping | grep -q UP'
for i in $(seq "$NODES"); do
    running "$DIR/run/slurmd.node$i.pid" && continue
    nsenter --net="/run/netns/node$i" unshare --uts --mount \
        sh -c "mount --bind /etc/netns/node$i/hosts /etc/hosts; hostname node$i; exec setsid slurmd -N node$i" \
        </dev/null >/dev/null 2>&1
done
until_true nodes sh -c "[ \$(sinfo -h -N -p cpu -o %t | grep -cE '^(idle|mix|alloc)\$') = $NODES ]"
echo "SLURM is up: $NODES nodes with $CPUS CPUs, $MEM MiB and $GPUS pretended GPUs each; configuration $SLURM_CONF"
