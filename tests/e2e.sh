#!/usr/bin/env bash
# End-to-end tests of both deployments, as a user meets them: ./run.sh's verbs, the menus in tmux, psql in the containers.
# They work on a copy of the tracked files, with ports and passwords of their own, so the caller's raw_data and .env stay out
# of it. The projects' names are fixed: with a deployment of the caller's own running, they refuse to start.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PATIENCE=120
readonly SAMPLE_EVENTS=50 SAMPLE_ORGS=20

say() { printf 'e2e: %s\n' "$*" >&2; }
fail() {
    say "FAILED: $*"
    exit 1
}
step() { say "--- $* (after $SECONDS s)"; }

# expect WHAT EXPECTED ACTUAL
expect() {
    [[ $2 == "$3" ]] || fail "$1: expected $2, got $3"
    say "ok: $1: $3"
}

# await WHAT COMMAND...: until the command succeeds.
await() {
    local what=$1 deadline=$((SECONDS + PATIENCE))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || fail "waited $PATIENCE s in vain until $what"
        sleep 0.2
    done
    say "ok: $what"
}

# ---- the deployments -------------------------------------------------------------------------------------------------

# of_project PROJECT: all that exists of it, one line each.
of_project() {
    local label=label=com.docker.compose.project=$1
    docker ps --all --filter "$label" --format 'container {{.Names}}'
    docker network ls --filter "$label" --format 'network {{.Name}}'
    docker volume ls --filter "$label" --format 'volume {{.Name}}'
}

# ids PROJECT SERVICE
ids() { docker ps --all --quiet --filter "label=com.docker.compose.project=$1" --filter "label=com.docker.compose.service=$2"; }

batch() { docker exec "$(ids dataloader-batch dataloader)" "$@"; }
cli() { docker exec "$(ids dataloader-rabbitmq cli)" "$@"; }
consumers() { ids dataloader-rabbitmq consumer; }

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

# sql batch|cli QUERY
sql() { "$1" psql -XAtc "$2"; }

# deploy VERB: without a terminal. Keeps what it said in the file log.
deploy() {
    local began=$SECONDS
    ./run.sh "$1" </dev/null 2>&1 | tee log >&2 || fail "./run.sh $1"
    say "ok: ./run.sh $1 took $((SECONDS - began)) s"
}

# http HOST PORT PATH [TOKEN]: the answer, head and body, by bash alone.
http() {
    local authorization=
    [[ ! ${4-} ]] || authorization="Authorization: Bearer $4"$'\r\n'
    exec 3<>"/dev/tcp/$1/$2"
    printf 'GET %s HTTP/1.0\r\n%s\r\n' "$3" "$authorization" >&3
    cat <&3
}

# http_in CONTAINER HOST PORT PATH [TOKEN]: the same, asked from inside a container.
http_in() {
    local container=$1
    shift
    docker exec "$container" bash -c "$(declare -f http); http \"\$@\"" bash "$@"
}
# status ...: the status of an answer.
status() { "$@" | sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p' | tr -d '\r'; }
token() { sed -n 's/^HTTP_TOKEN=//p' .env; }

# page_answers PORT WHAT: only to those who have the token, and with what the database holds.
page_answers() {
    expect "the page without the token" 401 "$(status http 127.0.0.1 "$1" /)"
    expect "with a wrong token" 401 "$(status http 127.0.0.1 "$1" / wrong)"
    expect "with the token of .env" 200 "$(status http 127.0.0.1 "$1" / "$(token)")"
    expect "whether it is ready, which needs none" 200 "$(status http 127.0.0.1 "$1" /readyz)"
    await "the page shows $2" page_shows "$1" "$2"
    grep -q "http://127.0.0.1:$1/.*HTTP_TOKEN in .env" log || fail "the deploy does not say where the page is"
    if grep -qF "$(token)" log; then fail "the deploy shows the token"; fi
}
page_shows() { [[ $(http 127.0.0.1 "$1" / "$(token)") == *"$2"* ]]; }

healthy() { [[ $(docker inspect --format '{{.State.Health.Status}}' "$@" | sort -u) == healthy ]]; }

# ---- the screen ------------------------------------------------------------------------------------------------------

# pane batch|cli NUMBER: all that is and was to be seen there.
pane() { "$1" tmux -L dataloader capture-pane -p -S - -t "dataloader:0.$2"; }
shows() { pane "$1" "$2" | grep -qF -- "$3"; }
type_in() { "$1" tmux -L dataloader send-keys -t "dataloader:0.$2" "$3" Enter; }
open_screen() {
    "$1" dataloader-screen start
    await "the menu is shown" shows "$1" 0 'Your choice:'
    await "psql is shown below it" shows "$1" 1 'dataloader=#'
}
screen_is_gone() { ! "$1" tmux -L dataloader has-session -t dataloader 2>/dev/null; }

# ---- counts ----------------------------------------------------------------------------------------------------------

# Polled while servers are away: an error is no answer yet.
events_are() { [[ $(sql "$1" 'SELECT count(*) FROM raw.events' 2>/dev/null) == "$2" ]]; }
more_events_than() { (($(sql cli 'SELECT count(*) FROM raw.events') > $1)); }
all_files_are_closed() {
    local open
    open=$(sql cli "SELECT count(*) FROM raw.loads WHERE status = 'loading'" 2>/dev/null) && [[ $open == 0 ]]
}

# exactly WHAT EVENTS: after all was loaded there are so many, each once per drop, and the model agrees.
exactly() {
    await "$1: $2 events have arrived" events_are cli "$2"
    await "every file is closed in the ledger" all_files_are_closed
    expect "nothing is doubled" "$2" "$(sql cli 'SELECT count(*) FROM raw.events')"
    expect "the ledger counts the same" "$2" "$(sql cli "SELECT sum(rows_loaded) FROM raw.loads WHERE status = 'loaded'")"
    expect "no record is rejected" 0 "$(sql cli 'SELECT count(*) FROM raw.rejects')"
    cli dataloader model --check >/dev/null || fail "the model differs from a full recompute"
    expect "the model counts the same" "$2" "$(sql cli 'SELECT sum(total_events) FROM modelled.events_by_date')"
}

# ---- a copy, and a clean end -----------------------------------------------------------------------------------------

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    if [[ $status != 0 ]]; then
        for project in dataloader-batch dataloader-rabbitmq; do
            for id in $(docker ps --all --quiet --filter "label=com.docker.compose.project=$project"); do
                say "the last lines of $(docker inspect --format '{{.Name}} ({{.State.Status}})' "$id"):"
                docker logs --tail 15 "$id" >&2 || true
            done
        done
    fi
    ./run.sh destroy >/dev/null 2>&1 || say "./run.sh destroy failed"
    ./run.sh destroy-rabbitmq >/dev/null 2>&1 || say "./run.sh destroy-rabbitmq failed"
    cd /
    rm -rf "$copy"
}

docker info >/dev/null 2>&1 || fail "Docker does not answer"
for project in dataloader-batch dataloader-rabbitmq; do
    [[ ! $(of_project "$project") ]] || fail "$project is deployed here: remove it first, with ./run.sh destroy or destroy-rabbitmq"
done

copy=$(mktemp -d "${TMPDIR:-/tmp}/dataloader-e2e.XXXXXXXX")
git ls-files -z | while IFS= read -r -d '' file; do
    if [[ -e $file ]]; then printf '%s\0' "$file"; fi
done | tar --create --null --files-from=- | tar --extract --directory "$copy"
cd "$copy"
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

unset DATABASE_URL AMQP_URL POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB RABBITMQ_USER RABBITMQ_PASSWORD HTTP_TOKEN
# Not the defaults, which a server of the caller's may have; all six differ.
port=$((21000 + RANDOM % 9000))
export BATCH_POSTGRES_PORT=$port POSTGRES_PORT=$((port + 1)) AMQP_PORT=$((port + 2)) MANAGEMENT_PORT=$((port + 3))
export BATCH_HTTP_PORT=$((port + 4)) HTTP_PORT=$((port + 5))

# ---- batch -----------------------------------------------------------------------------------------------------------

test_batch() {
    step "batch: deploy"
    ./run.sh destroy || fail "destroying nothing"
    deploy deploy
    grep -q 'docker exec -it .* dataloader-screen' log || fail "deploy does not say how to attach"
    [[ $(stat -c %a .env 2>/dev/null || stat -f %Lp .env) == 600 ]] || fail ".env is open to others"

    step "batch: the menu"
    open_screen batch
    type_in batch 0 7
    await "a wrong choice is refused" shows batch 0 '"7"'
    type_in batch 0 1
    await "all is loaded, the totals are shown" shows batch 0 'modelled.events_by_date'
    expect "events" "$SAMPLE_EVENTS" "$(sql batch 'SELECT count(*) FROM raw.events')"
    expect "organisations" "$SAMPLE_ORGS" "$(sql batch 'SELECT count(*) FROM raw.orgs')"
    type_in batch 0 2
    type_in batch 0 2024-02-31
    await "a wrong date is refused" shows batch 0 '"2024-02-31"'
    type_in batch 0 2024-02-29
    await "one day is loaded" day_is_loaded
    expect "events, after loading a day of them again" "$SAMPLE_EVENTS" "$(sql batch 'SELECT count(*) FROM raw.events')"
    type_in batch 1 'select sum(total_events) as sum_below from modelled.events_by_date \g'
    await "psql below answers" shows batch 1 sum_below
    type_in batch 0 3
    await "leaving the menu leaves the screen" screen_is_gone batch

    step "batch: bare commands, the staged way into the server"
    batch dataloader load --format json | grep -q "\"loaded\":$SAMPLE_EVENTS" || fail "dataloader load in the container"
    expect "files left in the stage volume" 0 "$(batch find /stage -type f | wc -l | tr -d ' ')"
    batch dataloader model --check >/dev/null || fail "the model differs from a full recompute"

    step "batch: the page"
    page_answers "$BATCH_HTTP_PORT" "<b>$(sql batch "SELECT sum(rows_loaded) FROM raw.loads WHERE dataset = 'orgs'")</b> loaded"

    step "batch: deploy again"
    deploy deploy
    expect "events, kept by a second deploy" "$SAMPLE_EVENTS" "$(sql batch 'SELECT count(*) FROM raw.events')"
}

day_is_loaded() { [[ $(sql batch 'SELECT count(*), count(DISTINCT received_at::date) FROM raw.events_delta') == '14|1' ]]; }

# ---- stream ----------------------------------------------------------------------------------------------------------

test_rabbitmq() {
    step "rabbitmq: a port that is taken"
    if POSTGRES_PORT=$BATCH_POSTGRES_PORT ./run.sh deploy-rabbitmq </dev/null >log 2>&1; then fail "a port that is taken is accepted"; fi
    grep -q "port $BATCH_POSTGRES_PORT.*POSTGRES_PORT=" log || fail "a port that is taken is not explained: $(cat log)"
    expect "left by the refused deploy" '' "$(of_project dataloader-rabbitmq)"

    step "rabbitmq: deploy beside batch"
    ./run.sh destroy-rabbitmq || fail "destroying nothing"
    deploy deploy-rabbitmq
    grep -q 'docker exec -it .* dataloader-screen' log || fail "deploy-rabbitmq does not say how to attach"

    step "rabbitmq: the menu"
    open_screen cli
    type_in cli 0 2
    await "it says where to put a custom file" shows cli 0 raw_data/events/custom_sample.json
    local n
    for n in 1 2 3; do
        type_in cli 0 1
        exactly "the sample, dropped $n time(s)" $((n * SAMPLE_EVENTS))
    done
    cat >raw_data/events/custom_sample.json <<'JSON'
[{"id": "custom-1", "event_type": "User Created", "username": "me", "received_at": "2024-03-04 08:00:00"},
 {"id": "custom-2", "event_type": "User Deleted", "username": "me", "received_at": "2024-03-04 09:00:00"}]
JSON
    type_in cli 0 2
    total=$((3 * SAMPLE_EVENTS + 2))
    exactly "the custom file of the host" "$total"
    type_in cli 0 3
    await "leaving the menu leaves the screen" screen_is_gone cli

    step "rabbitmq: the page, metrics, and who reaches what"
    page_answers "$HTTP_PORT" "<b>$total</b> loaded"
    local service id
    for service in producer consumer; do
        expect "metrics of the $service without the token" 401 "$(status http_in "$(ids dataloader-rabbitmq cli)" "$service" 8080 /metrics)"
        http_in "$(ids dataloader-rabbitmq cli)" "$service" 8080 /metrics "$(token)" >metrics || fail "metrics of the $service"
        grep -q '^dataloader_build_info' metrics || fail "metrics of the $service: $(cat metrics)"
        id=$(ids dataloader-rabbitmq "$service")
        expect "ports of the $service on this machine" '' "$(docker port "$id")"
        expect "the $service reaches the broker" yes "$(reaches "$id" rabbitmq 5672)"
    done
    expect "the consumer reaches the database" yes "$(reaches "$(consumers)" postgres 5432)"
    expect "the producer reaches the database" no "$(reaches "$(ids dataloader-rabbitmq producer)" postgres 5432)"
    expect "the producer reaches the address of the database" no \
        "$(reaches "$(ids dataloader-rabbitmq producer)" "$(address "$(ids dataloader-rabbitmq postgres)")" 5432)"
    expect "the login shell of the user" /usr/sbin/nologin "$(cli sh -c "grep ^dataloader: /etc/passwd | cut -d: -f7")"

    step "rabbitmq: the consumer killed, the broker restarted, while files are dropped"
    cli sh -c 'dataloader generate --events 20000 >/tmp/many.json'
    drop_one_by_one 8 &
    local dropping=$!
    await "some of them are being loaded" more_events_than "$total"
    docker kill "$(consumers)" >/dev/null
    docker stop --time 60 "$(ids dataloader-rabbitmq rabbitmq)" >/dev/null
    drop_many 2
    docker start "$(ids dataloader-rabbitmq rabbitmq)" "$(consumers)" >/dev/null
    wait "$dropping" || fail "dropping files"
    total=$((total + 10 * 20000))
    exactly "with consumer and broker lost in between" "$total"
    await "producer and consumer are healthy again" healthy "$(ids dataloader-rabbitmq producer)" "$(consumers)"

    step "rabbitmq: three consumers"
    COMPOSE_PROJECT_NAME=dataloader-rabbitmq COMPOSE_PROFILES=rabbitmq compose up -d --no-recreate --scale consumer=3 >/dev/null 2>&1 ||
        fail "docker compose up --scale consumer=3"
    expect "consumers" 3 "$(consumers | wc -l | tr -d ' ')"
    await "all three are healthy" all_consumers_are_healthy
    drop_many 3
    total=$((total + 3 * 20000))
    exactly "loaded by three consumers" "$total"

    step "rabbitmq: SIGTERM drains"
    drop_many 3
    local id
    for id in $(ids dataloader-rabbitmq producer) $(consumers); do
        docker stop --time 60 "$id" >/dev/null
        expect "exit code after SIGTERM" 0 "$(docker inspect --format '{{.State.ExitCode}}' "$id")"
    done
    docker start "$(ids dataloader-rabbitmq producer)" >/dev/null
    for id in $(consumers); do docker start "$id" >/dev/null; done
    total=$((total + 3 * 20000))
    exactly "stopped and started in between" "$total"
}

# reaches CONTAINER HOST PORT: yes or no.
reaches() {
    if docker exec "$1" timeout 5 bash -c "exec 3<>/dev/tcp/$2/$3" 2>/dev/null; then echo yes; else echo no; fi
}
address() { docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' "$1" | cut -d' ' -f1; }
drop_many() { cli dataloader drop /tmp/many.json --times "$1" >/dev/null; }
# Spread over some seconds, by the time that it takes to start the program in a container.
drop_one_by_one() {
    local left=$1
    for ((; left > 0; left--)); do drop_many 1; done
}
all_consumers_are_healthy() {
    local id
    for id in $(consumers); do healthy "$id" || return 1; done
}

# ---- the end ---------------------------------------------------------------------------------------------------------

test_destroy() {
    step "destroy"
    local others
    others=$(of_project dataloader-batch)
    ./run.sh destroy-rabbitmq
    expect "left of dataloader-rabbitmq" '' "$(of_project dataloader-rabbitmq)"
    expect "of dataloader-batch" "$others" "$(of_project dataloader-batch)"
    ./run.sh destroy
    expect "left of dataloader-batch" '' "$(of_project dataloader-batch)"
}

test_batch
test_rabbitmq
test_destroy
say "all passed in $SECONDS s"
