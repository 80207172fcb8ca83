#!/usr/bin/env bash
# Private database and message servers for tests and benches. All files of a server are in its directory DIR. Servers
# that this script did not start are never changed. Servers listen on 127.0.0.1 only, on a free port that stays the same.
#
#   services.sh postgres start DIR [PORT]          starts (again, with the same data and port) and prints the URL
#   services.sh postgres stop DIR [fast|immediate]
#   services.sh postgres standby DIR PRIMARY_DIR   starts a copy of that server, which follows it, and prints its URL
#   services.sh postgres promote DIR               ends the following: it accepts writes from now on
#   services.sh rabbitmq start DIR [PORT]          the same for RabbitMQ
#   services.sh rabbitmq join DIR NODE_DIR         starts a node that joins the cluster of that one, and prints its URL
#   services.sh rabbitmq stop DIR                  orderly
#   services.sh rabbitmq kill DIR                  SIGKILL, as a power failure would; the data stays
#   services.sh rabbitmq ctl DIR ARG...            rabbitmqctl for this node
#   services.sh remove DIR...                      stops the servers in DIR or below it and deletes their directories
#
# SERVICES_OWNER=PID: the servers stop soon after that process ends, for whatever reason.
# SERVICES_FROM="binaries apt docker": the sources of the servers; the first one that works is used.
#
# DIR contains: service (postgres or rabbitmq), port, url, log, running (a token while it should run), and the data.
set -euo pipefail

# Removes the caller's settings for other servers, so that only this file configures the private ones.
for variable in "${!PG@}" "${!RABBITMQ_@}" "${!ERL_@}"; do unset "$variable"; done

readonly POSTGRES_IMAGE=postgres:15 RABBITMQ_IMAGE=rabbitmq:3.13
readonly SERVICES_FROM=${SERVICES_FROM:-binaries apt docker}
readonly START_SECONDS=60 STOP_SECONDS=30

note() { printf 'services: %s\n' "$*" >&2; }
fail() {
    note "$*"
    exit 1
}
usage() {
    sed -n '5,14s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

is_root() { [[ $(id -u) == 0 ]]; }

# ---- users -----------------------------------------------------------------------------------------------------------

# The servers do not run as root. When this script does, they run as the user of their package, or else as nobody.
server_user() {
    if ! is_root; then
        id -un
    elif id "$1" >/dev/null 2>&1; then
        echo "$1"
    else
        echo nobody
    fi
}

# as_server SERVICE DIR COMMAND...: runs COMMAND as the server's user with the home directory DIR.
as_server() { (exec_as_server "$@"); }

# exec_as_server: the same, but replaces this shell. After `exec_as_server ... &`, $! is the id of the command's process.
exec_as_server() {
    local user dir=$2
    user=$(server_user "$1")
    shift 2
    cd "$dir"
    if is_root; then
        exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups env HOME="$dir" "$@"
    else
        exec env HOME="$dir" "$@"
    fi
}

# prepare SERVICE DIR: makes DIR the server's directory. It must be empty, or already belong to this service.
prepare() {
    local service=$1 dir=$2
    if [[ -e $dir/service ]]; then
        [[ $(<"$dir/service") == "$service" ]] || fail "$dir belongs to $(<"$dir/service")"
        return
    fi
    [[ -z $(ls -A "$dir") ]] || fail "$dir is not empty and holds no server; give a directory of its own"
    chmod 711 "$dir"
    if is_root; then chown "$(server_user "$service")" "$dir"; fi
    as_server "$service" / test -w "$dir" ||
        fail "user $(server_user "$service") cannot reach $dir; choose one below a directory open to all, such as /tmp"
    echo "$service" >"$dir/service"
}

# ---- ports -----------------------------------------------------------------------------------------------------------

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Prints a port that nothing listens on, below the range that the kernel assigns. Two callers may get the same port: the one
# that fails to bind it picks another one.
free_port() {
    local port
    while port=$((20000 + ${SRANDOM:-$RANDOM} % 12000)) && answers "$port"; do :; done
    echo "$port"
}

# ---- installing ------------------------------------------------------------------------------------------------------

can_apt() { is_root && [[ -e /etc/debian_version ]] && command -v apt-get >/dev/null; }

# Installs Debian packages without starting their services. An existing policy file belongs to the administrator and stays.
apt_install() {
    local policy=/usr/sbin/policy-rc.d made_policy=
    note "installing $* with apt-get"
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        made_policy=yes
    fi
    local status=0
    {
        apt-get update -qq &&
            DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
                -o DPkg::Lock::Timeout=600 "$@"
    } </dev/null >/dev/null || status=$?
    if [[ $made_policy ]]; then rm -f "$policy"; fi
    return "$status"
}

can_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1; }

# provide SERVICE: prints the source of the server: a directory with its programs, or "docker".
provide() {
    local service=$1 source found
    for source in $SERVICES_FROM; do
        case $source in
            binaries)
                if found=$("find_$service"); then
                    echo "$found"
                    return
                fi
                ;;
            apt)
                if can_apt && apt_install "$(package_of "$service")" && found=$("find_$service"); then
                    echo "$found"
                    return
                fi
                ;;
            docker)
                if can_docker; then
                    echo docker
                    return
                fi
                ;;
            *) fail "SERVICES_FROM: unknown source $source" ;;
        esac
    done
    fail "no $service server here: install it (Debian: apt-get install $(package_of "$service")) or start Docker"
}

package_of() {
    case $1 in
        postgres) echo postgresql ;;
        rabbitmq) echo rabbitmq-server ;;
    esac
}

# ---- running ---------------------------------------------------------------------------------------------------------

# Marks the server in DIR as running. Stops it when its owner has ended, unless the mark has changed.
watch_owner() {
    local dir=$1 token=$$-${SRANDOM:-$RANDOM}
    echo "$token" >"$dir/running"
    [[ ${SERVICES_OWNER-} ]] || return 0
    (
        trap '' INT HUP TERM
        exec </dev/null >/dev/null 2>&1
        cd /
        while alive "$SERVICES_OWNER"; do
            [[ $(cat "$dir/running") == "$token" ]] || exit 0
            sleep 0.5
        done
        if [[ $(cat "$dir/running") == "$token" ]]; then stop_in "$dir"; fi
    ) &
}

# alive PID: a zombie counts as ended, because process 1 of a container may never reap it.
alive() {
    local stat
    kill -0 "$1" 2>/dev/null || return 1
    if [[ -d /proc/self ]]; then
        read -r stat 2>/dev/null <"/proc/$1/stat" || return 1
        [[ ${stat##*) } != Z* ]]
    fi
}

# runs_here PID DIR: whether the process is alive and belongs to DIR. The id in an old file may now be another process's.
runs_here() {
    alive "$1" || return 1
    [[ ! -d /proc/self ]] || grep -qaF -- "$2" "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null
}

# wait_gone PID SECONDS: waits for the end of the process; fails after SECONDS.
wait_gone() {
    local left=$(($2 * 10))
    while alive "$1"; do
        ((left-- > 0)) || return 1
        sleep 0.1
    done
}

stop_in() {
    local dir=$1
    [[ -e $dir/service ]] || return 0
    rm -f "$dir/running"
    if [[ -e $dir/container ]]; then
        docker stop "$(<"$dir/container")" >/dev/null
    else
        "stop_$(<"$dir/service")" "$dir" "${2-}"
    fi
}

remove() {
    local root dir
    for root in "$@"; do
        [[ -d $root ]] || continue
        root=$(absolute "$root")
        while IFS= read -r -d '' dir; do
            dir=${dir%/service}
            case $(<"$dir/service") in postgres | rabbitmq) ;; *) continue ;; esac
            stop_in "$dir" immediate || note "could not stop the server in $dir"
            if [[ -e $dir/container ]]; then
                docker rm -fv "$(<"$dir/container")" >/dev/null || note "could not remove the container of $dir"
            fi
            rm -rf "$dir"
        done < <(find "$root" -type f -name service -print0)
    done
}

# docker_start DIR PORT CONTAINER_PORT ARG...: starts a container that keeps its data until it is removed.
docker_start() {
    local dir=$1 port=$2 inside=$3 name
    shift 3
    if [[ -e $dir/container ]]; then
        docker start "$(<"$dir/container")" >/dev/null
        return
    fi
    name=dataloader-test-$(<"$dir/service")-$$-${SRANDOM:-$RANDOM}
    echo "$name" >"$dir/container"
    docker run -d --name "$name" -p "127.0.0.1:$port:$inside" "$@" >/dev/null && return
    docker rm -fv "$name" >/dev/null 2>&1 || true
    rm -f "$dir/container"
    return 1
}

# start_with_port DIR PORT TRY: calls `TRY DIR PORT` with the given port, or else the previous one. Without either, it
# tries free ports until the server can bind one.
start_with_port() {
    local dir=$1 port=$2 try=$3 attempt
    if [[ ! $port && -e $dir/port ]]; then port=$(<"$dir/port"); fi
    if [[ $port ]]; then
        "$try" "$dir" "$port" || fail "cannot start $(<"$dir/service") on port $port: $(last_lines "$dir/log")"
    else
        for attempt in {1..10}; do
            port=$(free_port)
            if "$try" "$dir" "$port"; then break; fi
            # Another server took the port first, so another port may work. Any other error would only occur again.
            answers "$port" || grep -qiE 'in use|eaddrinuse|already allocated' "$dir/log" ||
                fail "cannot start $(<"$dir/service"): $(last_lines "$dir/log")"
            [[ $attempt != 10 ]] || fail "found no free port for $(<"$dir/service"): $(last_lines "$dir/log")"
        done
    fi
    echo "$port" >"$dir/port"
}

last_lines() { tail -n 15 "$1" 2>/dev/null || true; }

# ---- PostgreSQL ------------------------------------------------------------------------------------------------------

# Prints the directory of the newest installed server that the server's user can run.
find_postgres() {
    local bin newest=
    while IFS= read -r bin; do
        if [[ -x $bin/initdb && -x $bin/pg_ctl ]] && as_server postgres / test -x "$bin/postgres"; then newest=$bin; fi
    done < <(
        if command -v postgres >/dev/null; then dirname "$(command -v postgres)"; fi
        printf '%s\n' /usr/pgsql-*/bin /opt/homebrew/opt/postgresql@*/bin /usr/lib/postgresql/*/bin | sort -V
    )
    [[ $newest ]] && echo "$newest"
}

start_postgres() {
    local dir=$1 port=${2-}
    POSTGRES_BIN=$(provide postgres)
    prepare postgres "$dir"
    if [[ ! -e $dir/password ]]; then
        (umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$dir/password")
    fi
    if [[ $POSTGRES_BIN != docker && ! -e $dir/data/PG_VERSION ]]; then
        if is_root; then chown "$(server_user postgres)" "$dir/password"; fi
        # Only initdb's writes are not synced. The server itself runs with its default durability.
        as_server postgres "$dir" "$POSTGRES_BIN/initdb" --pgdata="$dir/data" --username=postgres --pwfile="$dir/password" \
            --auth=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$dir/log" 2>&1 ||
            fail "initdb failed: $(last_lines "$dir/log")"
        cat >>"$dir/data/postgresql.conf" <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
CONF
    fi
    if ! postgres_runs "$dir"; then
        start_with_port "$dir" "$port" try_postgres
        watch_owner "$dir"
    fi
    echo "postgres://postgres:$(<"$dir/password")@127.0.0.1:$(<"$dir/port")/postgres" | tee "$dir/url"
}

standby_postgres() {
    local dir=$1 primary=$2
    POSTGRES_BIN=$(provide postgres)
    [[ $POSTGRES_BIN != docker && -d $primary/data ]] || fail "a standby needs the programs of PostgreSQL on this machine"
    prepare postgres "$dir"
    cp "$primary/password" "$dir/password"
    PGPASSWORD=$(<"$dir/password") as_server postgres "$dir" "$POSTGRES_BIN/pg_basebackup" --pgdata="$dir/data" --no-sync \
        --host=127.0.0.1 --port="$(<"$primary/port")" --username=postgres --write-recovery-conf --checkpoint=fast \
        >"$dir/log" 2>&1 || fail "pg_basebackup failed: $(last_lines "$dir/log")"
    start_postgres "$dir"
}

promote_postgres() {
    local dir=$1
    as_server postgres "$dir" "$(find_postgres)/pg_ctl" promote --silent --wait --pgdata="$dir/data" ||
        fail "cannot promote the server in $dir: $(last_lines "$dir/log")"
}

postgres_runs() {
    if [[ -e $1/container ]]; then
        [[ $(docker inspect -f '{{.State.Running}}' "$(<"$1/container")" 2>/dev/null) == true ]]
    else
        runs_here "$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)" "$1"
    fi
}

try_postgres() {
    local dir=$1 port=$2 left=$((START_SECONDS * 10))
    if [[ $POSTGRES_BIN == docker ]]; then
        POSTGRES_PASSWORD=$(<"$dir/password") docker_start "$dir" "$port" 5432 -e POSTGRES_PASSWORD \
            -e POSTGRES_INITDB_ARGS='--encoding=UTF8 --locale=C.UTF-8 --auth-host=scram-sha-256' \
            "$POSTGRES_IMAGE" -c max_connections=200 2>"$dir/log" || return 1
        # Checks over TCP: while the image initializes, its server listens on a socket only.
        until docker exec "$(<"$dir/container")" pg_isready -q -h 127.0.0.1; do
            ((left-- > 0)) || return 1
            sleep 0.1
        done
    else
        : >"$dir/log"
        if is_root; then chown "$(server_user postgres)" "$dir/log"; fi
        as_server postgres "$dir" "$POSTGRES_BIN/pg_ctl" start --silent --wait --timeout="$START_SECONDS" \
            --pgdata="$dir/data" --log="$dir/log" --options="-p $port" >/dev/null 2>&1
    fi
}

stop_postgres() {
    local dir=$1 mode=${2:-fast} pid
    postgres_runs "$dir" || return 0
    pid=$(head -n 1 "$dir/data/postmaster.pid")
    case $mode in
        fast) kill -INT "$pid" ;;
        immediate) kill -QUIT "$pid" ;;
        *) usage ;;
    esac
    wait_gone "$pid" "$STOP_SECONDS"
}

# ---- RabbitMQ --------------------------------------------------------------------------------------------------------

# Finds the original scripts. Debian's wrappers in /usr/sbin always use the system's own node.
find_rabbitmq() {
    local bin
    for bin in /usr/lib/rabbitmq/bin /usr/local/sbin /opt/homebrew/sbin /opt/rabbitmq/sbin; do
        if [[ -x $bin/rabbitmqctl ]] && as_server rabbitmq / test -x "$bin/rabbitmq-server" && command -v epmd erl >/dev/null; then
            echo "$bin"
            return
        fi
    done
    return 1
}

# exec_as_rabbitmq DIR COMMAND...: runs COMMAND with the complete environment of the node in DIR.
exec_as_rabbitmq() {
    local dir=$1
    shift
    exec_as_server rabbitmq "$dir" env ERL_EPMD_PORT="$(<"$dir/epmd.port")" ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME="dataloader-$(<"$dir/port")@localhost" RABBITMQ_NODE_PORT="$(<"$dir/port")" \
        RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 RABBITMQ_DIST_PORT="$(<"$dir/dist.port")" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}' \
        RABBITMQ_MNESIA_BASE="$dir/data" RABBITMQ_LOG_BASE="$dir/logs" RABBITMQ_PID_FILE="$dir/pid" \
        RABBITMQ_CONF_ENV_FILE="$dir/env.conf" RABBITMQ_CONFIG_FILE="$dir/rabbitmq" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$dir/enabled_plugins" RABBITMQ_GENERATED_CONFIG_DIR="$dir/generated" "$@"
}

start_rabbitmq() {
    local dir=$1 port=${2-}
    RABBITMQ_BIN=$(provide rabbitmq)
    prepare rabbitmq "$dir"
    if ! rabbitmq_runs "$dir"; then
        start_with_port "$dir" "$port" try_rabbitmq
        watch_owner "$dir"
    fi
    echo "amqp://guest:guest@127.0.0.1:$(<"$dir/port")/%2f" | tee "$dir/url"
}

join_rabbitmq() {
    local dir=$1 first=$2
    [[ -e $first/epmd.port ]] || fail "a cluster needs the programs of RabbitMQ on this machine"
    prepare rabbitmq "$dir"
    echo "$first" >"$dir/first_node"
    cp -p "$first/.erlang.cookie" "$dir/.erlang.cookie"
    start_rabbitmq "$dir"
    # In shells of their own, which they replace.
    {
        (ctl_rabbitmq "$dir" stop_app) && (ctl_rabbitmq "$dir" join_cluster "dataloader-$(<"$first/port")@localhost") &&
            (ctl_rabbitmq "$dir" start_app)
    } >"$dir/join.log" 2>&1 || fail "cannot join the cluster: $(last_lines "$dir/join.log")"
    # It has joined before it listens again.
    local left=$((START_SECONDS * 5))
    until amqp_answers "$(<"$dir/port")"; do
        ((left-- > 0)) || fail "the node has joined the cluster, but accepts no connections"
        sleep 0.2
    done
}

rabbitmq_runs() {
    if [[ -e $1/container ]]; then
        [[ $(docker inspect -f '{{.State.Running}}' "$(<"$1/container")" 2>/dev/null) == true ]]
    else
        [[ -s $1/pid ]] && runs_here "$(<"$1/pid")" "$1"
    fi
}

# A broker answers the protocol header with Connection.Start (frame type 1). An open port alone does not show that it runs.
amqp_answers() {
    local first
    first=$(
        {
            exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'AMQP\0\0\011\001' >&3 && timeout 2 head -c 1 <&3 | od -An -tu1
        } 2>/dev/null
    ) && [[ ${first// /} == 1 ]]
}

try_rabbitmq() {
    local dir=$1 port=$2 left=$((START_SECONDS * 5)) pid
    if [[ $RABBITMQ_BIN == docker ]]; then
        docker_start "$dir" "$port" 5672 "$RABBITMQ_IMAGE" 2>"$dir/log" || return 1
        until amqp_answers "$port"; do
            ((left-- > 0)) || return 1
            sleep 0.2
        done
        return
    fi
    # The first port determines the node's name and its files. The other two ports may change at each start.
    echo "$port" >"$dir/port"
    free_port >"$dir/dist.port"
    # The nodes of a cluster find each other at one epmd, that of the first.
    if [[ -e $dir/first_node ]]; then
        cp "$(<"$dir/first_node")/epmd.port" "$dir/epmd.port"
    else
        free_port >"$dir/epmd.port"
    fi
    : >"$dir/env.conf"
    echo '[].' >"$dir/enabled_plugins"
    echo 'log.file.level = info' >"$dir/rabbitmq.conf"
    rm -f "$dir/pid"
    # epmd survives its nodes and serves all nodes of its port. This node gets its own epmd, whose process id is then known.
    if [[ ! -e $dir/first_node ]]; then
        exec_as_rabbitmq "$dir" epmd -address 127.0.0.1 -port "$(<"$dir/epmd.port")" </dev/null >"$dir/epmd.log" 2>&1 &
        echo $! >"$dir/epmd.pid"
        disown # no message when it ends
    fi
    exec_as_rabbitmq "$dir" setsid "$RABBITMQ_BIN/rabbitmq-server" </dev/null >"$dir/log" 2>&1 &
    pid=$!
    disown
    until amqp_answers "$port" && rabbitmq_runs "$dir"; do
        if ((left-- <= 0)) || ! alive "$pid"; then
            kill_rabbitmq "$dir"
            rm -f "$dir/port"
            return 1
        fi
        sleep 0.2
    done
}

stop_rabbitmq() {
    local dir=$1 pid
    if rabbitmq_runs "$dir"; then
        pid=$(<"$dir/pid")
        kill -TERM "$pid"
        wait_gone "$pid" "$STOP_SECONDS" || note "RabbitMQ in $dir does not stop; killing it"
    fi
    kill_rabbitmq "$dir"
}

kill_rabbitmq() {
    local dir=$1 file pid
    rm -f "$dir/running"
    if [[ -e $dir/container ]]; then
        docker kill "$(<"$dir/container")" >/dev/null
        return
    fi
    for file in "$dir/pid" "$dir/epmd.pid"; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        if runs_here "$pid" "$dir"; then
            kill -KILL "$pid" 2>/dev/null || true
            wait_gone "$pid" 5 || note "process $pid does not end"
        fi
        rm -f "$file"
    done
}

ctl_rabbitmq() {
    local dir=$1
    shift
    if [[ -e $dir/container ]]; then
        docker exec "$(<"$dir/container")" rabbitmqctl "$@"
    else
        RABBITMQ_BIN=$(find_rabbitmq)
        exec_as_rabbitmq "$dir" "$RABBITMQ_BIN/rabbitmqctl" "$@"
    fi
}

# ---- verbs -----------------------------------------------------------------------------------------------------------

# A server that has only half started cannot be stopped. So signals wait until the command is done, and the caller then
# stops the server.
trap '' INT HUP TERM

# Normalizes the path of a directory, because the script recognizes processes by it.
absolute() {
    if [[ -d $1 ]]; then (cd -- "$1" && pwd -P); else fail "no directory $1"; fi
}

case "${1-} ${2-} $#" in
    'postgres start '[34] | 'rabbitmq start '[34])
        mkdir -p -- "$3"
        dir=$(absolute "$3")
        "start_$1" "$dir" "${4-}"
        ;;
    'postgres stop '[34] | 'rabbitmq stop 3') stop_in "$(absolute "$3")" "${@:4}" ;;
    'postgres standby 4')
        mkdir -p -- "$3"
        standby_postgres "$(absolute "$3")" "$(absolute "$4")"
        ;;
    'postgres promote 3') promote_postgres "$(absolute "$3")" ;;
    'rabbitmq join 4')
        mkdir -p -- "$3"
        join_rabbitmq "$(absolute "$3")" "$(absolute "$4")"
        ;;
    'rabbitmq kill 3') kill_rabbitmq "$(absolute "$3")" ;;
    'rabbitmq ctl '[123]) usage ;;
    'rabbitmq ctl '*) ctl_rabbitmq "$(absolute "$3")" "${@:4}" ;;
    'remove '*' 1') usage ;;
    'remove '*) remove "${@:2}" ;;
    *) usage ;;
esac
