#!/usr/bin/env bash
# Manages the two Docker deployments. All objects of a deployment have the label of its Compose project,
# dataloader-batch or dataloader-rabbitmq. This script changes no other objects.
#
#   deploy.sh up batch|rabbitmq        builds, starts, waits until healthy, tests, opens the screen
#   deploy.sh down batch|rabbitmq      removes containers, networks and volumes; the images stay
set -euo pipefail

readonly HEALTHY_SECONDS=180
# Characters that need no escape in a URL.
readonly URL_SAFE='^[A-Za-z0-9._~-]+$'

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'run.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}
usage() {
    sed -n '5,6s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

# ---- Docker and Compose ----------------------------------------------------------------------------------------------

need_docker() {
    local answer
    command -v docker >/dev/null || fail "no docker here: install it from https://docs.docker.com/get-docker/"
    answer=$(docker info 2>&1 >/dev/null) || fail "Docker does not answer: is it running, and may you use it? It says: ${answer##*$'\n'}"
}

compose=()

need_compose() {
    local version
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    elif command -v docker-compose >/dev/null; then
        version=$(docker-compose version --short)
        version=${version#v}
        case $version in
            0.* | 1.?.* | 1.1?.* | 1.2[0-8].*) fail "docker-compose $version is too old: 1.29 or later, or the plugin \`docker compose\`" ;;
        esac
        compose=(docker-compose)
    else
        fail "no Docker Compose here: see https://docs.docker.com/compose/install/"
    fi
    # The caller's COMPOSE_* variables belong to other projects. Those in .env are for direct use of Compose.
    unset COMPOSE_FILE
    export COMPOSE_PROJECT_NAME=$project COMPOSE_PROFILES=$architecture
    compose+=(--project-name "$project")
}

# containers [FILTER...]: prints the ids of this deployment's containers.
containers() {
    local filter filters=()
    for filter in "label=com.docker.compose.project=$project" "$@"; do filters+=(--filter "$filter"); done
    docker ps --all --quiet "${filters[@]}"
}

# container_of SERVICE: prints the id of the service's container.
container_of() { containers "label=com.docker.compose.service=$1" label=com.docker.compose.oneoff=False | head -n 1; }

# ---- settings --------------------------------------------------------------------------------------------------------

# setting NAME DEFAULT: prints the value that Compose uses: from the environment, from .env, or the default.
setting() {
    local name=$1 value
    if [[ ${!name+set} ]]; then
        value=${!name}
    else
        value=$(sed -n "s/^[[:space:]]*$name=//p" .env | tail -n 1 | tr -d "\r\"'")
    fi
    echo "${value:-${2-}}"
}

prepare_settings() {
    local name
    if [[ ! -e .env ]]; then
        (umask 077 && cp .env.example .env && chmod 600 .env)
        say "made .env from .env.example, with new passwords"
    fi
    for name in POSTGRES_PASSWORD RABBITMQ_PASSWORD HTTP_TOKEN; do
        [[ $(setting "$name") ]] || fill_in "$name" "$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
    done
    for name in POSTGRES_USER POSTGRES_DB POSTGRES_PASSWORD RABBITMQ_USER RABBITMQ_PASSWORD; do
        [[ $(setting "$name" dataloader) =~ $URL_SAFE ]] || fail "$name may hold letters, digits and . _ ~ - only: it becomes part of a URL"
    done
    [[ $(setting HTTP_TOKEN) =~ $URL_SAFE ]] || fail "HTTP_TOKEN may hold letters, digits and . _ ~ - only: people type it and programs send it"
}

# fill_in NAME VALUE: sets a value in .env that is missing or empty.
fill_in() {
    (
        umask 077
        sed "s/^$1=[[:space:]]*\$/$1=$2/" .env >.env.new
        if ! grep -q "^$1=$2\$" .env.new; then echo "$1=$2" >>.env.new; fi
        mv .env.new .env
    )
}

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# check_port NAME DEFAULT WHAT: fails if another program uses the port. Prints the port.
check_port() {
    local name=$1 port
    port=$(setting "$name" "$2")
    if [[ ! $port =~ ^[1-9][0-9]{0,4}$ ]] || ((port > 65535)); then fail "$name=$port is no port: a number from 1 to 65535"; fi
    if answers "$port" && [[ ! $(containers "publish=$port") ]]; then
        fail "port $port, for $3, is in use on 127.0.0.1: choose another one as $name in .env or the environment, as in $name=$((port + 100))"
    fi
    echo "$port"
}

check_ports() {
    if [[ $architecture == batch ]]; then
        # Both deployments have these services, and the Compose file has one variable for the port of each.
        POSTGRES_PORT=$(check_port BATCH_POSTGRES_PORT 5433 PostgreSQL)
        HTTP_PORT=$(check_port BATCH_HTTP_PORT 8081 "the page")
        # There is no broker whose queues the page could show.
        export POSTGRES_PORT HTTP_PORT PAGE_TRANSPORT=inproc
    else
        check_port POSTGRES_PORT 5434 PostgreSQL >/dev/null
        check_port HTTP_PORT 8080 "the page" >/dev/null
        check_port AMQP_PORT 5672 RabbitMQ >/dev/null
        check_port MANAGEMENT_PORT 15672 "RabbitMQ's management page" >/dev/null
    fi
}

# The user in the containers does not exist on this machine. It can read a file of raw_data only if all users can.
check_readable() {
    local closed
    closed=$(find raw_data dataloader.toml ! -perm -004 -print | head -n 1)
    [[ ! $closed ]] || say "WARNING: $closed cannot be read by everybody, so the program in the container will not read it: chmod -R a+rX raw_data dataloader.toml"
}

# ---- up --------------------------------------------------------------------------------------------------------------

up() {
    local began=$SECONDS status=0
    need_docker
    need_compose
    prepare_settings
    check_ports
    check_readable
    say "building the images; the first time takes minutes, while Rust compiles"
    COMPOSE_PROFILES=$architecture,tests "${compose[@]}" build "$application" tests
    say "starting ${services[*]} as project $project"
    "${compose[@]}" up -d --no-build || status=$?
    if [[ $status != 0 ]]; then
        show_logs
        fail "not started: see above. A port that is taken (\"already allocated\", \"in use\") is changed in .env"
    fi
    wait_until_healthy
    say "all healthy after $((SECONDS - began)) s; running the tests against them"
    run_tests || status=$?
    if [[ $status != 0 ]]; then
        say "the tests failed (exit code $status). The services still run; ./run.sh $destroy removes them"
        exit "$status"
    fi
    say "deployed and tested in $((SECONDS - began)) s"
    open_screen
}

wait_until_healthy() {
    local deadline=$((SECONDS + HEALTHY_SECONDS)) waiting
    while true; do
        waiting=$(not_ready)
        [[ $waiting ]] || return 0
        if ((SECONDS >= deadline)) || grep -qE ' (exited|dead)' <<<"$waiting"; then
            show_logs
            fail "not healthy: $(tr '\n' ';' <<<"$waiting"). ./run.sh $destroy removes what runs"
        fi
        sleep 1
    done
}

# not_ready: prints the containers that are not running or not healthy, one per line, each with its state.
not_ready() {
    local ids=() id
    while read -r id; do ids+=("$id"); done < <(containers label=com.docker.compose.oneoff=False)
    docker inspect --format '{{.Name}} {{.State.Status}}{{if .State.Health}} {{.State.Health.Status}}{{end}}' "${ids[@]}" |
        sed -n -e '/ running$/d' -e '/ running healthy$/d' -e 's|^/||p'
}

# Shows the logs of the containers that are not ready, or of all containers if all are ready.
show_logs() {
    local name names=()
    while read -r name _; do names+=("$name"); done < <(not_ready 2>/dev/null)
    if [[ ${#names[@]} == 0 ]]; then
        "${compose[@]}" logs --tail=20 >&2 || true
        return
    fi
    for name in "${names[@]}"; do
        say "the last lines of $name:"
        docker logs --tail 40 "$name" >&2 || true
    done
}

run_tests() {
    local status=0 vhost=dataloader-tests user
    if [[ $architecture == batch ]]; then
        COMPOSE_PROFILES=tests "${compose[@]}" run --rm --no-deps -T tests
        return
    fi
    user=$(setting RABBITMQ_USER dataloader)
    # Remains of an interrupted run. Deleting the vhost deletes its queues.
    in_broker delete_vhost "$vhost" >/dev/null 2>&1 || true
    in_broker add_vhost "$vhost"
    in_broker set_permissions -p "$vhost" "$user" '.*' '.*' '.*'
    AMQP_URL=amqp://$user:$(setting RABBITMQ_PASSWORD)@rabbitmq:5672/$vhost COMPOSE_PROFILES=tests \
        "${compose[@]}" run --rm --no-deps -T -e AMQP_URL tests || status=$?
    in_broker delete_vhost "$vhost"
    return "$status"
}

in_broker() { docker exec "$(container_of rabbitmq)" rabbitmqctl -q "$@"; }

open_screen() {
    local name
    name=$(docker inspect --format '{{slice .Name 1}}' "$(container_of "$application")")
    # The container may not know the terminal type of the caller; every terminal supports enough of xterm-256color.
    local command=(docker exec -it -e TERM=xterm-256color "$name" dataloader-screen)
    if [[ -t 0 && -t 1 ]]; then
        "${command[@]}" || true
        say "everything keeps running."
    fi
    # In the batch deployment check_ports has set this to the port of BATCH_HTTP_PORT.
    say "the page:               http://127.0.0.1:$(setting HTTP_PORT 8080)/ (any user name; the password is HTTP_TOKEN in .env)"
    say "the menu and psql:      ${command[*]}"
    say "the menu alone:         docker exec -it $name dataloader menu"
    if [[ $architecture == rabbitmq ]]; then
        say "RabbitMQ's own page:    http://127.0.0.1:$(setting MANAGEMENT_PORT 15672) (user and password are in .env)"
    fi
    say "to remove everything:   ./run.sh $destroy"
}

# ---- down ------------------------------------------------------------------------------------------------------------

# Finds the objects by label, without Compose. The settings and the list of services may have changed since `up`.
down() {
    local label=label=com.docker.compose.project=$project removed
    need_docker
    removed=$(
        containers | xargs -r docker rm --force --volumes &&
            docker network ls --quiet --filter "$label" | xargs -r docker network rm &&
            docker volume ls --quiet --filter "$label" | xargs -r docker volume rm
    )
    if [[ $removed ]]; then
        say "removed the containers, networks and volumes of $project"
    else
        say "nothing of $project is here"
    fi
}

# ---- the command -----------------------------------------------------------------------------------------------------

[[ $# == 2 ]] || usage
architecture=$2
project=dataloader-$architecture
case $architecture in
    batch)
        application=dataloader destroy=destroy
        services=(postgres page dataloader)
        ;;
    rabbitmq)
        application=cli destroy=destroy-rabbitmq
        services=(postgres page rabbitmq producer consumer cli)
        ;;
    *) usage ;;
esac
case $1 in
    up) up ;;
    down) down ;;
    *) usage ;;
esac
