#!/usr/bin/env bash
# The project's tasks. `./run.sh help` lists them.
set -euo pipefail

# Which servers the tests need. `yes` starts the server, or uses that of the environment.
needs_postgres=yes
needs_rabbitmq=yes

cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
Usage: ./run.sh COMMAND

  test [WORD...]     all tests, or those with one of these words in their name, as in: ./run.sh test sqlite:: menu
                     starts the servers that they need and stops them again
                     with `matrix`: the process is killed after every single step, and every kind of
                     step fails, where `test` tries some of them
  fuzz MINUTES       texts, messages and configurations that nobody wrote by hand, for so long; what fails is kept
                     in tests/corpus/
  check              formatting, lints, documentation, shell scripts, dependencies
  bench              the benches, side by side with psql and sqlite3 on private servers
  deploy             the batch application in Docker: builds, starts, tests it, opens its menu
  destroy            removes what deploy made, data included; the images stay
  deploy-rabbitmq    the streaming application in Docker, over RabbitMQ, likewise
  destroy-rabbitmq   removes what deploy-rabbitmq made, data included; the images stay
  e2e                end-to-end tests of both deployments, on a copy of this directory
  help               this text

Environment:
  DATABASE_URL       test: use this PostgreSQL server; the tests make and drop databases of their own on it,
                     so its user must be allowed to create databases
  AMQP_URL           test: use this RabbitMQ server
  DATALOADER_BENCH_ROWS    bench: only these measurements, by the beginnings of their names, as in "load stream"
  DATALOADER_BENCH_EVENTS  bench: so many events, instead of a million; the figures that count are those of a million
  DATALOADER_BENCH_RUNS    bench: so many runs of each, instead of five
  .env.example       names what the deployments take from the environment or from .env
TEXT
}

say() { printf 'run.sh: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

need_cargo() {
    PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin
    command -v cargo >/dev/null || fail "no cargo here: install Rust from https://rustup.rs"
}

# ---- services --------------------------------------------------------------------------------------------------------

# The private directory contains the servers and the tests' temporary files.
private=
job=

# Makes a directory that the servers' own users can enter, which not every TMPDIR allows. It is removed at every exit.
make_private() {
    local base
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    for base in "${TMPDIR:-/tmp}" /tmp; do
        private=$(mktemp -d "$base/dataloader-run.XXXXXXXX")
        chmod 711 "$private"
        if [[ $(id -u) != 0 ]] || setpriv --reuid=65534 --regid=65534 --clear-groups test -x "$private/."; then break; fi
        rmdir "$private"
        private=
    done
    [[ $private ]] || fail "neither TMPDIR nor /tmp is a directory that all users can pass through"
    mkdir "$private/tmp"
    chmod 1777 "$private/tmp"
    export SERVICES_OWNER=$$
}

# Runs at every exit: ends the job with all its children, stops the servers that this script started, removes the directory.
clean_up() {
    trap '' INT TERM HUP
    if [[ $job ]]; then
        kill -TERM -- "-$job" 2>/dev/null || true
        for _ in {1..150}; do
            group_lives "$job" || break
            sleep 0.1
        done
        kill -KILL -- "-$job" 2>/dev/null || true
    fi
    if [[ $private ]]; then
        scripts/services.sh remove "$private"
        rm -rf "$private"
    fi
}

# Ignores zombies, because process 1 of a container may never reap them.
group_lives() {
    local stat fields
    kill -0 -- "-$1" 2>/dev/null || return 1
    [[ -d /proc/self ]] || return 0
    for stat in /proc/[0-9]*/stat; do
        { read -r stat <"$stat"; } 2>/dev/null || continue
        read -ra fields <<<"${stat##*) }" # state, parent, process group
        if [[ ${fields[2]} == "$1" && ${fields[0]} != Z ]]; then return 0; fi
    done
    return 1
}

start_services() {
    if [[ $needs_postgres == yes ]]; then
        case ${DATABASE_URL-} in
            postgres://* | postgresql://*) say "PostgreSQL from DATABASE_URL" ;;
            *)
                [[ ! ${DATABASE_URL-} ]] || say "DATABASE_URL is not a PostgreSQL URL: not used for the tests"
                start_private postgres DATABASE_URL
                ;;
        esac
    fi
    if [[ $needs_rabbitmq == yes ]]; then
        if [[ ${AMQP_URL-} ]]; then
            say "RabbitMQ from AMQP_URL"
        else
            start_private rabbitmq AMQP_URL
        fi
    fi
}

# start_private SERVICE VARIABLE: starts a private server and exports its URL.
start_private() {
    local url
    say "starting a private $1 server"
    url=$(scripts/services.sh "$1" start "$private/$1") || fail "no $1 server for the tests"
    export "$2=$url"
}

# Runs a command in its own process group. An interrupt can thus end the whole group before the servers stop.
in_group() {
    set -m
    "$@" </dev/null &
    job=$!
    set +m
    local status=0
    wait "$job" || status=$?
    job=
    return "$status"
}

with_services() {
    make_private
    start_services
    TMPDIR=$private/tmp in_group "$@"
}

# Programs that some tests use besides the servers, installed where that is possible without asking.
install_test_programs() {
    local missing=()
    command -v promtool >/dev/null || missing+=(prometheus)
    command -v pgbouncer >/dev/null || [[ -x /usr/sbin/pgbouncer ]] || missing+=(pgbouncer)
    command -v chromedriver >/dev/null || missing+=(chromium chromium-driver)
    [[ ${#missing[@]} != 0 && $(id -u) == 0 && -e /etc/debian_version ]] || return 0
    say "installing ${missing[*]} with apt-get"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } </dev/null >/dev/null ||
        say "apt-get could not install ${missing[*]}: the tests that use them fail or are skipped"
}

# axe-core (MPL-2.0), which looks for barriers in the page. Only tests use it. It is downloaded once and never committed.
readonly AXE_VERSION=4.14.1
readonly AXE_SHA512=e63e659f9806d7ae5bd40899043b0871a5062c5442b01b3f1a3edf5eaf50bf5c3a7104a72463293b4ad1b77c661a0d4e40e850dec89de9d6ece70a8c13a9af17

fetch_axe() {
    local file=${CARGO_TARGET_DIR:-target}/tmp/axe.min.js
    if is_axe "$file"; then return; fi
    say "downloading axe-core $AXE_VERSION from registry.npmjs.org"
    mkdir -p "${file%/*}"
    curl -sSf --max-time 60 "https://registry.npmjs.org/axe-core/-/axe-core-$AXE_VERSION.tgz" |
        tar -xzO package/axe.min.js >"$file.part" && is_axe "$file.part" && mv "$file.part" "$file" && return
    rm -f "$file" "$file.part"
    say "no axe-core with the expected checksum: the test that uses it is skipped"
}

is_axe() { [[ -f $1 && $({ sha512sum || shasum -a 512; } <"$1" 2>/dev/null) == "$AXE_SHA512 "* ]]; }

# ---- tasks -----------------------------------------------------------------------------------------------------------

# run_tests [WORD...]: runs all tests, or those whose names contain one of the words.
run_tests() {
    local status=0
    need_cargo
    install_test_programs
    fetch_axe
    if [[ $# == 0 ]]; then
        # Builds first, so that a compile error is reported before servers start.
        cargo test --locked --no-run
        SECONDS=0
        with_services cargo test --locked --no-fail-fast -- --include-ignored || status=$?
    else
        cargo test --locked --tests --no-run
        SECONDS=0
        run_matching_tests "$@" || status=$?
    fi
    say "the tests took $SECONDS s"
    return "$status"
}

# Tests without servers run first. That run also lists the other tests as ignored, with the servers that each one needs.
run_matching_tests() {
    local status=0 log
    if [[ " $* " == *" matrix "* ]]; then export TEST_MATRIX=all; fi
    make_private
    log=$private/log
    TMPDIR=$private/tmp in_group tests_into "$log" "$@" || status=$?
    if ! grep -q '^running [1-9]' "$log"; then fail "no test has one of these in its name: $*"; fi
    if grep -q '^test .* ignored, needs ' "$log"; then
        grep -q '^test .* ignored, needs .*PostgreSQL' "$log" || needs_postgres=
        grep -q '^test .* ignored, needs .*RabbitMQ' "$log" || needs_rabbitmq=
        start_services
        TMPDIR=$private/tmp in_group cargo test --locked --tests --no-fail-fast -- --ignored "$@" || status=$?
    fi
    return "$status"
}

# tests_into LOG WORD...: runs the matching tests and copies their output to LOG.
tests_into() {
    local log=$1
    shift
    cargo test --locked --tests --no-fail-fast -- "$@" | tee "$log"
}

# run_fuzz MINUTES: each test makes other inputs until the time is over. A seed in FUZZ_SEED is repeated.
run_fuzz() {
    need_cargo
    cargo test --locked --lib --no-run
    FUZZ_MINUTES=$1 cargo test --locked --lib -- --test-threads 16 fuzz::
}

run_benches() {
    need_cargo
    cargo bench --locked --no-run
    # Always uses private servers: figures of an unknown machine and configuration are not comparable.
    unset DATABASE_URL AMQP_URL
    with_services run_each_bench
}

run_each_bench() {
    local bench rows
    read -ra rows <<<"${DATALOADER_BENCH_ROWS-}"
    cargo bench --locked --bench compare -- "${rows[@]}"
    [[ ${#rows[@]} == 0 ]] || return 0
    for bench in benches/*.rs; do
        bench=${bench#benches/}
        cargo bench --locked --bench "${bench%.rs}"
    done
}

run_checks() {
    need_cargo
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps
    check_shell
    check_dependencies
    say "all checks passed"
}

check_shell() {
    local script first scripts=()
    while IFS= read -r script; do
        { IFS= read -r first <"$script"; } 2>/dev/null || continue
        [[ $first =~ ^#!.*[/\ ](ba|da)?sh($|\ ) ]] && scripts+=("$script")
    done < <(find . \( -name .git -o -name target -o -name raw_data -o -name inbox \) -prune -o -type f -size -64k -print)
    if ! command -v shellcheck >/dev/null; then
        if [[ $(id -u) == 0 && -e /etc/debian_version ]]; then
            say "installing shellcheck with apt-get"
            { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends shellcheck; } </dev/null >/dev/null ||
                say "apt-get could not install shellcheck"
        fi
    fi
    if command -v shellcheck >/dev/null; then
        shellcheck -- "${scripts[@]}"
        say "shellcheck passed: ${scripts[*]}"
    elif [[ ${CI-} ]]; then
        fail "no shellcheck here, and CI must have it: apt-get install shellcheck"
    else
        say "SKIPPED: no shellcheck here; install it to check the shell scripts (Debian: apt-get install shellcheck)"
    fi
}

check_dependencies() {
    if command -v cargo-deny >/dev/null; then
        cargo deny --locked check bans licenses sources
    else
        say "SKIPPED: no cargo-deny here; install it to check the dependencies (cargo install --locked cargo-deny)"
    fi
}

# ---- the command -----------------------------------------------------------------------------------------------------

wrong_usage() {
    usage >&2
    exit 2
}

command=${1-}
command=${command#--}
shift || true
# Only `test` and `fuzz` have arguments. None of the words of `test` begins with a dash.
if [[ $command == fuzz ]]; then
    if [[ $# != 1 || ! $1 =~ ^[1-9][0-9]{0,3}$ ]]; then wrong_usage; fi
else
    for word in "$@"; do
        if [[ $command != test || ! $word || $word == -* ]]; then wrong_usage; fi
    done
fi
case $command in
    test) run_tests "$@" ;;
    fuzz) run_fuzz "$1" ;;
    check) run_checks ;;
    bench) run_benches ;;
    deploy) exec scripts/deploy.sh up batch ;;
    destroy) exec scripts/deploy.sh down batch ;;
    deploy-rabbitmq) exec scripts/deploy.sh up rabbitmq ;;
    destroy-rabbitmq) exec scripts/deploy.sh down rabbitmq ;;
    e2e) exec tests/e2e.sh ;;
    help) usage ;;
    *) wrong_usage ;;
esac
